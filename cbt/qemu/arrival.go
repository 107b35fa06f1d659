package qemu

import (
	"context"
	"slices"
	"time"
)

// arrival is one machine that is ready for a round; done gives its outcome.
type arrival struct {
	c    *collector
	done chan error
}

// take waits for the other machines, and takes part in one round with them. The last
// to arrive leads, or the first to see that those who are missing have no disks. Whoever
// leaves before that is not missed; a round that has begun ends for all in the same way.
func (k *Cut) take(ctx context.Context, c *collector) error {
	me := &arrival{c: c, done: make(chan error, 1)}
	k.mu.Lock()
	k.here = append(k.here, me)
	k.mu.Unlock()
	if all := k.gather(me); all != nil {
		k.lead(ctx, all)
		return <-me.done
	}
	const look = 20 * time.Millisecond
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		var left error
		select {
		case err := <-me.done:
			return err
		case <-ctx.Done():
			left = context.Cause(ctx)
		case <-c.m.Done():
			left = c.m.Err()
		case <-tick.C:
			if c.t.unplugging.Load() == 0 {
				if all := k.gather(me); all != nil { // others have no disks any more
					k.lead(ctx, all)
				}
				continue // for as long as it takes
			}
			left = errWaited
		}
		if k.withdraw(me) {
			return left
		}
		return <-me.done // the round is under way, and uses what is ours
	}
}

// gather takes all that are there for a round, me among them; nil: some are missing.
func (k *Cut) gather(me *arrival) []*arrival {
	need := k.need()
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.here) < need || !slices.Contains(k.here, me) {
		return nil
	}
	all := k.here
	k.here = nil
	return all
}

// need is how many machines a round is of. One without disks has no part in any point,
// and never comes.
func (k *Cut) need() int {
	need := max(k.Machines, 1)
	for _, t := range k.list() {
		if len(t.plugged()) == 0 {
			need--
		}
	}
	return need
}

func (k *Cut) withdraw(me *arrival) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i, a := range k.here {
		if a == me {
			k.here = append(k.here[:i], k.here[i+1:]...)
			return true
		}
	}
	return false
}
