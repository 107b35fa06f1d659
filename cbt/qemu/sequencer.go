package qemu

import (
	"context"
	"sync"

	"github.com/novacron/afterimage/cbt"
)

// sequencer orders the changes of one volume that touch the same sectors.
// A change whose ends lie inside a sector is completed from the sink's head, so
// it waits until what came before it there is safe, and what comes after it
// there waits until it has its place. Others pass at once.
type sequencer struct {
	mu    sync.Mutex // guards spans
	spans map[*span]struct{}
}

// span is one change on its way, in whole sectors.
type span struct {
	cbt.Extent
	placed chan struct{} // closed once it has its place in the order
	safe   chan struct{} // closed once it is safe, or has failed
}

// enter returns once a change to e (whole sectors) may take its place. alone
// says that the head must show all that came before. The change ends with leave.
func (q *sequencer) enter(ctx context.Context, e cbt.Extent, alone bool) (*span, error) {
	s := &span{Extent: e, placed: make(chan struct{}), safe: make(chan struct{})}
	var waits []<-chan struct{}
	q.mu.Lock()
	for o := range q.spans {
		if !o.Overlaps(e) {
			continue
		}
		if alone {
			waits = append(waits, o.safe)
		} else {
			waits = append(waits, o.placed)
		}
	}
	if q.spans == nil {
		q.spans = make(map[*span]struct{})
	}
	q.spans[s] = struct{}{}
	q.mu.Unlock()
	for _, w := range waits {
		select {
		case <-w:
		case <-ctx.Done():
			q.leave(s)
			return nil, context.Cause(ctx)
		}
	}
	return s, nil
}

// enterNow is enter where nothing is in the way; else it returns nil.
func (q *sequencer) enterNow(e cbt.Extent) *span {
	q.mu.Lock()
	defer q.mu.Unlock()
	for o := range q.spans {
		if o.Overlaps(e) {
			return nil
		}
	}
	s := &span{Extent: e, placed: make(chan struct{}), safe: make(chan struct{})}
	if q.spans == nil {
		q.spans = make(map[*span]struct{})
	}
	q.spans[s] = struct{}{}
	return s
}

// place tells that s has its place; at most once.
func (q *sequencer) place(s *span) { close(s.placed) }

// leave tells that s is safe or has failed.
func (q *sequencer) leave(s *span) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.spans, s)
	select {
	case <-s.placed:
	default:
		close(s.placed)
	}
	close(s.safe)
}
