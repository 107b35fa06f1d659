package qemu

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/mode"
)

// disk is one volume of a tracker. Its attachments follow one another in follow.
type disk struct {
	tracker *Tracker
	opts    *Options
	conf    Disk
	gaps    *gaps
	answers cbt.Meter
	made    string    // the newest target node that this process added; of the loop in follow
	tapped  time.Time // until when the volume was synced last; of that loop too

	there  context.Context // ends when the disk is unplugged
	unplug context.CancelFunc

	mu        sync.Mutex // guards what follows
	volume    cbt.Volume // conf.Volume, with the size that was last agreed on
	standing  mode.State
	status    cbt.VolumeStatus
	leaving   bool    // the tracker ends: a break is a detachment
	joining   bool    // plugged, and never synced: no round waits for it
	unplugged bool    // a break is none any more
	untold    *gapDue // what was not told for that reason
	saidRan   bool    // RanOn was told since the volume was last synced
}

func newDisk(t *Tracker, conf Disk) *disk {
	d := &disk{tracker: t, opts: &t.opts, conf: conf, volume: conf.Volume}
	d.there, d.unplug = context.WithCancel(context.Background())
	d.status = cbt.VolumeStatus{Volume: conf.Volume, State: cbt.StateDetached, Since: time.Now(), Mode: cbt.ModeNone, ModeSince: time.Now()}
	if t.opts.Every > 0 {
		d.standing.Plan = mode.Cycles
	}
	d.gaps = newGaps(t.opts.Sink, t.opts.Gate, func(due gapDue) {
		d.mu.Lock()
		d.standing, _, _ = d.standing.Next(mode.Event{Kind: mode.GapTold})
		d.mu.Unlock()
		if f := t.opts.Events.GapRecorded; f != nil {
			f(conf.Volume.ID, due.event.Cause, time.Since(due.since))
		}
	})
	return d
}

func (d *disk) snapshot() cbt.VolumeStatus {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.status
}

// advance takes an event that is no break. One that the rules refuse, such as a mark
// while something is missing, ends the attachment.
func (d *disk) advance(e mode.Event) error {
	d.mu.Lock()
	next, _, err := d.standing.Next(e)
	if err != nil {
		d.mu.Unlock()
		return err
	}
	d.standing = next
	st := d.showState()
	d.mu.Unlock()
	d.tell(st)
	return nil
}

// showState copies where the volume stands into the status; d.mu is held.
func (d *disk) showState() cbt.VolumeStatus {
	if d.status.State != d.standing.Phase {
		d.status.State, d.status.Since = d.standing.Phase, time.Now()
	}
	if d.status.Mode != d.standing.Mode {
		d.status.Mode, d.status.ModeSince = d.standing.Mode, time.Now()
	}
	d.status.ModeWhy = d.standing.Why
	d.status.Volume = d.volume
	return d.status
}

func (d *disk) tell(st cbt.VolumeStatus) {
	if f := d.opts.Events.StateChanged; f != nil {
		f(st)
	}
}

// broke notes the end of t's attachment, or of an attempt at one, and sees to
// the gap. gated says that the interval was open and the gate is shut for it.
func (d *disk) broke(t *tap, b *breakError, gated bool) {
	d.mu.Lock()
	kind := mode.Break
	if d.leaving {
		kind = mode.Release
		b = breakage(cbt.CauseDetached, b.err)
	}
	next, order, err := d.standing.Next(mode.Event{Kind: kind, Cause: b.cause, Why: b.err.Error()})
	if err != nil {
		panic(err) // a break can come at any time
	}
	d.standing = next
	gap := order == mode.TellGap || gated
	d.status.Cause, d.status.Detail = b.cause, b.err.Error()
	due := gapDue{tap: t, gated: gated, event: cbt.Event{
		Kind: cbt.EventGap, Volume: d.volume.ID, Cause: b.cause, Detail: b.err.Error(),
	}}
	switch {
	case gap && d.unplugged:
		if gated {
			d.opts.Gate.release()
			due.gated = false
		}
		due.tap, gap, d.untold = nil, false, &due
	case gap:
		d.gaps.add(due)
	}
	st := d.showState()
	d.mu.Unlock()
	if gap {
		d.opts.Log.Warn("gap", "volume", d.conf.Volume.Name, "cause", b.cause, "detail", b.err)
	}
	d.tell(st)
	if f := d.opts.Events.LetGo; f != nil && t != nil {
		f(d.volume.ID, b.cause, b.err)
	}
}

// follow attaches again and again until ctx or the connection ends.
func (d *disk) follow(ctx context.Context, l link) {
	const firstPause = 50 * time.Millisecond
	pause := firstPause
	for {
		held, err := d.attempt(ctx, l)
		if held > 0 {
			d.tapped = time.Now()
		}
		d.outlived()
		if ctx.Err() != nil || l.Err() != nil {
			return
		}
		d.opts.Log.Info("tap ended", "volume", d.conf.Volume.Name, "reason", err)
		if held > d.opts.Retry {
			pause = firstPause
		}
		if !rest(ctx, l.Done(), pause) {
			return
		}
		pause = min(2*pause, d.opts.Retry)
	}
}

// attempt is one attachment from its beginning to its end. It returns for how
// long the volume was synced, and why that ended.
func (d *disk) attempt(ctx context.Context, l link) (held time.Duration, err error) {
	// What the last tap recorded must be settled, or the head that this resync
	// compares with could still change under it.
	if err := errors.Join(d.gaps.settled(ctx), d.opts.Sink.WaitDurable(ctx)); err != nil {
		if ctx.Err() == nil {
			d.broke(nil, breakage(cbt.CauseJournal, err), false)
		}
		return 0, err
	}
	err = d.advance(mode.Event{Kind: mode.Attach})
	var attach func(*tap) *attachment
	if err == nil {
		attach, err = l.prepare(ctx, d)
		if answered(l, err) {
			d.ranOn(ranAnswering)
		}
	}
	if err != nil {
		if ctx.Err() == nil {
			d.broke(nil, asBreak(err), false)
		}
		return 0, err
	}
	d.mu.Lock()
	v := d.volume
	d.mu.Unlock()
	t := d.tracker.newTap(d, v)
	a := attach(t)
	stop := context.AfterFunc(ctx, func() {
		d.leave()
		t.letGo(breakage(cbt.CauseDetached, context.Cause(ctx)))
	})
	defer stop()
	err = a.run(ctx)
	if l.Err() != nil {
		if !a.synced.IsZero() && !t.left(ctx) {
			d.ranOn(ranStayed)
		}
		err = breakage(cbt.CauseTapEnded, fmt.Errorf("%w: %w", ErrMonitor, l.Err()))
	}
	if !a.synced.IsZero() {
		held = time.Since(a.synced)
	}
	if ctx.Err() != nil {
		d.leave()
	}
	t.letGo(asBreak(err))
	err = context.Cause(t.live)
	a.way.remove(ctx)
	return held, errors.Join(err, d.drain(ctx, t))
}

// drain waits until nothing of t can take a place in the order any more.
func (d *disk) drain(ctx context.Context, t *tap) error {
	err := t.drained(ctx)
	d.tracker.dropTap(t)
	return err
}

// leave notes that the tracker ends.
func (d *disk) leave() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.leaving = true
}

// finish waits, within reason, until the last gap has its place.
func (d *disk) finish(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if err := d.gaps.settled(ctx); err != nil {
		d.opts.Log.Warn("leave without the gap being recorded", "volume", d.conf.Volume.Name, "error", err)
	}
	d.mu.Lock()
	d.standing, _, _ = d.standing.Next(mode.Event{Kind: mode.Release, Cause: cbt.CauseDetached})
	st := d.showState()
	d.mu.Unlock()
	d.tell(st)
}
