package libvirt

import (
	"context"
	"errors"
	"fmt"
	"time"

	rpc "github.com/digitalocean/go-libvirt"

	"github.com/novacron/afterimage/cbt/libvirt"
)

// Host is a libvirtd that runs machines.
type Host struct{ conn *libvirt.Conn }

// Connect opens the libvirtd at uri, as cbt/libvirt does.
func Connect(ctx context.Context, uri string) (*Host, error) {
	c, err := libvirt.Connect(ctx, uri)
	if err != nil {
		return nil, err
	}
	return &Host{c}, nil
}

// Close ends the connection; machines go on.
func (h *Host) Close() error { return h.conn.Close() }

// Machine is a domain that h knows.
type Machine struct {
	*libvirt.Domain
	host *Host
}

// Machine finds a domain by name or UUID; libvirt.ErrNoDomain if there is none.
func (h *Host) Machine(ctx context.Context, name string) (*Machine, error) {
	d, err := h.conn.Domain(ctx, name)
	if err != nil {
		return nil, err
	}
	return &Machine{d, h}, nil
}

const tidyPatience = 10 * time.Second

// Start defines a domain and starts it. A domain of the same name or UUID is
// never touched: that is ErrTaken.
func (h *Host) Start(ctx context.Context, definition string) (*Machine, error) {
	if err := h.free(ctx, definition); err != nil {
		return nil, fmt.Errorf("start machine: %w", err)
	}
	var dom rpc.Domain
	err := h.conn.Call(ctx, "define domain", func(l *rpc.Libvirt) (err error) {
		dom, err = l.DomainDefineXMLFlags(definition, 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("start machine: %w", err)
	}
	m := &Machine{h.conn.Adopt(dom), h}
	err = h.conn.Call(ctx, "start domain "+m.Name, func(l *rpc.Libvirt) error { return l.DomainCreate(dom) })
	if err != nil {
		// The caller's context may be over; what was defined goes all the same.
		after, cancel := context.WithTimeout(context.WithoutCancel(ctx), tidyPatience)
		defer cancel()
		return nil, fmt.Errorf("start machine: %w", errors.Join(err, m.Undefine(after)))
	}
	return m, nil
}

// free asks whether a definition's name and UUID are unused: defining replaces
// what has both.
func (h *Host) free(ctx context.Context, definition string) error {
	root, err := parse([]byte(definition))
	if err != nil {
		return err
	}
	for _, what := range []string{"name", "uuid"} {
		e := root.child(what)
		if e == nil {
			continue
		}
		value := unescape([]byte(definition)[e.inner:e.outer])
		switch _, err := h.conn.Domain(ctx, value); {
		case err == nil:
			return fmt.Errorf("%s %q: %w", what, value, ErrTaken)
		case !errors.Is(err, libvirt.ErrNoDomain):
			return err
		}
	}
	return nil
}

// Stop ends the machine at once, as pulling its plug would; the definition
// stays. A machine that does not run is no error.
func (m *Machine) Stop(ctx context.Context) error {
	err := m.host.conn.Call(ctx, "stop domain "+m.Name, func(l *rpc.Libvirt) error { return l.DomainDestroy(m.RPC()) })
	if errors.Is(err, libvirt.ErrNotRunning) || errors.Is(err, libvirt.ErrNoDomain) {
		return nil
	}
	return err
}

// Undefine forgets the machine's definition with all that libvirt keeps for it,
// but no disk. A machine that is not there is no error.
func (m *Machine) Undefine(ctx context.Context) error {
	const all = rpc.DomainUndefineManagedSave | rpc.DomainUndefineNvram |
		rpc.DomainUndefineSnapshotsMetadata | rpc.DomainUndefineCheckpointsMetadata
	err := m.host.conn.Call(ctx, "undefine domain "+m.Name, func(l *rpc.Libvirt) error { return l.DomainUndefineFlags(m.RPC(), all) })
	if errors.Is(err, libvirt.ErrNoDomain) {
		return nil
	}
	return err
}
