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
	"github.com/novacron/afterimage/cbt/mode"
)

// collector follows all disks of a machine by bitmap cycles: nothing lies in the
// guest's way, one bitmap a disk collects, and every so often a round (round.go)
// turns it into a point. Its steps are those of package mode.
type collector struct {
	t     *Tracker
	m     *machine
	disks []*collected

	known   []*disk         // of the tracker
	changed <-chan struct{} // closed when those are others
	admit   func(*disk)     // begins to bring one up
	ready   chan *collected // disks that were brought up, for the next round

	instant time.Time                   // a little before that of the round: a loss that is shown is never less than it is
	ran     bool                        // the guest did, before a pause
	resume  func(context.Context) error // undoes hush; nil: the guest is not stopped by us
}

// collected is one disk under a collector. Its mirror and tap are never put into the
// machine: they carry what reading, comparing and the bitmaps need.
type collected struct {
	*mirror
	delta   string // round: a bitmap of what the held instant covers
	scratch *scratch
	// caughtUp says that what the volume had missed when the cycles began has been read:
	// all of the disk, or what the bitmaps named then.
	caughtUp bool
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
	c := &collector{t: t, m: m, ready: make(chan *collected)}
	defer func() {
		if m.Err() != nil {
			err = breakage(cbt.CauseTapEnded, fmt.Errorf("%w: %w", ErrMonitor, m.Err()))
		}
		c.end(ctx, err)
	}()
	if err := c.t.wakeLeft(ctx, c.m.commands); err != nil {
		if answered(c.m, err) {
			for _, d := range c.t.plugged() {
				d.ranOn(ranAnswering)
			}
		}
		return err
	}
	work, stop := context.WithCancel(ctx)
	var joining sync.WaitGroup
	defer joining.Wait()
	defer stop()
	first, late := c.sorted()
	for _, d := range first {
		k, err := c.find(ctx, d)
		if err != nil {
			return err
		}
		c.disks = append(c.disks, k)
	}
	g, catching := errgroup.WithContext(work)
	for _, d := range c.disks {
		g.Go(func() error { return d.begin(catching) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	c.admit = func(d *disk) { joining.Go(func() { c.bringUp(work, d) }) }
	for _, d := range late {
		c.admit(d)
	}
	return c.rounds(work)
}

// sorted is the disks that there are: those that rounds wait for, and those that join.
// With none of the former there is nobody to keep waiting.
func (c *collector) sorted() (first, late []*disk) {
	for _, d := range c.noted() {
		d.mu.Lock()
		if d.joining {
			late = append(late, d)
		} else {
			first = append(first, d)
		}
		d.mu.Unlock()
	}
	if len(first) == 0 {
		return late, nil
	}
	return first, late
}

// noted is the disks that are followed, of which c takes note.
func (c *collector) noted() []*disk {
	c.t.mu.Lock()
	defer c.t.mu.Unlock()
	c.changed, c.known = c.t.replugged, slices.Clone(c.t.disks)
	return c.known
}

// replug leaves out the disks that were unplugged, and brings up those that were
// plugged; no round is under way.
func (c *collector) replug(ctx context.Context) {
	before := c.known
	now := c.noted()
	for _, d := range now {
		if !slices.Contains(before, d) {
			c.admit(d)
		}
	}
	c.disks = slices.DeleteFunc(c.disks, func(k *collected) bool {
		if slices.Contains(now, k.disk) {
			return false
		}
		k.tap.letGo(breakage(cbt.CauseDetached, errUnplugged))
		k.mirror.remove(ctx)
		return true
	})
}

// find is d in the machine, swept of what an earlier attachment left.
func (c *collector) find(ctx context.Context, d *disk) (*collected, error) {
	if err := errors.Join(d.gaps.settled(ctx), c.t.opts.Sink.WaitDurable(ctx)); err != nil {
		return nil, breakage(cbt.CauseJournal, err)
	}
	if err := d.advance(mode.Event{Kind: mode.Attach}); err != nil {
		return nil, err
	}
	n, err := c.m.found(ctx, d)
	if answered(c.m, err) {
		d.ranOn(ranAnswering) // what it writes is in a cycle that ends after this, or in none
	}
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	v := d.volume
	d.mu.Unlock()
	tap := c.t.newTap(d, v)
	c.t.dropTap(tap) // no export answers to it
	return &collected{mirror: &mirror{disk: d, machine: c.m, tap: tap, node: n}}, nil
}

// bringUp reads a disk that joins beside the rounds of the others, until it can be in
// them as well, or ctx ends, or it is unplugged.
func (c *collector) bringUp(ctx context.Context, d *disk) {
	ctx, done := d.until(ctx)
	defer done()
	for {
		k, err := c.find(ctx, d)
		if err == nil {
			err = k.begin(ctx)
		}
		if err == nil {
			select {
			case c.ready <- k:
			case <-ctx.Done():
				k.tap.letGo(breakage(cbt.CauseDetached, context.Cause(ctx)))
			}
			return
		}
		if k != nil {
			k.tap.letGo(asBreak(err))
			k.remove(ctx)
		} else if ctx.Err() == nil {
			d.broke(nil, asBreak(err), false)
		}
		if !rest(ctx, c.m.Done(), c.t.opts.Retry) {
			return
		}
	}
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
	c.caughtUp = true
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
	r := &resync{a: c.mirror, routine: c.caughtUp}
	if err := c.reading(ctx, r, mode.Verdict{Trusted: true, Keep: c.bitmaps[:1]}); err != nil {
		return err
	}
	c.caughtUp = true
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
	for _, d := range c.t.plugged() {
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
