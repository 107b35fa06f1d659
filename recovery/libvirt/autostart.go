package libvirt

import (
	"context"

	rpc "github.com/digitalocean/go-libvirt"
)

// Autostart tells whether libvirtd starts the machine when the host boots.
func (m *Machine) Autostart(ctx context.Context) (bool, error) {
	var n int32
	err := m.host.conn.Call(ctx, "autostart of "+m.Name, func(l *rpc.Libvirt) (err error) {
		n, err = l.DomainGetAutostart(m.RPC())
		return err
	})
	return n != 0, err
}

// SetAutostart sets that; a transient domain cannot have it.
func (m *Machine) SetAutostart(ctx context.Context, on bool) error {
	var n int32
	if on {
		n = 1
	}
	return m.host.conn.Call(ctx, "set autostart of "+m.Name, func(l *rpc.Libvirt) error { return l.DomainSetAutostart(m.RPC(), n) })
}

// Create starts a machine that is defined and off.
func (m *Machine) Create(ctx context.Context) error {
	return m.host.conn.Call(ctx, "start domain "+m.Name, func(l *rpc.Libvirt) error { return l.DomainCreate(m.RPC()) })
}
