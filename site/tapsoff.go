package site

import (
	"context"
	"errors"
	"fmt"

	tap "github.com/novacron/afterimage/cbt/libvirt"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/recovery/libvirt"
	"github.com/novacron/afterimage/site/config"
)

// nobodyRuns is nil if no machine runs that writes to the group's disks here: neither the
// one that is made of the history, nor one whose disks are tapped.
func (l *life) nobodyRuns(ctx context.Context) error {
	if err := l.processEnded(ctx); err != nil {
		return err
	}
	return l.tappedEnded(ctx)
}

// processEnded is nil unless the machine that is made of the history runs here. One whose
// disks are its own needs nobody to run: more is asked.
func (l *life) processEnded(ctx context.Context) error {
	if err := l.processGone(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, ownPatience)
	defer cancel()
	_, err := l.localOff(ctx)
	return err
}

// processGone asks who started it, of every machine of the group.
func (l *life) processGone() error {
	m := l.cfg.Machine
	if m == nil || l.atHome() {
		return nil
	}
	for _, one := range l.machine(m).Each() {
		pid, err := one.Process()
		switch {
		case err == nil:
			return fmt.Errorf("machine %s runs here (process %d)", one.Name, pid)
		case !errors.Is(err, recovery.ErrNotRunning):
			return fmt.Errorf("see machine %s off: %w", one.Name, err)
		}
	}
	return nil
}

// tappedEnded is nil unless a machine runs whose disks are tapped here. Asked are those
// who know: a tap that ended, or a monitor that does not answer, tells nothing of a
// machine, which goes on while its libvirtd is away. Who cannot be asked counts as running.
func (l *life) tappedEnded(ctx context.Context) error {
	if !l.taps() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, ownPatience)
	defer cancel()
	for _, t := range l.cfg.Taps() {
		var err error
		if t.Libvirt != nil {
			err = l.domainEnded(ctx, t)
		} else {
			_, err = l.plainOff(ctx, t)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// domainEnded is nil if libvirtd says that the tapped domain is off, by its name and by
// the UUID that it was last known by; one that libvirtd has forgotten has ended.
func (l *life) domainEnded(ctx context.Context, t config.Tap) error {
	return l.eachDomain(ctx, t, func(m *libvirt.Machine, state tap.State) error {
		if state != tap.StateOff && state != tap.StateCrashed {
			return fmt.Errorf("domain %s is %s", m.Name, state)
		}
		return nil
	})
}

// eachDomain does something to what may be the tapped domain: the one of its name, and the
// one of the UUID that it was last known by, which another name does not change.
func (l *life) eachDomain(ctx context.Context, t config.Tap, do func(*libvirt.Machine, tap.State) error) error {
	what := "see domain " + t.Libvirt.Domain + " off"
	names := []string{t.Libvirt.Domain}
	var uuid string
	switch known, err := l.j.Recall(domainKey(t), &uuid); {
	case err != nil:
		return fmt.Errorf("%s: %w", what, err)
	case known:
		names = append(names, uuid)
	}
	h, err := libvirt.Connect(ctx, t.Libvirt.URI)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	defer h.Close()
	done := map[string]bool{}
	for _, name := range names {
		m, err := h.Machine(ctx, name)
		if errors.Is(err, tap.ErrNoDomain) || err == nil && done[m.UUID] {
			continue
		}
		state := tap.State("")
		if err == nil {
			done[m.UUID] = true
			state, err = m.State(ctx)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if err := do(m, state); err != nil {
			return err
		}
	}
	return nil
}
