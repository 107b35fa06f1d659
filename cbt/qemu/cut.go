package qemu

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/novacron/afterimage/cbt"
)

// Cut lets the trackers of several machines of one group take their instants
// together: a point is of all of them or of none. Trackers that share one share
// their sink. The zero Cut is of one machine.
type Cut struct {
	Machines int           // how many trackers share it; 0 is 1; a round is of those that have disks
	Limit    time.Duration // longest pause of several machines; default 50 ms

	mu      sync.Mutex // guards what follows
	here    []*arrival
	stats   cbt.Cycles
	again   time.Duration // after the newest round, if it gave no point
	members []*Tracker
}

// enlist notes that t shares k.
func (k *Cut) enlist(t *Tracker) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.members = append(k.members, t)
}

// list is the trackers that share k. They are asked without its lock.
func (k *Cut) list() []*Tracker {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.members)
}

// hurry lets the next round of all machines begin without waiting for its time.
func (k *Cut) hurry() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, t := range k.members {
		signal(t.asked)
	}
}

// Stats is the count so far.
func (k *Cut) Stats() cbt.Cycles {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.stats
}

var (
	// errTooLong is why a pause ends that gives no point.
	errTooLong = errors.New("the limit has passed")
	// errWaited is why a machine leaves that was waiting for the others.
	errWaited = fmt.Errorf("%w: a disk leaves while not all machines were there", errNoInstant)
)

// How long after a round without a point the next one begins for those who wait for one:
// twice as long each time, for it may have stopped the guests.
const (
	askedAgain  = 200 * time.Millisecond
	askedLatest = 5 * time.Second
)

// lead makes the round. A machine's own failure is its break; for the others there
// was no instant.
func (k *Cut) lead(ctx context.Context, all []*arrival) {
	failed := make([]error, len(all))
	pause, err := k.round(ctx, all, failed)
	again := k.count(pause, err)
	if err != nil && slices.ContainsFunc(k.list(), func(t *Tracker) bool { return len(t.asksNow()) > 0 }) {
		time.AfterFunc(again, k.hurry) // its time may be hours away
	}
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

// count notes what became of a round, and says when another one may follow that is asked for.
func (k *Cut) count(pause time.Duration, err error) (again time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err != nil {
		k.stats.Refused++
		k.again = min(max(2*k.again, askedAgain), askedLatest)
		return k.again
	}
	k.again = 0
	k.stats.Points++
	k.stats.Longest = max(k.stats.Longest, pause)
	return 0
}

// round is one cycle of all machines, from their bitmaps to a point.
func (k *Cut) round(ctx context.Context, all []*arrival, failed []error) (pause time.Duration, err error) {
	k.date(all)
	idle := true
	members := k.list() // one that has no disks may be asked too
	asked := make([][]*ask, len(members))
	for i, t := range members {
		asked[i] = t.asksNow()
	}
	for i, a := range all {
		var busy bool
		if busy, failed[i] = a.c.lighten(ctx); failed[i] != nil {
			return 0, failed[i]
		}
		idle = idle && !busy
	}
	// Nothing has changed on any disk since the last point: it is the same again. Each
	// was asked after the round's time, so it was the same then, on all machines.
	if !idle {
		if pause, err = k.drawAll(ctx, all, failed); err != nil {
			return pause, err
		}
	}
	if f := all[0].c.t.opts.faults.afterDraw; f != nil {
		f()
	}
	if err := each(all, failed, func(c *collector) error { return c.bring(ctx, idle) }); err != nil {
		return pause, err
	}
	var disks []*collected
	for _, a := range all {
		disks = append(disks, a.c.disks...)
	}
	if err := mark(ctx, disks, all[0].c.instant, func() {
		for i, t := range members {
			t.answer(ctx, asked[i])
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
			// None will be stopped: one that somebody stops from now on is not ours to wake.
			return 0, errors.Join(failed[i], each(all, failed, (*collector).forgetStill))
		}
	}
	limit := k.Limit
	if limit <= 0 {
		limit = 50 * time.Millisecond
	}
	began := k.date(all)
	err := k.paused(ctx, limit, all, failed)
	pause := time.Since(began)
	if len(all) > 1 {
		err = errors.Join(err, each(all, failed, (*collector).forgetStill))
	}
	if len(all) > 1 && pause > limit && (err == nil || errors.Is(err, errNoInstant)) {
		err = fmt.Errorf("%w: the machines stood still for %v, the limit is %v", errNoInstant, pause.Round(time.Millisecond), limit)
	}
	if err != nil {
		return pause, err
	}
	return pause, each(all, failed, func(c *collector) error { return c.copied(ctx) })
}

// paused draws while several machines stand still; one needs not. When the limit has
// passed they go on, whatever was reached: a command that was given takes effect before
// the one that lets its machine go on.
func (k *Cut) paused(ctx context.Context, limit time.Duration, all []*arrival, failed []error) error {
	draw := func(ctx context.Context) error {
		return each(all, failed, func(c *collector) error { return c.draw(ctx) })
	}
	if len(all) == 1 {
		return draw(ctx)
	}
	short, cancel := context.WithTimeoutCause(ctx, limit, errTooLong)
	defer cancel()
	err := each(all, failed, func(c *collector) error { return c.hush(short) })
	if err == nil {
		err = draw(short)
	}
	if errors.Is(context.Cause(short), errTooLong) && err != nil {
		clear(failed)
		err = fmt.Errorf("%w: %w", errNoInstant, err)
	}
	return errors.Join(err, each(all, failed, func(c *collector) error { return c.wake(ctx) }))
}
