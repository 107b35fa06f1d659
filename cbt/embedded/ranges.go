package embedded

import (
	"context"
	"slices"
	"sync"

	"github.com/novacron/afterimage/cbt"
)

// ranges locks extents against others that overlap. Waiters get their turn in the
// order they came, as far as they overlap. The zero value is ready.
type ranges struct {
	mu    sync.Mutex // guards queue
	queue []*rangeLock
}

type rangeLock struct {
	cbt.Extent
	done chan struct{} // closed at unlock
}

// lock returns the way to unlock e, or ctx's error.
func (r *ranges) lock(ctx context.Context, e cbt.Extent) (func(), error) {
	me := &rangeLock{e, make(chan struct{})}
	r.mu.Lock()
	var before []*rangeLock
	for _, l := range r.queue {
		if l.Overlaps(e) {
			before = append(before, l)
		}
	}
	r.queue = append(r.queue, me)
	r.mu.Unlock()
	for _, l := range before {
		select {
		case <-l.done:
		case <-ctx.Done():
			r.unlock(me)
			return nil, ctx.Err()
		}
	}
	return func() { r.unlock(me) }, nil
}

func (r *ranges) unlock(l *rangeLock) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.queue = slices.DeleteFunc(r.queue, func(x *rangeLock) bool { return x == l })
	close(l.done)
}
