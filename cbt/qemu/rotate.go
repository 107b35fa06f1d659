package qemu

import (
	"context"
	"fmt"
	"time"
)

// ageBeforeOlderDrops is how many stall budgets a bitmap must have lived, the
// tap synced throughout, before it may stand alone. A write that was in flight
// when it was added is in the older one only; QEMU sends at most 16 requests at
// a time and may have queued it behind others, each within its budget.
const ageBeforeOlderDrops = 2

// hold keeps the volume synced until the tap ends, and rotates the bitmaps.
func (a *attachment) hold(ctx context.Context, woken <-chan struct{}) error {
	const look = 2 * time.Second
	poll := time.NewTicker(look)
	defer poll.Stop()
	rotate := time.NewTimer(min(2*ageBeforeOlderDrops*a.disk.opts.StallBudget, a.disk.opts.Rotate))
	defer rotate.Stop()
	for {
		select {
		case <-a.tap.live.Done():
			return context.Cause(a.tap.live)
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-a.machine.Done():
			return a.machine.Err()
		case <-woken:
			if err := a.check(ctx); err != nil {
				return err
			}
		case <-poll.C:
			if err := a.check(ctx); err != nil {
				return err
			}
		case <-a.disk.opts.faults.rotateNow:
			if err := a.rotate(ctx); err != nil {
				return err
			}
		case <-rotate.C:
			if err := a.rotate(ctx); err != nil {
				return err
			}
			rotate.Reset(a.disk.opts.Rotate)
		}
	}
}

// settleBitmaps makes them two after a resync: what told the delta stays, and a
// new one begins beside it. Now Memory may vouch for the older: all that came
// before it is durable. It comes before EventSynced, so that no interval ends in
// more than a delta.
func (a *attachment) settleBitmaps(ctx context.Context) error {
	if err := a.disk.opts.Sink.WaitDurable(ctx); err != nil {
		return a.tap.journalBreak(err)
	}
	if err := a.addBitmap(ctx); err != nil {
		return err
	}
	return a.remember(a.bitmaps)
}

// rotate drops the older bitmaps once the newest covers all that is not durable,
// and begins another.
func (a *attachment) rotate(ctx context.Context) error {
	if a.disk.opts.faults.dropOlderAtOnce {
		return a.rotateAtOnce(ctx)
	}
	if time.Since(a.newest) < ageBeforeOlderDrops*a.disk.opts.StallBudget {
		return nil
	}
	if err := a.disk.opts.Sink.WaitDurable(ctx); err != nil {
		return a.tap.journalBreak(err)
	}
	if a.tap.live.Err() != nil {
		return context.Cause(a.tap.live)
	}
	last := len(a.bitmaps) - 1
	if err := a.keep(ctx, a.bitmaps[last:]); err != nil {
		return err
	}
	if err := a.addBitmap(ctx); err != nil {
		return err
	}
	if err := a.remember(a.bitmaps); err != nil {
		return err
	}
	if f := a.disk.opts.Events.RotationDone; f != nil {
		f(a.disk.conf.Volume.ID, a.bitmaps)
	}
	return nil
}

// rotateAtOnce is the fault that faults.dropOlderAtOnce plants.
func (a *attachment) rotateAtOnce(ctx context.Context) error {
	if err := a.addBitmap(ctx); err != nil {
		return err
	}
	if err := a.keep(ctx, a.bitmaps[len(a.bitmaps)-1:]); err != nil {
		return err
	}
	if f := a.disk.opts.Events.RotationDone; f != nil {
		f(a.disk.conf.Volume.ID, a.bitmaps)
	}
	return nil
}

// keep forgets all bitmaps but some, then removes them: in this order a bitmap
// that is remembered is always there.
func (a *attachment) keep(ctx context.Context, some []string) error {
	gone := a.bitmaps[:len(a.bitmaps)-len(some)]
	if err := a.remember(some); err != nil {
		return err
	}
	for _, name := range gone {
		if err := a.machine.removeBitmap(ctx, a.node.Name, name); err != nil {
			return fmt.Errorf("remove bitmap %s: %w", name, err)
		}
	}
	a.bitmaps = some
	return nil
}

func (a *attachment) remember(names []string) error {
	err := a.disk.opts.Memory.Remember(memoryKey(a.disk.conf.Volume.ID), remembered{
		Node: a.node.Name, Size: a.tap.volume.Size, Granularity: a.disk.opts.Granularity, Bitmaps: names,
	})
	if err != nil {
		return a.tap.journalBreak(fmt.Errorf("remember bitmaps: %w", err))
	}
	return nil
}
