package witness

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/novacron/afterimage/cbt"
)

// Watchdog makes a machine stand still at a time unless it is told a later one before.
// It must not depend on its caller: one that the caller takes with it when it hangs is
// none. Kennel is one, in a process of its own.
type Watchdog interface {
	// Arm returns once the watchdog has the time; the machine is paused then.
	Arm(ctx context.Context, until time.Time) error
	// Disarm ends the watch; the machine is left as it is.
	Disarm(ctx context.Context) error
}

// Guard is a right to run a group's machine unattended: a lease, and a watchdog that
// pauses the machine before the lease can be another's.
//
// A lease is believed for ttl − ttl/4. Of that quarter one half is for clocks: the
// holder's may run slower than the witness's by an eighth of the ttl. The other half,
// PauseWithin, is what the watchdog may take from the time it was armed with until the
// machine stands still.
type Guard struct {
	lease *Lease
	dog   Watchdog
	ttl   time.Duration
	armed time.Time // what dog has; Keep's alone after Take
}

// PauseWithin is how long a watchdog may take under leases of a ttl.
func PauseWithin(ttl time.Duration) time.Duration { return ttl / 8 }

// Take acquires the lease and arms the watchdog: only then may the machine run. Without
// a watchdog there is no right to run unattended (ErrNoWatchdog).
func Take(ctx context.Context, w Witness, group cbt.ID, holder string, ttl time.Duration, dog Watchdog) (*Guard, error) {
	if dog == nil {
		return nil, fmt.Errorf("guard group %s: %w", group.Short(), ErrNoWatchdog)
	}
	l, err := w.Acquire(ctx, group, holder, ttl)
	if err != nil {
		return nil, err
	}
	g := &Guard{lease: l, dog: dog, ttl: ttl}
	if err := g.arm(ctx); err != nil {
		g.giveBack(ctx)
		return nil, fmt.Errorf("guard group %s: %w: %w", group.Short(), ErrNoWatchdog, err)
	}
	select {
	case <-l.Lost(): // arming took longer than the belief
		g.giveBack(ctx)
		return nil, fmt.Errorf("guard group %s: %w", group.Short(), ErrLost)
	default:
		return g, nil
	}
}

// arm gives the watchdog what is believed now.
func (g *Guard) arm(ctx context.Context) error {
	until := g.lease.Until()
	err := g.dog.Arm(ctx, until)
	if err == nil {
		g.armed = until
	}
	return err
}

// fail ends the right, and has the watchdog act now: its time is another clock's, and may
// be later than what the witness said.
func (g *Guard) fail(ctx context.Context) {
	g.lease.lose()
	at := time.Now()
	if g.armed.Before(at) {
		at = g.armed // never later than what it has
	}
	limit, cancel := context.WithTimeout(ctx, g.ttl/8)
	defer cancel()
	_ = g.dog.Arm(limit, at) // one that has paused, or is gone, says so
}

// Keep renews until ctx ends, and then returns nil: the right goes on until the lease
// ends, or Release. Else it is lost for good: the watchdog pauses the machine, or has
// done so, and the caller must not continue it; the error says why. A watchdog that is
// dead, or has paused, or lets the time pass that it was armed with, ends the right too:
// ErrNoWatchdog, and then the caller has to pause the machine.
func (g *Guard) Keep(ctx context.Context) error {
	tick := time.NewTicker(g.ttl / 8)
	defer tick.Stop()
	var last error
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-g.lease.Lost():
			g.fail(ctx)
			return errors.Join(ErrLost, last)
		case <-tick.C:
		}
		try, cancel := context.WithTimeout(ctx, min(g.ttl/4, time.Until(g.lease.Until())))
		err := g.lease.Renew(try)
		cancel()
		if err == nil {
			// A watchdog that does not take the new time keeps the old one, and pauses
			// then: what it has is never later than what is believed.
			armed, stop := context.WithTimeout(ctx, g.ttl/8)
			err = g.arm(armed)
			stop()
			if errors.Is(err, errGone) || errors.Is(err, ErrLost) || err != nil && ctx.Err() == nil && !time.Now().Before(g.armed) {
				g.fail(ctx)
				return errors.Join(ErrLost, ErrNoWatchdog, err)
			}
		}
		if err != nil && (last == nil || !errors.Is(err, context.DeadlineExceeded)) {
			last = err
		}
	}
}

// Lost is closed once the machine must not run any more.
func (g *Guard) Lost() <-chan struct{} { return g.lease.Lost() }

// Token grows with every lease of the group.
func (g *Guard) Token() uint64 { return g.lease.Token() }

// Release gives the right up. The machine must stand still before.
func (g *Guard) Release(ctx context.Context) error {
	return errors.Join(g.dog.Disarm(ctx), g.lease.Release(ctx))
}

// giveBack frees a lease under which nothing ran; one that cannot be given back ends by
// itself.
func (g *Guard) giveBack(ctx context.Context) {
	after, cancel := context.WithTimeout(context.WithoutCancel(ctx), tidyPatience)
	defer cancel()
	_ = g.lease.Release(after)
}
