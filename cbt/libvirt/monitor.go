package libvirt

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	rpc "github.com/digitalocean/go-libvirt"

	"github.com/novacron/afterimage/cbt/qemu"
	"github.com/novacron/afterimage/cbt/qmp"
)

// Monitor is a domain's QMP monitor by way of libvirtd, on a connection of its own.
type Monitor struct {
	*Domain
	cancel context.CancelFunc

	mu     sync.Mutex // guards what follows
	queues map[*queue]struct{}
	ended  error // set once no event can come any more
}

var _ qemu.Monitor = (*Monitor)(nil)

// DialMonitor connects to the monitor of the running domain that is called name.
// It fits qemu.Options.Dial. The monitor lives until Close, until the domain
// stops, or until libvirtd goes away.
func DialMonitor(ctx context.Context, uri, name string) (*Monitor, error) {
	c, err := Connect(ctx, uri)
	if err != nil {
		return nil, err
	}
	m, err := newMonitor(ctx, c, name)
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("dial monitor: %w", err)
	}
	return m, nil
}

func newMonitor(ctx context.Context, c *Conn, name string) (*Monitor, error) {
	d, err := c.Domain(ctx, name)
	if err != nil {
		return nil, err
	}
	m := &Monitor{Domain: d, queues: make(map[*queue]struct{})}
	var lasting context.Context
	lasting, m.cancel = context.WithCancel(context.Background())
	var events <-chan rpc.DomainEvent
	var lives <-chan any
	err = c.Call(ctx, "subscribe to events of "+name, func(l *rpc.Libvirt) (err error) {
		if events, err = l.SubscribeQEMUEvents(lasting, d.Name); err != nil {
			return err
		}
		lives, err = l.SubscribeEvents(lasting, rpc.DomainEventIDLifecycle, nil)
		return err
	})
	if err != nil {
		m.Close()
		return nil, err
	}
	go m.distribute(events)
	go m.watch(lives)
	// Asked last: a domain that stopped before the subscription is seen here.
	s, err := d.State(ctx)
	if err == nil && (s == StateOff || s == StateCrashed) {
		err = fmt.Errorf("%s is %s: %w", name, s, ErrNotRunning)
	}
	if err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

// watch ends the connection when the domain stops: a domain of that name that
// runs later is another QEMU, whose jobs and bitmaps are not ours.
func (m *Monitor) watch(lives <-chan any) {
	for ev := range lives {
		e, ok := ev.(*rpc.DomainEventCallbackLifecycleMsg)
		if ok && e.Msg.Dom.UUID == m.dom.UUID && rpc.DomainEventType(e.Msg.Event) == rpc.DomainEventStopped {
			m.conn.conn.end(fmt.Errorf("%s stopped: %w", m.Name, ErrNotRunning))
			m.Close()
		}
	}
}

// distribute hands events to the queues until the connection ends. It never
// blocks: the RPC client's own queue is unbounded.
func (m *Monitor) distribute(events <-chan rpc.DomainEvent) {
	for ev := range events {
		e := qmp.Event{Name: ev.Event, Time: time.Unix(int64(ev.Seconds), int64(ev.Microseconds)*1000)}
		if json.Valid(ev.Details) {
			e.Data = ev.Details
		}
		m.mu.Lock()
		for q := range m.queues {
			q.put(e)
		}
		m.mu.Unlock()
	}
	err := m.Err()
	if err == nil {
		err = ErrConnection
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ended = err
	for q := range m.queues {
		q.end(err)
	}
}

// ExecuteOOB returns qmp.ErrNoOOB: libvirtd passes nothing out of band.
func (m *Monitor) ExecuteOOB(context.Context, string, any, any) error { return qmp.ErrNoOOB }

// Events queues the domain's QMP events from now on, at most limit at a time.
// Only events with data come through, which those of jobs and devices have: the
// RPC client drops one like STOP.
func (m *Monitor) Events(limit int) qemu.EventQueue {
	q := newQueue(limit)
	q.leave = func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.queues, q)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ended != nil {
		q.end(m.ended)
	} else {
		m.queues[q] = struct{}{}
	}
	return q
}

// Done is closed when the connection has ended, Err says why.
func (m *Monitor) Done() <-chan struct{} { return m.conn.Done() }

// Err is nil while the connection lives.
func (m *Monitor) Err() error { return m.conn.Err() }

// Close ends the monitor's connection; queues end too. The connection goes first, with
// its subscriptions: libvirtd 9.0 frees a connection's callbacks without its lock when it
// is closed, and crashes when it is still taking one of them back by request.
func (m *Monitor) Close() error {
	err := m.conn.Close()
	m.cancel()
	return err
}
