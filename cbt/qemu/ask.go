package qemu

import (
	"context"
	"slices"
)

// ask is something that has to be done at a point.
type ask struct {
	do   func(context.Context) error
	done chan error
}

// AtPoint runs do where what it records is part of a point: at once where every write
// is one; in bitmap capture inside the interval of a cycle whose instant is yet to
// come, which begins without waiting for its time. A round that gives no point leaves
// it to the next. It returns do's error, or why ctx ended before do began.
func (t *Tracker) AtPoint(ctx context.Context, do func(context.Context) error) error {
	if t.opts.Every <= 0 {
		return do(ctx)
	}
	a := &ask{do: do, done: make(chan error, 1)}
	t.mu.Lock()
	t.asks = append(t.asks, a)
	t.mu.Unlock()
	t.opts.Cut.hurry()
	select {
	case err := <-a.done:
		return err
	case <-ctx.Done():
	}
	t.mu.Lock()
	waiting := slices.Contains(t.asks, a)
	t.asks = slices.DeleteFunc(t.asks, func(o *ask) bool { return o == a })
	t.mu.Unlock()
	if waiting {
		return context.Cause(ctx)
	}
	return <-a.done // it is being done
}

// asksNow are those that a round whose instant is yet to come may do.
func (t *Tracker) asksNow() []*ask {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.asks)
}

// answer does those of them that are still asked for.
func (t *Tracker) answer(ctx context.Context, asks []*ask) {
	for _, a := range asks {
		t.mu.Lock()
		wanted := slices.Contains(t.asks, a)
		t.asks = slices.DeleteFunc(t.asks, func(o *ask) bool { return o == a })
		t.mu.Unlock()
		if wanted {
			a.done <- a.do(ctx)
		}
	}
}
