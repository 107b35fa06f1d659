package libvirt

import (
	"context"
	"fmt"

	rpc "github.com/digitalocean/go-libvirt"
)

// Suspend stops the machine where it is: when it returns, nothing of what the guest has
// written is on its way to a disk any more.
func (m *Machine) Suspend(ctx context.Context) error {
	return m.host.conn.Call(ctx, "suspend domain "+m.Name, func(l *rpc.Libvirt) error { return l.DomainSuspend(m.RPC()) })
}

// Resume lets a suspended machine go on.
func (m *Machine) Resume(ctx context.Context) error {
	return m.host.conn.Call(ctx, "resume domain "+m.Name, func(l *rpc.Libvirt) error { return l.DomainResume(m.RPC()) })
}

// GoOn resumes a machine that stands still because a disk failed it: the guest's request
// is made again, and the guest has seen no error. Any other is left as it is.
func (m *Machine) GoOn(ctx context.Context) (resumed bool, err error) {
	stands, err := m.StoppedByDisk(ctx)
	if err != nil || !stands {
		return false, err
	}
	return true, m.Resume(ctx)
}

// Persistent reports whether libvirt knows the machine when it is off.
func (m *Machine) Persistent(ctx context.Context) (bool, error) {
	var n int32
	err := m.host.conn.Call(ctx, "persistence of domain "+m.Name, func(l *rpc.Libvirt) (err error) {
		n, err = l.DomainIsPersistent(m.RPC())
		return err
	})
	if err != nil {
		return false, err // the call may still write
	}
	return n != 0, nil
}

// CreateTransient starts a machine from its definition alone, which libvirt forgets when
// it ends.
func (h *Host) CreateTransient(ctx context.Context, definition string) error {
	err := h.conn.Call(ctx, "create domain", func(l *rpc.Libvirt) error {
		_, err := l.DomainCreateXML(definition, 0)
		return err
	})
	if err != nil {
		return fmt.Errorf("start machine: %w", err)
	}
	return nil
}
