package qemu

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/mode"
	"github.com/novacron/afterimage/cbt/nbd"
)

// windowBytes is the part of a disk whose stretches are held in memory at once.
const windowBytes = 1 << 30

// resync reads from the live disk what the sink may not know: the bitmaps'
// delta, or everything. It runs beside the tap.
type resync struct {
	a      *mirror
	live   *nbd.Client
	bitmap string    // its meta context, empty for a full read
	held   *os.File  // nil, or what an instant of the disk was copied to where the bitmap names it
	at     time.Time // of that instant
	// routine is a cycle's reading that brings what changed since the one before.
	routine bool
	limit   *rate.Limiter
	// fromLive is the fault that faults.liveCycles plants.
	fromLive bool
	full     []byte // one fill of zeros

	mu   sync.Mutex // guards cost
	cost cbt.Resync
}

// resync brings the volume to what the disk holds, and makes it complete.
func (a *mirror) resync(ctx context.Context, found mode.Verdict) error {
	return a.reading(ctx, &resync{a: a}, found)
}

// resyncHeld is resync of a held instant.
func (c *collected) resyncHeld(ctx context.Context, at time.Time) error {
	r := &resync{a: c.mirror, held: c.scratch.file, at: at, fromLive: c.disk.opts.faults.liveCycles, routine: c.caughtUp}
	err := c.mirror.reading(ctx, r, mode.Verdict{Trusted: true, Keep: []string{c.delta}})
	c.caughtUp = c.caughtUp || err == nil
	return err
}

// missedNothing is for cycles that begin with nothing to be read.
func (c *collected) missedNothing() {
	if !c.caughtUp {
		c.caughtUp = true
		now := time.Now()
		(&resync{a: c.mirror, cost: cbt.Resync{Began: now, Ended: now}}).show()
	}
}

func (a *mirror) reading(ctx context.Context, r *resync, found mode.Verdict) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(a.tap.live, func() { cancel(context.Cause(a.tap.live)) })()

	r.full, r.limit = make([]byte, fillBytes), rate.NewLimiter(rate.Inf, 0)
	if n := a.disk.opts.FillRate; n > 0 && r.held == nil {
		r.limit = rate.NewLimiter(rate.Limit(n), fillBytes)
	}
	r.cost = cbt.Resync{Full: !found.Trusted, Why: found.Why, Began: time.Now()}
	r.show()
	closeReader, err := r.open(ctx, found)
	if err != nil {
		return err
	}
	defer closeReader()
	err = r.run(ctx)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return err
	}
	r.account(func(c *cbt.Resync) { c.Ended = time.Now() })
	c := r.cost
	level := slog.LevelInfo
	if r.held != nil || r.routine {
		level = slog.LevelDebug // it is one of many
	}
	a.disk.opts.Log.Log(ctx, level, "resynced", "volume", a.disk.conf.Volume.Name, "full", c.Full, "reason", c.Why,
		"to_read", c.BytesToRead, "read", c.BytesRead, "journaled", c.BytesJournaled)
	return nil
}

// open makes QEMU show the live disk, and for a delta the union of the bitmaps
// as of now: every write from before the tap is in it, every later one arrives.
func (r *resync) open(ctx context.Context, found mode.Verdict) (closeAll func(), err error) {
	a, m := r.a, r.a.machine
	var undo []func(context.Context)
	undoAll := func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commandPatience)
		defer cancel()
		for i := len(undo) - 1; i >= 0; i-- {
			undo[i](ctx)
		}
	}
	defer func() {
		if err != nil {
			undoAll()
		}
	}()
	export, bitmap := freshName(a.disk.conf.Volume.ID, "x"), ""
	switch {
	case r.held != nil:
		bitmap = found.Keep[0]
	case found.Trusted:
		bitmap = freshName(a.disk.conf.Volume.ID, "t")
		if err := m.addBitmap(ctx, a.node.Name, bitmap, a.disk.opts.Granularity, false, true); err != nil {
			return nil, fmt.Errorf("add delta bitmap: %w", err)
		}
		undo = append(undo, func(ctx context.Context) { m.removeBitmap(ctx, a.node.Name, bitmap) })
		if err := m.mergeBitmaps(ctx, a.node.Name, bitmap, found.Keep); err != nil {
			return nil, fmt.Errorf("merge bitmaps: %w", err)
		}
	}
	if bitmap != "" {
		r.bitmap = "qemu:dirty-bitmap:" + bitmap
	}
	socket, release, err := m.openReads(ctx)
	if err != nil {
		return nil, err
	}
	undo = append(undo, release)
	if err := m.exportForReading(ctx, export, a.node.Name, export, bitmap); err != nil {
		return nil, fmt.Errorf("export disk for reading: %w", err)
	}
	undo = append(undo, func(ctx context.Context) { m.deleteExport(ctx, export) })
	if err := r.connect(ctx, socket, export); err != nil {
		return nil, err
	}
	undo = append(undo, func(context.Context) { r.live.Close() })
	return undoAll, nil
}

// connect dials the export that shows the disk, and what tells the delta.
func (r *resync) connect(ctx context.Context, socket, export string) (err error) {
	contexts := []string{nbd.ContextAllocation}
	if r.bitmap != "" {
		contexts = append(contexts, r.bitmap)
	}
	r.live, err = nbd.Dial(ctx, "unix", socket, nbd.DialOptions{Export: export, MetaContexts: contexts})
	switch {
	case err != nil:
		return fmt.Errorf("read live disk: %w", err)
	case r.live.Info().Size < r.a.tap.volume.Size:
		err = breakage(cbt.CauseTapEnded, errSizeChanged)
	case r.bitmap != "" && !r.live.HasMetaContext(r.bitmap):
		err = fmt.Errorf("read live disk: %w: %s", nbd.ErrNoMetaContext, r.bitmap)
	}
	if err != nil {
		r.live.Close()
	}
	return err
}

// run fills window by window, then what unaligned writes left to be read again.
func (r *resync) run(ctx context.Context) error {
	size := r.a.tap.volume.Size
	r.account(func(c *cbt.Resync) {
		if c.Full {
			c.BytesToRead = size
		}
	})
	for at := int64(0); at < size; at += windowBytes {
		ss, err := r.stretches(ctx, cbt.Extent{Offset: at, Length: min(windowBytes, size-at)})
		if err != nil {
			return err
		}
		if r.bitmap != "" {
			_, all := total(ss)
			r.account(func(c *cbt.Resync) { c.BytesToRead += all })
		}
		if err := r.fillAll(ctx, pieces(ss, size)); err != nil {
			return err
		}
	}
	for {
		due, complete, err := r.a.tap.debts(ctx)
		if err != nil || complete {
			return err
		}
		var ss []stretch
		for _, e := range due {
			ss = append(ss, stretch{Extent: e})
		}
		if err := r.fillAll(ctx, pieces(ss, size)); err != nil {
			return err
		}
	}
}

// stretches is what has to be looked at inside w.
func (r *resync) stretches(ctx context.Context, w cbt.Extent) ([]stretch, error) {
	var out []stretch
	if r.bitmap != "" {
		dirty, err := r.live.BlockStatus(ctx, r.bitmap, w)
		if err != nil {
			return nil, fmt.Errorf("read delta: %w", err)
		}
		for _, s := range dirty {
			if s.Flags&nbd.StateDirty != 0 {
				out = append(out, stretch{Extent: s.Extent})
			}
		}
		return out, nil
	}
	parts, err := r.live.Status(ctx, w)
	if err != nil {
		return nil, fmt.Errorf("read allocation: %w", err)
	}
	at := w.Offset
	for _, p := range parts {
		out = append(out, stretch{cbt.Extent{Offset: at, Length: p.Length}, p.Zero})
		at += p.Length
	}
	if at < w.End() {
		out = append(out, stretch{Extent: cbt.Extent{Offset: at, Length: w.End() - at}})
	}
	return out, nil
}

func (r *resync) fillAll(ctx context.Context, ps []stretch) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(r.a.disk.opts.FillDepth)
	for _, p := range ps {
		if ctx.Err() != nil {
			break
		}
		g.Go(func() error { return r.fill(ctx, p) })
	}
	return g.Wait()
}

// account changes the cost and shows it.
func (r *resync) account(change func(*cbt.Resync)) {
	r.mu.Lock()
	change(&r.cost)
	r.mu.Unlock()
	r.show()
}

// show makes it the volume's newest resync; a round's reading is one only if it catches up.
func (r *resync) show() {
	if r.routine {
		return
	}
	r.mu.Lock()
	c := r.cost
	r.mu.Unlock()
	d := r.a.disk
	d.mu.Lock()
	defer d.mu.Unlock()
	d.status.Resync = c
}
