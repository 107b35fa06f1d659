package qemu

import (
	"context"
	"sync"
	"time"

	"github.com/novacron/afterimage/cbt"
)

// gaps records the gaps of one volume in their order, as soon as the sink takes
// them, and opens the gate behind each that shut it.
type gaps struct {
	sink  cbt.Sink
	gate  *Gate
	wrote func(due gapDue)

	mu    sync.Mutex // guards what follows
	queue []gapDue
	wake  chan struct{}
	empty chan struct{} // signalled when nothing is due any more
}

type gapDue struct {
	event cbt.Event
	tap   *tap // nil: there was none
	gated bool // the gate is shut for it
	since time.Time
}

func newGaps(sink cbt.Sink, gate *Gate, wrote func(gapDue)) *gaps {
	return &gaps{sink: sink, gate: gate, wrote: wrote, wake: make(chan struct{}, 1), empty: make(chan struct{}, 1)}
}

func (g *gaps) add(due gapDue) {
	g.mu.Lock()
	defer g.mu.Unlock()
	due.since = time.Now()
	g.queue = append(g.queue, due)
	signal(g.wake)
}

// settled returns once every gap has its place.
func (g *gaps) settled(ctx context.Context) error {
	for {
		g.mu.Lock()
		none := len(g.queue) == 0
		g.mu.Unlock()
		if none {
			return nil
		}
		select {
		case <-g.empty:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// run records until ctx ends; what is due then is dropped, and the next opening
// of the journal closes the interval.
func (g *gaps) run(ctx context.Context) {
	const firstPause, longestPause = 10 * time.Millisecond, time.Second
	pause := firstPause
	for {
		due, ok := g.head()
		if !ok {
			select {
			case <-g.wake:
				continue
			case <-ctx.Done():
				return
			}
		}
		due.tap.marked()
		if _, err := g.sink.Record(ctx, due.event); err != nil && ctx.Err() == nil {
			g.gate.refuse(err)
			rest(ctx, nil, pause)
			pause = min(2*pause, longestPause)
			continue
		}
		pause = firstPause
		g.pop(due)
	}
}

func (g *gaps) head() (gapDue, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.queue) == 0 {
		return gapDue{}, false
	}
	return g.queue[0], true
}

func (g *gaps) pop(due gapDue) {
	g.wrote(due) // before anybody is told that all are settled
	g.mu.Lock()
	g.queue = g.queue[1:]
	none := len(g.queue) == 0
	g.mu.Unlock()
	if due.gated {
		g.gate.release()
	}
	if none {
		signal(g.empty)
	}
}
