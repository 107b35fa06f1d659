package fence

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/novacron/afterimage/cbt"
	tap "github.com/novacron/afterimage/cbt/libvirt"
	"github.com/novacron/afterimage/recovery/libvirt"
)

// Domain is the machine as the libvirtd of its old host knows it.
type Domain struct {
	URI     string // as cbt/libvirt has it: a socket, which a tunnel may lead elsewhere
	Domain  string // name or UUID
	Timeout time.Duration
}

var _ Switch = Domain{}

// Name implements Channel.
func (d Domain) Name() string { return fmt.Sprintf("libvirt %s, domain %s", d.URI, d.Domain) }

// Read implements Channel. A crashed domain is off; a paused one is not, for whoever
// resumes it makes it run. A domain that is not there says nothing: the socket may
// lead to another host than it should.
func (d Domain) Read(ctx context.Context) (State, string, error) {
	state := Unseen
	var said string
	err := d.with(ctx, func(ctx context.Context, m *libvirt.Machine) error {
		s, err := m.State(ctx)
		if err != nil {
			return err
		}
		said, state = string(s), SeenOn
		switch s {
		case tap.StateOff, tap.StateCrashed:
			state = SeenOff
		case tap.StateUnknown:
			state = Unseen
		}
		return nil
	})
	return state, said, err
}

// Challenge implements Switch: it must know the domain and none of a name that was
// drawn by chance.
func (d Domain) Challenge(ctx context.Context) (string, error) {
	bogus := d
	bogus.Domain = "none-" + cbt.NewID().String()
	err := bogus.with(ctx, func(context.Context, *libvirt.Machine) error { return nil })
	switch {
	case err == nil:
		return "", fmt.Errorf("%w: it knows domain %s, which does not exist", ErrLiar, bogus.Domain)
	case !errors.Is(err, tap.ErrNoDomain):
		return "", err
	}
	return "", d.with(ctx, func(context.Context, *libvirt.Machine) error { return nil })
}

// SwitchOff implements Switch: it pulls the machine's plug. The definition stays, and
// with it the autostart that doctor and first contact look after.
func (d Domain) SwitchOff(ctx context.Context) (string, error) {
	return "", d.with(ctx, func(ctx context.Context, m *libvirt.Machine) error { return m.Stop(ctx) })
}

func (d Domain) with(ctx context.Context, do func(context.Context, *libvirt.Machine) error) error {
	limit := d.Timeout
	if limit <= 0 {
		limit = defaultTimeout
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer within %v", limit))
	defer cancel()
	h, err := libvirt.Connect(ctx, d.URI)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	defer h.Close()
	m, err := h.Machine(ctx, d.Domain)
	if err == nil {
		err = do(ctx, m)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, tap.ErrConnection) || ctx.Err() != nil:
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	return fmt.Errorf("%w: %w", ErrRefused, err)
}
