package qemu

import (
	"context"
	"fmt"

	"github.com/novacron/afterimage/cbt/qmp"
)

// Monitor is a connection to a QEMU's control plane. *qmp.Client behind DialQMP
// is the usual one; libvirt's passthrough can be another. All methods are safe
// for concurrent use.
type Monitor interface {
	// Execute runs a QMP command; a refusal by QEMU is a *qmp.Error.
	Execute(ctx context.Context, command string, args, result any) error
	// ExecuteOOB runs it out of band, or returns qmp.ErrNoOOB.
	ExecuteOOB(ctx context.Context, command string, args, result any) error
	// Events queues QEMU's events from now on, at most limit at a time.
	Events(limit int) EventQueue
	// Done is closed when the connection has ended, Err says why.
	Done() <-chan struct{}
	Err() error
	Close() error
}

// EventQueue is a bounded queue of events; see qmp.Subscription.
type EventQueue interface {
	Next(ctx context.Context) (qmp.Event, error)
	Close()
}

type qmpMonitor struct{ *qmp.Client }

func (m qmpMonitor) Events(limit int) EventQueue { return m.Subscribe(limit) }

// DialQMP connects to the QMP socket at path, as Options.Dial does by default.
func DialQMP(ctx context.Context, path string) (Monitor, error) {
	c, err := qmp.Dial(ctx, path, qmp.Options{})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMonitor, err)
	}
	return qmpMonitor{c}, nil
}
