package qemu

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/mode"
)

// collector follows all disks of a machine by bitmap cycles: nothing lies in the
// guest's way, one bitmap a disk collects, and every so often a round (round.go)
// turns it into a point. Its steps are those of package mode.
type collector struct {
	t     *Tracker
	m     *machine
	disks []*collected

	ran    bool                        // the guest did, before a pause
	resume func(context.Context) error // undoes hush; nil: the guest is not stopped by us
}

// collected is one disk under a collector. Its mirror and tap are never put into the
// machine: they carry what reading, comparing and the bitmaps need.
type collected struct {
	*mirror
	delta   string // round: a bitmap of what the held instant covers
	scratch *scratch
}

func (c *collected) bitmap() string { return c.bitmaps[0] }

// collect runs collectors, one after the other, until ctx or the connection ends.
func (t *Tracker) collect(ctx context.Context, m *machine) {
	const firstPause = 50 * time.Millisecond
	pause := firstPause
	for {
		began := time.Now()
		err := t.collectOnce(ctx, m)
		if ctx.Err() != nil || m.Err() != nil {
			return
		}
		t.opts.Log.Info("cycles ended", "reason", err)
		if time.Since(began) > t.opts.Retry {
			pause = firstPause
		}
		if !rest(ctx, m.Done(), pause) {
			return
		}
		pause = min(2*pause, t.opts.Retry)
	}
}

// collectOnce sweeps, judges, reads what has to be read, and makes rounds until
// something breaks; the error says what. Then every disk has been told of it.
func (t *Tracker) collectOnce(ctx context.Context, m *machine) (err error) {
	c := &collector{t: t, m: m}
	defer func() {
		if m.Err() != nil {
			err = breakage(cbt.CauseTapEnded, fmt.Errorf("%w: %w", ErrMonitor, m.Err()))
		}
		c.end(ctx, err)
	}()
	if err := c.wakeLeft(ctx); err != nil {
		return err
	}
	for _, d := range t.disks {
		if err := errors.Join(d.gaps.settled(ctx), t.opts.Sink.WaitDurable(ctx)); err != nil {
			return breakage(cbt.CauseJournal, err)
		}
		if err := d.advance(mode.Event{Kind: mode.Attach}); err != nil {
			return err
		}
		n, err := m.found(ctx, d)
		if err != nil {
			return err
		}
		d.mu.Lock()
		v := d.volume
		d.mu.Unlock()
		tap := t.newTap(d, v)
		t.dropTap(tap) // no export answers to it
		c.disks = append(c.disks, &collected{mirror: &mirror{disk: d, machine: m, tap: tap, node: n}})
	}
	work, stop := context.WithCancel(ctx)
	defer stop()
	g, catching := errgroup.WithContext(work)
	for _, d := range c.disks {
		g.Go(func() error { return d.begin(catching) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return c.rounds(work)
}

// begin makes one bitmap tell what the sink does not know of the disk, reading all of
// it where none can be trusted.
func (c *collected) begin(ctx context.Context) error {
	found, err := c.mirror.judge(ctx)
	if err != nil {
		return err
	}
	if err := c.disk.advance(mode.Event{Kind: mode.Judged, Trusted: found.Trusted, Why: found.Why}); err != nil {
		return err
	}
	if found.Trusted {
		return c.join(ctx)
	}
	if err := c.resync(ctx, found); err != nil {
		return err
	}
	if err := c.durable(ctx); err != nil {
		return err
	}
	if err := c.remember(c.bitmaps); err != nil {
		return err
	}
	return c.disk.advance(mode.Event{Kind: mode.Compared})
}

// join makes the several bitmaps that a tap keeps one. The new one collects before
// the others are merged into it, and is remembered before they go.
func (c *collected) join(ctx context.Context) error {
	if len(c.bitmaps) == 1 {
		return nil
	}
	if err := c.addBitmap(ctx); err != nil {
		return err
	}
	last := len(c.bitmaps) - 1
	if err := c.machine.mergeBitmaps(ctx, c.node.Name, c.bitmaps[last], c.bitmaps[:last]); err != nil {
		return fmt.Errorf("merge bitmaps: %w", err)
	}
	return c.keep(ctx, c.bitmaps[last:])
}

// shrink records what the bitmap names as the live disk shows it, and begins another
// one before: so a round that holds an instant has little to copy. The first bitmap
// goes when all that it named is durable.
func (c *collected) shrink(ctx context.Context) error {
	if err := c.addBitmap(ctx); err != nil {
		return err
	}
	if err := c.resync(ctx, mode.Verdict{Trusted: true, Keep: c.bitmaps[:1]}); err != nil {
		return err
	}
	if err := c.durable(ctx); err != nil {
		return err
	}
	return c.keep(ctx, c.bitmaps[1:])
}

func (c *collected) durable(ctx context.Context) error {
	if err := c.disk.opts.Sink.WaitDurable(ctx); err != nil {
		return c.tap.journalBreak(err)
	}
	return nil
}

// end tells every disk what ended the cycles, and leaves only bitmaps behind.
func (c *collector) end(ctx context.Context, err error) {
	told := make(map[*disk]bool)
	for _, d := range c.disks {
		if ctx.Err() != nil {
			d.disk.leave()
		}
		d.tap.letGo(asBreak(err))
		told[d.disk] = true
		if c.m.Err() == nil {
			d.mirror.remove(ctx)
		}
		d.scratch.remove()
	}
	for _, d := range c.t.disks {
		if !told[d] && ctx.Err() == nil {
			d.broke(nil, asBreak(err), false)
		}
	}
}

// dirty is what the bitmaps name now, in bytes, once they are seen to be sound.
func (c *collector) dirty(ctx context.Context) (map[*collected]int64, error) {
	nodes, err := c.m.nodes(ctx)
	if err != nil {
		return nil, err
	}
	out := make(map[*collected]int64)
	for _, d := range c.disks {
		var now nodeInfo
		for _, n := range nodes {
			if n.Name == d.node.Name {
				now = n
			}
		}
		if now.Name == "" || now.ReadOnly {
			return nil, breakage(cbt.CauseTapEnded, fmt.Errorf("%w: %q is not what the guest writes to any more", ErrNode, d.node.Name))
		}
		v := judge(d.disk.conf.Volume.ID, mode.Remembered{Node: d.node.Name, Size: d.tap.volume.Size, Granularity: d.disk.opts.Granularity, Bitmaps: d.bitmaps}, true, now)
		if !v.Trusted {
			return nil, breakage(cbt.CauseBitmapUntrusted, errors.New(v.Why))
		}
		for _, b := range now.Bitmaps {
			if b.Name == d.bitmap() {
				out[d] = b.Count
			}
		}
	}
	return out, nil
}
