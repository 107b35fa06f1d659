package site

import (
	"context"
	"testing"

	"github.com/novacron/afterimage/site/fault"
)

// A failover that is asked for while a life looks for what an earlier one left waits: its
// promotion would be taken for one of those, and be finished by two.
func TestFailoverWaitsForWhatAnEarlierLifeLeft(t *testing.T) {
	ctx, end := context.WithCancel(context.Background())
	l := &life{group: &group{}, ctx: ctx, settled: make(chan struct{})}
	end()
	if err := l.claimFailover(); !fault.Is(err, fault.GroupFailed) {
		t.Errorf("of a life that ends before it has looked: %v", err)
	}
	ctx, end = context.WithCancel(context.Background())
	defer end()
	l = &life{group: &group{}, ctx: ctx, settled: make(chan struct{})}
	close(l.settled)
	if err := l.claimFailover(); err != nil || !l.failover {
		t.Errorf("of one that has: %v", err)
	}
}
