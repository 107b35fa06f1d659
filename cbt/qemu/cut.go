package qemu

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/novacron/afterimage/cbt"
)

// Cut lets the trackers of several machines of one group take their instants
// together: a point is of all of them or of none. Trackers that share one share
// their sink. The zero Cut is of one machine.
type Cut struct {
	Machines int           // how many trackers share it; 0 is 1
	Limit    time.Duration // longest pause of several machines; default 50 ms

	mu    sync.Mutex // guards what follows
	here  []*arrival
	stats cbt.Cycles
}

// Stats is the count so far.
func (k *Cut) Stats() cbt.Cycles {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.stats
}

// arrival is one machine that is ready for a round; done gives its outcome.
type arrival struct {
	c    *collector
	done chan error
}

// take waits for the other machines, and takes part in one round with them. The last
// to arrive leads. Whoever leaves before that is not missed; a round that has begun
// ends for all in the same way.
func (k *Cut) take(ctx context.Context, c *collector) error {
	me := &arrival{c: c, done: make(chan error, 1)}
	k.mu.Lock()
	k.here = append(k.here, me)
	var all []*arrival
	if len(k.here) >= max(k.Machines, 1) {
		all, k.here = k.here, nil
	}
	k.mu.Unlock()
	if all != nil {
		k.lead(ctx, all)
		return <-me.done
	}
	select {
	case err := <-me.done:
		return err
	case <-ctx.Done():
	case <-c.m.Done():
	}
	if k.withdraw(me) {
		return errors.Join(context.Cause(ctx), c.m.Err())
	}
	return <-me.done // the round is under way, and uses what is ours
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

// lead makes the round. A machine's own failure is its break; for the others there
// was no instant.
func (k *Cut) lead(ctx context.Context, all []*arrival) {
	failed := make([]error, len(all))
	pause, err := k.round(ctx, all, failed)
	k.mu.Lock()
	if err == nil {
		k.stats.Points++
		k.stats.Longest = max(k.stats.Longest, pause)
	} else {
		k.stats.Refused++
	}
	k.mu.Unlock()
	for i, a := range all {
		mine := failed[i]
		if err != nil {
			// A machine that has failed is swept as a whole.
			if mine != nil {
				a.done <- mine
				continue
			}
			if undo := a.c.drop(ctx); undo != nil && mine == nil {
				mine = undo
			}
			switch {
			case mine != nil:
			case errors.Is(err, errNoInstant):
				mine = err
			default:
				mine = fmt.Errorf("%w: %w", errNoInstant, err)
			}
		}
		a.done <- mine
	}
}

// round is one cycle of all machines, from their bitmaps to a point.
func (k *Cut) round(ctx context.Context, all []*arrival, failed []error) (pause time.Duration, err error) {
	k.date(all)
	idle := true
	asked := make([][]*ask, len(all))
	for i, a := range all {
		asked[i] = a.c.t.asksNow()
	}
	for i, a := range all {
		var busy bool
		if busy, failed[i] = a.c.lighten(ctx); failed[i] != nil {
			return 0, failed[i]
		}
		idle = idle && !busy
	}
	// Nothing has changed on any disk since the last point: it is the same again.
	if !idle || len(all) > 1 {
		if pause, err = k.drawAll(ctx, all, failed); err != nil {
			return pause, err
		}
	}
	if f := all[0].c.t.opts.faults.afterDraw; f != nil {
		f()
	}
	same := idle && len(all) == 1
	if err := each(all, failed, func(c *collector) error { return c.bring(ctx, same) }); err != nil {
		return pause, err
	}
	var disks []*collected
	for _, a := range all {
		disks = append(disks, a.c.disks...)
	}
	if err := mark(ctx, disks, all[0].c.instant, func() {
		for i, a := range all {
			a.c.t.answer(ctx, asked[i])
		}
	}); err != nil {
		for i := range failed {
			failed[i] = err // the interval may be open: every disk has to tell its gap
		}
		return pause, err
	}
	// The point is there; what fails now only costs the same delta again.
	_ = each(all, failed, func(c *collector) error { return c.finish(ctx) })
	return pause, nil
}

// date gives the round of all machines the time of now.
func (k *Cut) date(all []*arrival) time.Time {
	now := time.Now()
	for _, a := range all {
		a.c.instant = now
	}
	return now
}

// each runs f for all machines at once; their failures go into failed.
func each(all []*arrival, failed []error, f func(*collector) error) error {
	var g errgroup.Group
	for i, a := range all {
		g.Go(func() error {
			err := f(a.c)
			if err != nil && !errors.Is(err, errNoInstant) {
				failed[i] = err
			}
			return err
		})
	}
	return g.Wait()
}

// drawAll holds one instant of all machines. Several are stopped for it: a write to
// one that depends on a write to another cannot be issued in between.
func (k *Cut) drawAll(ctx context.Context, all []*arrival, failed []error) (time.Duration, error) {
	for i, a := range all {
		failed[i] = a.c.prepare(ctx)
		if failed[i] == nil && len(all) > 1 {
			failed[i] = a.c.foresee(ctx)
		}
		if failed[i] != nil {
			return 0, failed[i]
		}
	}
	limit := k.Limit
	if limit <= 0 {
		limit = 50 * time.Millisecond
	}
	began := k.date(all)
	err := k.paused(ctx, all, failed, func() error {
		return each(all, failed, func(c *collector) error { return c.draw(ctx) })
	})
	pause := time.Since(began)
	if len(all) > 1 {
		err = errors.Join(err, each(all, failed, func(c *collector) error { return c.forgetStill() }))
	}
	if err == nil && len(all) > 1 && pause > limit {
		err = fmt.Errorf("%w: the machines stood still for %v, the limit is %v", errNoInstant, pause.Round(time.Millisecond), limit)
	}
	if err != nil {
		return pause, err
	}
	return pause, each(all, failed, func(c *collector) error { return c.copied(ctx) })
}

// paused runs f while several machines stand still; one needs not.
func (k *Cut) paused(ctx context.Context, all []*arrival, failed []error, f func() error) (err error) {
	if len(all) == 1 {
		return f()
	}
	for i, a := range all {
		if failed[i] = a.c.hush(ctx); failed[i] != nil {
			err = failed[i]
			break
		}
	}
	if err == nil {
		err = f()
	}
	for i, a := range all {
		if wake := a.c.wake(ctx); wake != nil && failed[i] == nil {
			failed[i] = wake
			err = errors.Join(err, wake)
		}
	}
	return err
}
