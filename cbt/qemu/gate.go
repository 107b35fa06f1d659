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
}

func (g *Gate) hold() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut == 0 {
		g.open = make(chan struct{})
	}
	g.shut++
}

func (g *Gate) release() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut--; g.shut == 0 {
		close(g.open)
		g.open = nil
	}
}

// pass waits until the gate is open.
func (g *Gate) pass(ctx context.Context) error {
	for {
		g.mu.Lock()
		open := g.open
		g.mu.Unlock()
		if open == nil {
			return nil
		}
		select {
		case <-open:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
