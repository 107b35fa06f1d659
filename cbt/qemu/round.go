package qemu

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/mode"
	"github.com/novacron/afterimage/cbt/qmp"
)

// Bounds of what a round copies aside: above shrinkAbove a disk's delta is first
// recorded from the live disk, at most shrinkTimes.
const (
	shrinkAbove = 64 << 20
	shrinkTimes = 3
)

// errNoInstant means that a round ended without a point and harmed nothing: what it
// was about is still in the bitmaps.
var errNoInstant = errors.New("no instant was held")

// rounds makes a point every so often until ctx ends or something breaks.
func (c *collector) rounds(ctx context.Context) error {
	tick := time.NewTicker(c.t.opts.Every)
	defer tick.Stop()
	for {
		err := c.round(ctx)
		if err != nil && !errors.Is(err, errNoInstant) {
			return err
		}
		if err != nil {
			c.t.opts.Log.Warn("a cycle gave no point", "reason", err)
		}
		select {
		case <-tick.C:
		case <-c.t.asked:
		case <-c.changed:
		case k := <-c.ready:
			if k.disk.there.Err() != nil {
				k.tap.letGo(breakage(cbt.CauseDetached, errUnplugged))
				continue
			}
			c.disks = append(c.disks, k)
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-c.m.Done():
			return c.m.Err()
		}
	}
}

// round is one cycle of the disks that there are.
func (c *collector) round(ctx context.Context) error {
	c.t.rounds.Lock()
	defer c.t.rounds.Unlock()
	select {
	case <-c.changed:
		c.replug(ctx)
	default:
	}
	if len(c.disks) == 0 {
		return nil
	}
	err := c.t.opts.Cut.take(ctx, c)
	if err == nil {
		for _, d := range c.disks {
			d.disk.mu.Lock()
			d.disk.joining = false
			d.disk.mu.Unlock()
		}
	}
	return err
}

// draw holds one instant of all disks: a backup job for each, begun in one
// transaction, which copies aside what the guest is about to overwrite of what the
// bitmaps name. The jobs are not finalized: until finish the bitmaps keep their bits,
// and what fails or dies in between has harmed nothing.
//
// In the transaction the named extents are copied to a bitmap of their own, which a
// frozen one cannot be any more. A write of another thread may come between that and
// the instant; then the counts differ, and there is no point this time.
func (c *collector) draw(ctx context.Context) error {
	var actions []args
	for _, d := range c.disks {
		actions = append(actions,
			action("block-dirty-bitmap-add", args{"node": d.node.Name, "name": d.delta, "granularity": d.disk.opts.Granularity, "disabled": true}),
			action("block-dirty-bitmap-merge", args{"node": d.node.Name, "target": d.delta, "bitmaps": []string{d.bitmap()}}))
	}
	for _, d := range c.disks {
		actions = append(actions, action("blockdev-backup", args{"job-id": d.scratch.node, "device": d.node.Name, "target": d.scratch.node,
			"sync": "incremental", "bitmap": d.bitmap(), "auto-finalize": false,
			"on-source-error": "report", "on-target-error": "report"}))
	}
	return c.m.do(ctx, "transaction", args{"actions": actions}, nil)
}

// lighten sees to it that little has to be copied aside, and that there is room for
// it. busy says that an instant has to be held: something is to be copied, or was read
// from the live disk just now, which is of no instant of all machines.
func (c *collector) lighten(ctx context.Context) (busy bool, err error) {
	for i := 0; ; i++ {
		dirty, err := c.dirty(ctx)
		if err != nil {
			return false, err
		}
		var sum int64
		var large []*collected
		for d, n := range dirty {
			if sum += n; n > shrinkAbove {
				large = append(large, d)
			}
		}
		if len(large) == 0 || i == shrinkTimes {
			return sum > 0 || i > 0, roomFor(c.t.opts.Dir, sum)
		}
		for _, d := range large {
			if err := d.shrink(ctx); err != nil {
				return false, err
			}
		}
	}
}

// prepare makes what draw needs.
func (c *collector) prepare(ctx context.Context) error {
	for _, d := range c.disks {
		if err := d.prepareScratch(ctx); err != nil {
			return err
		}
		d.delta = freshName(d.tap.volume.ID, "t")
	}
	return nil
}

func action(kind string, data args) args { return args{"type": kind, "data": data} }

// copied returns once all that the instant is of lies aside, and makes sure that the
// named extents are those of the instant.
func (c *collector) copied(ctx context.Context) error {
	const look, patience = 5 * time.Millisecond, time.Minute
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("the copy was not done within %v", patience))
	defer cancel()
	for {
		done := true
		jobs, err := c.m.jobs(ctx)
		if err != nil {
			return err
		}
		status := make(map[string]jobInfo)
		for _, j := range jobs {
			status[j.ID] = j
		}
		for _, d := range c.disks {
			j, there := status[d.scratch.node]
			if !there || j.Error != "" || (j.IOStatus != "" && j.IOStatus != "ok") {
				return breakage(cbt.CauseTapError, fmt.Errorf("copy of %s aside: %w: %s", d.tap.volume.Name, errJobEnded, c.m.jobError(d.scratch.node)))
			}
			whole, err := c.m.copies.whole(d.scratch.node)
			if err != nil {
				return fmt.Errorf("copy of %s aside: %w", d.tap.volume.Name, err)
			}
			done = done && j.Status == "pending" && whole
		}
		if done {
			return c.sameExtents(ctx)
		}
		if !rest(ctx, c.m.Done(), look) {
			return errors.Join(context.Cause(ctx), c.m.Err())
		}
	}
}

func (c *collector) sameExtents(ctx context.Context) error {
	nodes, err := c.m.nodes(ctx)
	if err != nil {
		return err
	}
	for _, d := range c.disks {
		count := map[string]int64{}
		for _, n := range nodes {
			if n.Name == d.node.Name {
				for _, b := range n.Bitmaps {
					count[b.Name] = b.Count
				}
			}
		}
		frozen, ok := count[d.bitmap()]
		named, also := count[d.delta]
		if !ok || !also || frozen != named {
			return fmt.Errorf("%w: %d bytes of %s were named, %d were changed at the instant", errNoInstant, named, d.tap.volume.Name, frozen)
		}
	}
	return nil
}

// bring records what the instant shows, durable. idle says that this is what is
// known already: no bitmap names anything.
func (c *collector) bring(ctx context.Context, idle bool) error {
	g, reading := errgroup.WithContext(ctx)
	for _, d := range c.disks {
		if err := d.disk.advance(mode.Event{Kind: mode.Drawn}); err != nil {
			return err
		}
		if idle {
			d.missedNothing()
		} else {
			g.Go(func() error { return d.resyncHeld(reading, c.instant) })
		}
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, d := range c.disks {
		if err := d.durable(ctx); err != nil {
			return err
		}
		if err := d.disk.advance(mode.Event{Kind: mode.Brought}); err != nil {
			return err
		}
	}
	return nil
}

// finish gives up the bits of what is durable, and takes away what the round made.
func (c *collector) finish(ctx context.Context) error {
	if c.disks[0].scratch == nil {
		return nil
	}
	for _, d := range c.disks {
		if err := c.m.do(ctx, "job-finalize", args{"id": d.scratch.node}, nil); err != nil {
			return fmt.Errorf("finalize: %w", err)
		}
		if err := c.m.jobGone(ctx, d.scratch.node); err != nil {
			return err
		}
	}
	return c.discard(ctx)
}

// drop gives up a round that came to nothing.
func (c *collector) drop(ctx context.Context) error {
	err := c.discard(ctx)
	for _, d := range c.disks {
		err = errors.Join(err, d.disk.advance(mode.Event{Kind: mode.Dropped}))
	}
	return err
}

// discard ends what is left of a round. What was not finalized goes back into the
// bitmaps.
func (c *collector) discard(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commandPatience)
	defer cancel()
	for _, d := range c.disks {
		if d.scratch == nil {
			continue
		}
		if err := c.m.endJob(ctx, d.scratch.node); err != nil {
			return fmt.Errorf("end a copy: %w", err)
		}
	}
	for _, d := range c.disks {
		if d.scratch == nil {
			continue
		}
		if err := c.m.deleteNode(ctx, d.scratch.node); err != nil && !qmp.IsRefused(err) {
			return fmt.Errorf("delete scratch node: %w", err)
		}
		c.m.copies.end(d.scratch.node)
		d.scratch.remove()
		d.scratch = nil
		if d.delta != "" {
			if err := c.m.removeBitmap(ctx, d.node.Name, d.delta); err != nil && !qmp.IsRefused(err) {
				return fmt.Errorf("remove bitmap %s: %w", d.delta, err)
			}
			d.delta = ""
		}
	}
	return nil
}

// mark records that every disk is synced, which makes the last of these records the
// cycle's point, and at once the gap behind it; between them comes what was asked for
// before the instant. All have at, the instant's time.
func mark(ctx context.Context, disks []*collected, at time.Time, answer func()) error {
	var pending []cbt.Pending
	record := func(d *collected, ev cbt.Event) error {
		ev.Volume, ev.At = d.tap.volume.ID, at
		p, err := d.tap.sink.Record(ctx, ev)
		if err == nil {
			pending = append(pending, p)
		}
		return err
	}
	if err := disks[0].tap.gate.pass(ctx); err != nil {
		return err
	}
	for _, d := range disks {
		if err := d.disk.advance(mode.Event{Kind: mode.Mark}); err != nil {
			return err
		}
		d.disk.level()
		if err := record(d, cbt.Event{Kind: cbt.EventSynced}); err != nil {
			return d.tap.journalBreak(err)
		}
	}
	answer()
	for _, d := range disks {
		if err := record(d, cbt.Event{Kind: cbt.EventGap, Cause: cbt.CauseCycle}); err != nil {
			return d.tap.journalBreak(err)
		}
		if err := d.disk.advance(mode.Event{Kind: mode.Closed}); err != nil {
			return err
		}
		if err := d.disk.advance(mode.Event{Kind: mode.GapTold}); err != nil {
			return err
		}
	}
	if err := wait(ctx, pending); err != nil {
		return disks[0].tap.journalBreak(err)
	}
	return nil
}
