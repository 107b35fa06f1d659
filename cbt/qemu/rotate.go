package qemu

import (
	"context"
	"fmt"
	"time"

	"github.com/novacron/afterimage/cbt/mode"
)

// ageBeforeOlderDrops is how many stall budgets a bitmap must have lived, the
// tap synced throughout, before it may stand alone. A write that was in flight
// when it was added is in the older one only; QEMU sends at most 16 requests at
// a time and may have queued it behind others, each within its budget.
const ageBeforeOlderDrops = 2

// settleBitmaps makes them two after a resync: what told the delta stays, and a
// new one begins beside it. Now Memory may vouch for the older: all that came
// before it is durable. It comes before EventSynced, so that no interval ends in
// more than a delta.
func (w *mirror) settleBitmaps(ctx context.Context) error {
	if err := w.disk.opts.Sink.WaitDurable(ctx); err != nil {
		return w.tap.journalBreak(err)
	}
	if err := w.addBitmap(ctx); err != nil {
		return err
	}
	return w.remember(w.bitmaps)
}

// rotate drops the older bitmaps once the newest covers all that is not durable,
// and begins another.
func (w *mirror) rotate(ctx context.Context) error {
	if w.disk.opts.faults.dropOlderAtOnce {
		return w.rotateAtOnce(ctx)
	}
	if time.Since(w.newest) < ageBeforeOlderDrops*w.disk.opts.StallBudget {
		return nil
	}
	if err := w.disk.opts.Sink.WaitDurable(ctx); err != nil {
		return w.tap.journalBreak(err)
	}
	if w.tap.live.Err() != nil {
		return context.Cause(w.tap.live)
	}
	last := len(w.bitmaps) - 1
	if err := w.keep(ctx, w.bitmaps[last:]); err != nil {
		return err
	}
	if err := w.addBitmap(ctx); err != nil {
		return err
	}
	if err := w.remember(w.bitmaps); err != nil {
		return err
	}
	if f := w.disk.opts.Events.RotationDone; f != nil {
		f(w.disk.conf.Volume.ID, w.bitmaps)
	}
	return nil
}

// rotateAtOnce is the fault that faults.dropOlderAtOnce plants.
func (w *mirror) rotateAtOnce(ctx context.Context) error {
	if err := w.addBitmap(ctx); err != nil {
		return err
	}
	if err := w.keep(ctx, w.bitmaps[len(w.bitmaps)-1:]); err != nil {
		return err
	}
	if f := w.disk.opts.Events.RotationDone; f != nil {
		f(w.disk.conf.Volume.ID, w.bitmaps)
	}
	return nil
}

// keep forgets all bitmaps but some, then removes them: in this order a bitmap
// that is remembered is always there.
func (w *mirror) keep(ctx context.Context, some []string) error {
	gone := w.bitmaps[:len(w.bitmaps)-len(some)]
	if err := w.remember(some); err != nil {
		return err
	}
	for _, name := range gone {
		if err := w.machine.removeBitmap(ctx, w.node.Name, name); err != nil {
			return fmt.Errorf("remove bitmap %s: %w", name, err)
		}
	}
	w.bitmaps = some
	return nil
}

func (w *mirror) remember(names []string) error {
	err := w.disk.opts.Memory.Remember(memoryKey(w.disk.conf.Volume.ID), mode.Remembered{
		Node: w.node.Name, Size: w.tap.volume.Size, Granularity: w.disk.opts.Granularity, Bitmaps: names,
	})
	if err != nil {
		return w.tap.journalBreak(fmt.Errorf("remember bitmaps: %w", err))
	}
	return nil
}
