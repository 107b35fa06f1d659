package libvirt

import (
	"context"
	"sync"

	"github.com/novacron/afterimage/cbt/qmp"
)

// queue is a bounded queue of events for one consumer.
type queue struct {
	leave  func()
	events chan qmp.Event
	over   chan struct{} // closed at the end

	mu   sync.Mutex // guards what follows
	lost bool       // events after those in the channel were dropped, untold
	err  error      // set before over is closed
}

func newQueue(limit int) *queue {
	return &queue{events: make(chan qmp.Event, max(limit, 1)), over: make(chan struct{})}
}

// Next implements qemu.EventQueue: qmp.ErrOverflow stands, once, in the place of
// events that were lost; the connection's error follows its last event.
func (q *queue) Next(ctx context.Context) (qmp.Event, error) {
	select {
	case e := <-q.events:
		return e, nil
	default:
	}
	if q.tellLoss() {
		return qmp.Event{}, qmp.ErrOverflow
	}
	select {
	case e := <-q.events:
		return e, nil
	case <-q.over:
		// What was put before the end may have arrived since.
		select {
		case e := <-q.events:
			return e, nil
		default:
		}
		if q.tellLoss() {
			return qmp.Event{}, qmp.ErrOverflow
		}
		q.mu.Lock()
		defer q.mu.Unlock()
		return qmp.Event{}, q.err
	case <-ctx.Done():
		return qmp.Event{}, context.Cause(ctx)
	}
}

// tellLoss reports, once, that events were lost; only then are further ones
// queued. It holds nothing back: events are lost only while the channel is full.
func (q *queue) tellLoss() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.lost || len(q.events) > 0 {
		return false
	}
	q.lost = false
	return true
}

// Close implements qemu.EventQueue.
func (q *queue) Close() { q.leave() }

func (q *queue) put(e qmp.Event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.lost {
		return
	}
	select {
	case q.events <- e:
	default:
		q.lost = true
	}
}

func (q *queue) end(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err == nil {
		q.err = err
		close(q.over)
	}
}
