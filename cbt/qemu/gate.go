package qemu

import (
	"context"
	"sync"
)

// Gate keeps the volumes of a group one consistent cut. When the tap of a
// synced volume lets go, the guest's write completes without a record, and a
// write to another disk that depends on it may follow. No such write gets a
// place in the order before the gap has one: the gate is shut from before the
// tap lets go until its gap is recorded. Trackers whose sink is the same share
// one Gate. The zero Gate is open.
type Gate struct {
	mu   sync.Mutex
	shut int           // gaps that have no place in the order yet
	open chan struct{} // closed when shut falls to zero; nil while it is zero
	err  error         // the sink refuses the gaps: nobody else need wait to learn it
	news chan struct{} // closed when err is set; nil while the gate is open
}

func (g *Gate) hold() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut == 0 {
		g.open, g.news, g.err = make(chan struct{}), make(chan struct{}), nil
	}
	g.shut++
}

func (g *Gate) release() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut--; g.shut == 0 {
		close(g.open)
		g.open, g.news, g.err = nil, nil, nil
	}
}

// refuse tells all who wait, and come while the gate is shut, that the sink fails.
func (g *Gate) refuse(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open != nil && g.err == nil {
		g.err = err
		close(g.news)
	}
}

// pass waits until the gate is open; it returns the sink's error if that keeps it shut.
func (g *Gate) pass(ctx context.Context) error {
	for {
		g.mu.Lock()
		open, news, err := g.open, g.news, g.err
		g.mu.Unlock()
		if open == nil || err != nil {
			return err
		}
		select {
		case <-open:
		case <-news:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// isOpen reports that pass would not wait.
func (g *Gate) isOpen() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.open == nil
}
