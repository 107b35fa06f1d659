package libvirt

import (
	"context"
	"fmt"
	"maps"
	"sync"

	rpc "github.com/digitalocean/go-libvirt"
)

// Happening is something that was done to a domain, by whomever.
type Happening struct {
	What   string // one of the words below, or libvirt's number of what it has no word for
	Detail string // in which way; a disk's alias, or the path that a block job is of
}

// Words for Happening.What.
const (
	Defined        = "defined"
	Undefined      = "undefined"
	Started        = "started"
	Suspended      = "suspended"
	Resumed        = "resumed"
	Stopped        = "stopped"
	DeviceAdded    = "device added"
	DeviceRemoved  = "device removed"
	BlockJobEnded  = "block job ended"
	somethingMoved = "missed" // there was more than could be kept
)

// lifecycles are the words for lifecycle events and their details (libvirt,
// include/libvirt/libvirt-domain.h).
var lifecycles = map[rpc.DomainEventType]struct {
	what    string
	details []string
}{
	rpc.DomainEventDefined:     {Defined, []string{"added", "updated", "renamed", "from a snapshot"}},
	rpc.DomainEventUndefined:   {Undefined, []string{"removed", "renamed"}},
	rpc.DomainEventStarted:     {Started, []string{"booted", "migrated here", "restored", "from a snapshot", "woken"}},
	rpc.DomainEventSuspended:   {Suspended, []string{"paused", "migrated", "I/O error", "watchdog", "restored", "from a snapshot", "API error", "post-copy", "post-copy failed"}},
	rpc.DomainEventResumed:     {Resumed, []string{"unpaused", "migrated", "from a snapshot", "post-copy", "post-copy failed"}},
	rpc.DomainEventStopped:     {Stopped, []string{"shut down", "destroyed", "crashed", "migrated away", "saved", "failed", "from a snapshot"}},
	rpc.DomainEventShutdown:    {"shutting down", []string{"finished", "by the guest", "by the host"}},
	rpc.DomainEventPmsuspended: {"asleep", []string{"memory", "disk"}},
	rpc.DomainEventCrashed:     {"crashed", []string{"panicked", "crash loaded"}},
}

// watchable are the events that a Watch listens to.
var watchable = []rpc.DomainEventID{
	rpc.DomainEventIDLifecycle, rpc.DomainEventIDDeviceAdded, rpc.DomainEventIDDeviceRemoved, rpc.DomainEventIDBlockJob,
}

// Watch hears what is done to a domain, on a connection of its own. The domain need
// not run, nor be there yet.
type Watch struct {
	conn   *Conn
	cancel context.CancelFunc

	mu   sync.Mutex // guards what follows
	name string
	uuid rpc.UUID // zero until the domain was seen
	news []Happening
	// known are the sizes of disks since something last happened.
	known sizes
	wake  chan struct{}
}

// newsKept is how many happenings wait for Next; of more it is only told that there
// were more.
const newsKept = 64

// DialWatch connects and listens from now on for the domain called name.
func DialWatch(ctx context.Context, uri, name string) (*Watch, error) {
	c, err := Connect(ctx, uri)
	if err != nil {
		return nil, err
	}
	w := &Watch{conn: c, name: name, wake: make(chan struct{}, 1)}
	var lasting context.Context
	lasting, w.cancel = context.WithCancel(context.Background())
	for _, id := range watchable {
		var events <-chan any
		err := c.Call(ctx, "subscribe to events of "+name, func(l *rpc.Libvirt) (err error) {
			events, err = l.SubscribeEvents(lasting, id, nil)
			return err
		})
		if err != nil {
			w.Close()
			return nil, err
		}
		go w.hear(events)
	}
	return w, nil
}

// hear takes events until the subscription ends; it never keeps the RPC client waiting.
func (w *Watch) hear(events <-chan any) {
	for ev := range events {
		dom, h := happening(ev)
		w.mu.Lock()
		if h.What != "" && (dom.Name == w.name || dom.UUID == w.uuid) {
			if dom.Name == w.name {
				w.uuid = dom.UUID
			}
			if len(w.news) < newsKept {
				w.news = append(w.news, h)
			} else {
				w.news[newsKept-1] = Happening{What: somethingMoved}
			}
			select {
			case w.wake <- struct{}{}:
			default:
			}
		}
		w.mu.Unlock()
	}
}

func happening(ev any) (rpc.Domain, Happening) {
	switch e := ev.(type) {
	case *rpc.DomainEventCallbackLifecycleMsg:
		h := Happening{What: fmt.Sprintf("lifecycle event %d", e.Msg.Event)}
		if known, ok := lifecycles[rpc.DomainEventType(e.Msg.Event)]; ok {
			h.What = known.what
			if n := int(e.Msg.Detail); n >= 0 && n < len(known.details) {
				h.Detail = known.details[n]
			}
		}
		return e.Msg.Dom, h
	case *rpc.DomainEventCallbackDeviceAddedMsg:
		return e.Dom, Happening{DeviceAdded, e.DevAlias}
	case *rpc.DomainEventCallbackDeviceRemovedMsg:
		return e.Msg.Dom, Happening{DeviceRemoved, e.Msg.DevAlias}
	case *rpc.DomainEventCallbackBlockJobMsg:
		return e.Msg.Dom, Happening{BlockJobEnded, e.Msg.Path}
	}
	return rpc.Domain{}, Happening{}
}

// Woken is signalled when there is news, and closed never.
func (w *Watch) Woken() <-chan struct{} { return w.wake }

// News is what has happened since it was asked last.
func (w *Watch) News() []Happening {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.news
	w.news = nil
	if len(out) > 0 {
		w.known = nil
	}
	return out
}

// Look inspects the domain as it is now, and follows it from then on when it is renamed.
func (w *Watch) Look(ctx context.Context, name string) (*Domain, Inspection, error) {
	w.mu.Lock()
	known := make(sizes)
	maps.Copy(known, w.known)
	w.mu.Unlock()
	d, in, err := w.conn.inspect(ctx, name, known)
	if err == nil {
		w.mu.Lock()
		w.name, w.uuid = d.Name, d.dom.UUID
		w.known = known
		w.mu.Unlock()
	}
	return d, in, err
}

// Done is closed when the connection has ended.
func (w *Watch) Done() <-chan struct{} { return w.conn.Done() }

// Close ends the connection.
func (w *Watch) Close() error {
	err := w.conn.Close()
	w.cancel()
	return err
}
