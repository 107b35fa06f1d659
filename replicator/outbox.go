package replicator

import (
	"context"
	"fmt"
	"io"
	"sync"
)

// outbox holds the control messages that wait to be sent. A newer message of the
// same kind and opening replaces one that waits, so that a peer that does not read
// costs a bounded amount of memory: one message per kind and group.
type outbox struct {
	mu      sync.Mutex // guards waiting, order and full
	waiting map[slot]func() message
	order   []slot
	full    bool          // more than maxWaiting waited once
	wake    chan struct{} // holds a token while order is not empty
}

// maxWaiting is room for every kind of every group that a peer may have; a peer
// that makes us owe it more does so on purpose.
const maxWaiting = 4096

type slot struct {
	kind messageType
	open uint64
}

func newOutbox() *outbox {
	return &outbox{waiting: make(map[slot]func() message), wake: make(chan struct{}, 1)}
}

// put queues what build makes; build runs just before the message is written, so
// that times in it are those of leaving.
func (o *outbox) put(kind messageType, open uint64, build func() message) {
	s := slot{kind, open}
	o.mu.Lock()
	if _, ok := o.waiting[s]; !ok {
		o.order = append(o.order, s)
	}
	o.waiting[s] = build
	if len(o.order) > maxWaiting {
		o.waiting, o.order, o.full = make(map[slot]func() message), nil, true
	}
	o.mu.Unlock()
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// send queues a message that is ready.
func (o *outbox) send(m message) {
	o.put(m.body.kind(), m.open, func() message { return m })
}

func (o *outbox) take() (func() message, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.order) == 0 {
		return nil, false
	}
	s := o.order[0]
	o.order = o.order[1:]
	build := o.waiting[s]
	delete(o.waiting, s)
	return build, true
}

func (o *outbox) overflowed() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.full
}

// run writes messages until ctx ends or w fails.
func (o *outbox) run(ctx context.Context, w io.Writer) error {
	for {
		build, ok := o.take()
		if !ok {
			if o.overflowed() {
				return fmt.Errorf("queue control messages: peer does not read: %w", ErrProtocol)
			}
			select {
			case <-o.wake:
				continue
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		m := build()
		b, err := encodeMessage(m)
		if err != nil {
			return err
		}
		if _, err := w.Write(b); err != nil {
			return fmt.Errorf("write control message: %w", err)
		}
	}
}
