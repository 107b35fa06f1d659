package qemu

import (
	"context"
	"fmt"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/mode"
)

// way is what differs between the ways in which a tap gets into a machine.
type way interface {
	// judge says what tells the part of the disk that the sink may not know.
	judge(ctx context.Context) (mode.Verdict, error)
	// listen returns a channel that is signalled when something may have happened
	// to the tap's job.
	listen() (woken <-chan struct{}, leave func())
	// start makes the machine send every write, which it does once ready says so.
	start(ctx context.Context) error
	ready(ctx context.Context) (bool, error)
	// bring makes the sink durably know what the disk holds.
	bring(ctx context.Context, a *attachment, found mode.Verdict) error
	// check makes sure that the machine still sends every write.
	check(ctx context.Context) error
	// rotate bounds what the next break will cost.
	rotate(ctx context.Context) error
	// remove takes the tap, which drains, out of the machine.
	remove(ctx context.Context)
}

var (
	_ way = (*mirror)(nil)
	_ way = (*copying)(nil)
)

// attachment is one tap inside the machine, from its beginning to its end.
type attachment struct {
	disk   *disk
	tap    *tap
	link   link
	way    way
	woken  <-chan struct{}
	synced time.Time // zero until then
}

// run puts the tap in, brings the sink to what the disk holds, and holds until the
// tap ends; the error says why. The rules of package mode agree to every step.
func (a *attachment) run(ctx context.Context) error {
	d, t := a.disk, a.tap
	found, err := a.way.judge(ctx)
	if err != nil {
		return err
	}
	if err := d.advance(mode.Event{Kind: mode.Judged, Trusted: found.Trusted, Why: found.Why}); err != nil {
		return err
	}
	var leave func()
	a.woken, leave = a.way.listen()
	defer leave()
	if err := a.way.start(ctx); err != nil {
		return err
	}
	const patience = 10 * time.Second
	if err := a.await(ctx, patience, a.way.ready); err != nil {
		return err
	}
	if err := d.advance(mode.Event{Kind: mode.Tapped}); err != nil {
		return err
	}
	d.ranOn(ranTapped)
	if err := a.way.bring(ctx, a, found); err != nil {
		return err
	}
	if err := d.advance(mode.Event{Kind: mode.Brought}); err != nil {
		return err
	}
	if err := a.check(ctx); err != nil {
		return err
	}
	if err := d.advance(mode.Event{Kind: mode.Mark}); err != nil {
		return err
	}
	d.level()
	if err := t.markSynced(); err != nil {
		return err
	}
	a.synced = time.Now()
	d.opts.Log.Info("synced", "volume", d.conf.Volume.Name)
	return a.hold(ctx)
}

// await returns once ok does, or says why that cannot be; patience 0 has no end.
func (a *attachment) await(ctx context.Context, patience time.Duration, ok func(context.Context) (bool, error)) error {
	const look = 50 * time.Millisecond
	if patience > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, patience, fmt.Errorf("the tap was not ready after %v", patience))
		defer cancel()
	}
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		if yes, err := ok(ctx); err != nil || yes {
			return err
		}
		select {
		case <-a.woken:
		case <-tick.C:
		case <-a.tap.live.Done():
			return context.Cause(a.tap.live)
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-a.link.Done():
			return a.link.Err()
		}
	}
}

// check makes sure that every write arrives, and has.
func (a *attachment) check(ctx context.Context) error {
	err := a.way.check(ctx)
	if a.tap.live.Err() != nil {
		return context.Cause(a.tap.live)
	}
	return err
}

// hold keeps the volume synced until the tap ends.
func (a *attachment) hold(ctx context.Context) error {
	const look = 2 * time.Second
	o := a.disk.opts
	poll := time.NewTicker(look)
	defer poll.Stop()
	rotate := time.NewTimer(min(2*ageBeforeOlderDrops*o.StallBudget, o.Rotate))
	defer rotate.Stop()
	for {
		do := a.check
		select {
		case <-a.tap.live.Done():
			return context.Cause(a.tap.live)
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-a.link.Done():
			return a.link.Err()
		case <-a.woken:
		case <-poll.C:
		case <-o.faults.rotateNow:
			do = a.way.rotate
		case <-rotate.C:
			do = a.way.rotate
			rotate.Reset(o.Rotate)
		}
		if err := do(ctx); err != nil {
			return err
		}
	}
}

// agree makes size the volume's, if the owner has nothing against it.
func (d *disk) agree(ctx context.Context, size int64) error {
	d.mu.Lock()
	v := d.volume
	d.mu.Unlock()
	if size == v.Size {
		return nil
	}
	v.Size = size
	if d.opts.Resize == nil || v.Size <= 0 || v.Size%cbt.SectorBytes != 0 {
		return breakage(cbt.CauseTapEnded, fmt.Errorf("%w: %d bytes", errSizeChanged, v.Size))
	}
	if err := d.opts.Resize(ctx, v); err != nil {
		return breakage(cbt.CauseTapEnded, fmt.Errorf("%w: %d bytes: %w", errSizeChanged, v.Size, err))
	}
	d.mu.Lock()
	d.volume = v
	d.mu.Unlock()
	return nil
}
