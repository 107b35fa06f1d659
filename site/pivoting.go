package site

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/embedded"
	"github.com/novacron/afterimage/cbt/qemu"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// pivoting makes disks local that were moved into images, while their machine runs:
//
//  1. its QEMU opens the images, beside the disks that it has;
//  2. what is to be is durable, and then the guest is halted: what it wrote, the image
//     and the head are the same, and the images are made durable;
//  3. QEMU exchanges the disks for the images, and a bitmap begins in each; that they are
//     the machine's own is durable. Until here whatever fails takes all back;
//  4. the reign ends with what served them, and the next one taps (turn). No interval is
//     open meanwhile;
//  5. once every tap is synced the guest goes on. A tap that does not come about does not
//     hold it: the machine is then one that is not protected, and says so, and is
//     tapped again and again like any other.
//
// Whatever dies in between: the next life finds what was begun (finishPivots). Disks that
// are not the machine's own yet are taken back; in any case the guest goes on.
type pivoting struct {
	life     *life
	reign    *reign
	monitor  qemu.Monitor
	state    pivoted
	disks    []pivotingDisk
	progress func(control.Progress)
	done     chan error // one value

	halted time.Time
}

type pivotingDisk struct {
	qemu.Pivot
	device   *embedded.Device // nil: it is not served now
	identity string           // of the block device that the image is; "": it is a file
}

// pivotLimit bounds a pivot without the taps, and pivotPatience how long the guest is
// held for those.
const (
	pivotLimit    = time.Minute
	pivotPatience = 10 * time.Second
)

// pivotDisks makes all disks of r local that can be.
func (l *life) pivotDisks(ctx context.Context, r *reign, progress func(control.Progress)) (notice string, err error) {
	l.pivots.Lock()
	defer l.pivots.Unlock()
	p := &pivoting{life: l, reign: r, progress: progress, done: make(chan error, 1)}
	if p.state, err = l.pivotedNow(l.roleNow()); err != nil {
		return "", err
	}
	ctx, cancel := l.pivotContext(ctx)
	defer cancel()
	if p.monitor, err = l.pivotMonitor(ctx); err != nil {
		return "", err
	}
	defer p.monitor.Close()
	switch err := p.choose(ctx); {
	case err != nil:
		return "", err
	case len(p.disks) == 0 && p.state.some():
		return "", nil
	case len(p.disks) == 0:
		return "", fault.New(fault.MachineTrouble, "hand over the disks of "+l.cfg.Ref(), "its machine has none of them as a node of machine: {disks: …}")
	}
	for _, d := range p.disks {
		if err = d.Prepare(ctx, p.monitor); err != nil {
			return "", errors.Join(err, p.drop(ctx))
		}
	}
	for _, d := range p.disks {
		p.state.Disks[d.Volume.ID.String()] = pivotedDisk{Image: d.Image, Device: d.identity, From: d.From}
	}
	p.state.Stopped = true
	if err := p.remember("pivot begun"); err != nil {
		return "", errors.Join(err, p.drop(ctx))
	}
	return p.carry(ctx)
}

// pivotContext goes on if the caller goes away, but not beyond the life.
func (l *life) pivotContext(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pivotLimit)
	stop := context.AfterFunc(l.ctx, cancel)
	return ctx, func() { stop(); cancel() }
}

// pivotMonitor is that of the group's machine, which runs.
func (l *life) pivotMonitor(ctx context.Context) (qemu.Monitor, error) {
	what := "hand the disks of " + l.cfg.Ref() + " to their machine"
	c := l.cfg.Machine
	switch {
	case c == nil:
		return nil, fault.New(fault.Usage, what, "the configuration names no machine:")
	case l.hosted() || len(l.cfg.Taps()) > 0 || l.cfg.Cycle() > 0:
		return nil, fault.New(fault.Usage, what, "that is done for a machine of machine: {binary: …} alone, whose group has no tapped disks and no bitmap cycles here")
	}
	m := l.machine(c)
	running, err := m.Attach(ctx)
	if err != nil {
		return nil, fault.Wrap(fault.MachineTrouble, what, err)
	}
	own, _ := m.Monitors()
	mon, err := qemu.DialQMP(ctx, own)
	return mon, errors.Join(err, running.Close())
}

// choose finds the disks that lie in images and that the machine has.
func (p *pivoting) choose(ctx context.Context) error {
	m := p.life.machine(p.life.cfg.Machine)
	moved, err := p.life.movedNow(p.life.roleNow())
	if err != nil {
		return err
	}
	for _, d := range p.reign.disks {
		device, ok := d.device.(*embedded.Device)
		image, identity := moved.Images[d.volume.ID.String()], moved.Devices[d.volume.ID.String()]
		if !ok || image == "" {
			continue
		}
		x := pivotingDisk{Pivot: qemu.Pivot{Volume: d.volume, From: m.Node(d.volume.Name), Image: image, Device: identity != ""}, device: device, identity: identity}
		if err := x.Settle(ctx, p.monitor); err != nil {
			return err
		}
		switch at, err := x.Where(ctx, p.monitor); {
		case errors.Is(err, qemu.ErrNode):
			p.progress(control.Progress{Step: "the machine has no disk " + d.volume.Name + ", which stays where it is"})
			continue
		case err != nil:
			return err
		case at != x.From:
			return fmt.Errorf("%w: volume %s is at node %s already", qemu.ErrNode, d.volume.Name, at)
		}
		p.disks = append(p.disks, x)
	}
	return nil
}

func (p *pivoting) remember(step string) error {
	err := p.life.j.Remember(pivotedKey, p.state)
	if err != nil {
		return fmt.Errorf("remember local disks: %w", err)
	}
	p.life.site.o.passes(step)
	return nil
}

// drop closes the images again that no device has.
func (p *pivoting) drop(ctx context.Context) error {
	var errs []error
	for _, d := range p.disks {
		errs = append(errs, d.Drop(ctx, p.monitor, d.To()))
	}
	return errors.Join(errs...)
}

// carry is steps 2 to 5.
func (p *pivoting) carry(ctx context.Context) (notice string, err error) {
	l := p.life
	for _, d := range p.disks { // what is done here is not done while the guest waits
		if err := d.device.Checkpoint(ctx); err != nil {
			return "", errors.Join(err, p.back(ctx))
		}
	}
	p.progress(control.Progress{Step: "the guest is halted"})
	p.halted = l.site.o.Now()
	if err = qemu.Halt(ctx, p.monitor); err == nil {
		l.site.o.passes("guest is halted")
		err = p.exchange(ctx)
	}
	if err != nil {
		return "", errors.Join(err, p.back(ctx))
	}
	now := l.site.o.Now()
	before := p.state
	p.state.Disks = map[string]pivotedDisk{}
	for id, d := range before.Disks {
		if !d.Done {
			d.Done, d.At = true, now
		}
		p.state.Disks[id] = d
	}
	if err := p.remember("disks are local"); err != nil {
		p.state = before
		return "", errors.Join(err, p.back(ctx))
	}
	for _, d := range p.disks {
		if err := d.Drop(ctx, p.monitor, d.From); err != nil {
			p.abandon(ctx, d.Pivot)
		}
	}
	select {
	case l.pivot <- p:
		err = <-p.done
	case <-l.ctx.Done():
		err = errDetached
	}
	l.site.o.passes("the next reign taps")
	return p.release(ctx, err)
}

// abandon has the machine forget where a disk was served that is its own now.
func (p *pivoting) abandon(ctx context.Context, d qemu.Pivot) {
	if err := d.Abandon(ctx, p.monitor); err != nil {
		p.life.site.o.Log.Error("the machine keeps a node of ours open", "group", p.life.cfg.Ref(), "node", d.From, "err", err)
	}
}

// exchange gives the machine its images; the guest stands still.
func (p *pivoting) exchange(ctx context.Context) error {
	for _, d := range p.disks {
		if err := d.device.Checkpoint(ctx); err != nil {
			return err
		}
		if !d.device.Protected() {
			return fault.New(fault.JournalFull, "hand over volume "+d.Volume.Name, "the journal lacks what the disk holds")
		}
		if err := d.Switch(ctx, p.monitor, d.To()); err != nil {
			return fmt.Errorf("volume %s: %w", d.Volume.Name, err)
		}
		p.life.site.o.passes("disk is exchanged")
	}
	if err := p.reign.writer.WaitDurable(ctx); err != nil {
		return err
	}
	for _, d := range p.disks {
		if err := d.Trust(ctx, p.monitor, p.life.j); err != nil {
			return fmt.Errorf("volume %s: %w", d.Volume.Name, err)
		}
	}
	return nil
}

var _ turning = (*pivoting)(nil)

// turn makes the reign that taps. The interval of what becomes tapped ends before.
func (p *pivoting) turn(ctx context.Context) (*reign, error) {
	w := p.reign.writer
	for _, d := range p.disks {
		done, err := w.Record(ctx, cbt.Event{Kind: cbt.EventGap, Volume: d.Volume.ID, Cause: cbt.CauseDetached, Detail: "the disk becomes the machine's own; its guest stands still"})
		if err == nil {
			err = done.Wait(ctx)
		}
		if err != nil {
			return nil, fmt.Errorf("volume %s: end its interval: %w", d.Volume.Name, err)
		}
	}
	return p.life.crown(ctx, w)
}

func (p *pivoting) ended(err error) { p.done <- err }

// release lets the guest go on, once it is tapped or cannot be.
func (p *pivoting) release(ctx context.Context, turned error) (notice string, err error) {
	l := p.life
	if turned == nil {
		notice = l.awaitTaps(ctx, pivotPatience)
	} else {
		notice = turned.Error()
	}
	going, cancel := context.WithTimeout(context.WithoutCancel(ctx), pivotLimit)
	defer cancel()
	if err := qemu.Proceed(going, p.monitor); err != nil {
		l.again()
		return notice, err
	}
	l.site.o.passes("guest goes on")
	pause := l.site.o.Now().Sub(p.halted).Seconds()
	p.state.Stopped = false
	for _, x := range p.disks {
		d := p.state.Disks[x.Volume.ID.String()]
		d.Pause = pause
		p.state.Disks[x.Volume.ID.String()] = d
	}
	if err = p.remember("pivot over"); err != nil {
		l.again()
	}
	l.site.o.Log.Warn("disks are the machine's own", "group", l.cfg.Ref(), "disks", len(p.disks), "pause_seconds", pause, "not_protected", notice)
	return notice, errors.Join(turned, err)
}

// awaitTaps returns why not everything that is tapped is synced; "" once it is.
func (l *life) awaitTaps(ctx context.Context, limit time.Duration) string {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		why := "its disks are being opened"
		if r := l.reigning(); r != nil {
			why = ""
			if r.tracker != nil {
				for _, v := range r.tracker.Status() {
					if v.State != cbt.StateSynced {
						why = fmt.Sprintf("volume %s is %s: %s %s", v.Volume.Name, v.State, v.Cause, v.Detail)
					}
				}
			}
		}
		if why == "" || pauseFor(ctx, time.Millisecond) != nil {
			return why
		}
	}
}

// back takes back what is not the machine's own yet, and lets the guest go on. Where that
// fails the guest stands still until it has succeeded: what it would write to an image
// nobody would know of.
func (p *pivoting) back(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pivotLimit)
	defer cancel()
	err := p.takeBack(ctx)
	if err != nil {
		p.life.site.o.Log.Error("the guest stands still: its disks are neither here nor there", "group", p.life.cfg.Ref(), "err", err)
		p.life.again()
		return err
	}
	p.state.Stopped = false
	for id, d := range p.state.Disks {
		if !d.Done {
			delete(p.state.Disks, id)
		}
	}
	if err := p.remember("pivot taken back"); err != nil {
		p.life.again()
		return err
	}
	return nil
}

func (p *pivoting) takeBack(ctx context.Context) error {
	for _, d := range p.disks {
		if err := p.stillHeld(ctx, d); err != nil {
			return err
		}
		if err := d.Switch(ctx, p.monitor, d.From); err != nil {
			return err
		}
	}
	if err := p.drop(ctx); err != nil {
		p.life.site.o.Log.Warn("the machine keeps an image open", "group", p.life.cfg.Ref(), "err", err)
	}
	return qemu.Proceed(ctx, p.monitor)
}

// stillHeld is nil unless somebody has let the guest go on with an image that is not known
// to be its own: what it wrote is there alone, so the image is its own from then on.
func (p *pivoting) stillHeld(ctx context.Context, d pivotingDisk) error {
	if err := d.Settle(ctx, p.monitor); err != nil {
		return err
	}
	at, err := d.Where(ctx, p.monitor)
	if err != nil || at != d.To() {
		return err
	}
	runs, err := qemu.Runs(ctx, p.monitor)
	if err != nil || !runs {
		return err
	}
	l, id := p.life, d.Volume.ID.String()
	x := p.state.Disks[id]
	x.Done, x.At = true, l.site.o.Now()
	p.state.Disks[id] = x
	if err := errors.Join(qemu.Forget(l.j, d.Volume.ID), p.remember("disk is local already")); err != nil {
		return err
	}
	l.next()
	return fmt.Errorf("volume %s: %w", d.Volume.Name, errLetGo)
}

var errLetGo = errors.New("somebody let the guest go on in the middle; its disk is its own now")

// again has finishPivots look once more.
func (l *life) again() {
	select {
	case l.pivotLeft <- struct{}{}:
	default:
	}
}

// finishPivots ends what an earlier life, or a failure, left half-way, until ctx does.
func (l *life) finishPivots(ctx context.Context) {
	for ctx.Err() == nil {
		for wait := askFirst; ctx.Err() == nil; wait = min(2*wait, renewLast) {
			err := l.finishPivot(ctx)
			if err == nil {
				break
			}
			if ctx.Err() == nil {
				l.site.o.Log.Error("disks that were to become the machine's own are not settled", "group", l.cfg.Ref(), "err", err)
			}
			_ = pauseFor(ctx, wait) // the loop sees that ctx ended
		}
		select {
		case <-l.pivotLeft:
		case <-ctx.Done():
		}
	}
}

func (l *life) finishPivot(ctx context.Context) error {
	r := l.reignOf(ctx)
	l.pivots.Lock()
	defer l.pivots.Unlock()
	p := &pivoting{life: l, reign: r, progress: func(control.Progress) {}}
	var err error
	if p.state, err = l.pivotedNow(l.roleNow()); err != nil || !p.state.unfinished() || !l.roleNow().Role.Captures() {
		return err
	}
	if r == nil || l.cfg.Machine == nil {
		return errDetached
	}
	m := l.machine(l.cfg.Machine)
	switch _, err := m.Process(); {
	case errors.Is(err, recovery.ErrNotRunning): // the history has all that it wrote
		p.state.Stopped = false
		for id, d := range p.state.Disks {
			if !d.Done {
				delete(p.state.Disks, id)
			}
		}
		return p.remember("pivot forgotten")
	case err != nil:
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, pivotLimit)
	defer cancel()
	own, _ := m.Monitors()
	if p.monitor, err = qemu.DialQMP(ctx, own); err != nil {
		return err
	}
	defer p.monitor.Close()
	volumes, err := headVolumes(l.j)
	if err != nil {
		return err
	}
	for _, v := range volumes {
		d, ok := p.state.Disks[v.ID.String()]
		x := qemu.Pivot{Volume: v, From: d.From, Image: d.Image, Device: d.Device != ""}
		switch {
		case ok && d.Done:
			p.abandon(ctx, x)
		case ok:
			p.disks = append(p.disks, pivotingDisk{Pivot: x})
		}
	}
	if len(p.disks) > 0 {
		return p.back(ctx)
	}
	p.halted = l.site.o.Now()
	_, err = p.release(ctx, nil)
	return err
}
