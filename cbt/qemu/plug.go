package qemu

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/novacron/afterimage/cbt"
)

// Disks come and go while a tracker runs. One that is plugged is attached beside the
// others, which it keeps waiting for nothing. One that is unplugged was taken from its
// machine: nothing is written to it any more, so the end of its part is no gap.

// Plug makes a disk one of those that are followed. The sink must know its volume.
func (t *Tracker) Plug(d Disk) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	o := t.opts
	o.Disks = []Disk{d}
	for _, other := range t.disks {
		o.Disks = append(o.Disks, other.conf)
	}
	if err := o.validate(); err != nil {
		return fmt.Errorf("plug %s: %w", d.Volume.Name, err)
	}
	k := newDisk(t, d)
	k.joining = true
	t.disks = append(t.disks, k)
	t.replugLocked()
	return nil
}

// Unplug ends what is done with a disk that its machine does not have any more.
// farewell records that, before the disk's tap lets go; after it the sink must take
// nothing more of the disk. When farewell fails, the disk's interval
// ends with a gap instead, and it is still one of those that are followed.
func (t *Tracker) Unplug(ctx context.Context, v cbt.VolumeID, farewell func(context.Context) error) error {
	d := t.find(v)
	if d == nil {
		return nil
	}
	t.unplugging.Add(1)
	defer t.unplugging.Add(-1)
	t.rounds.Lock() // no round is of a disk that leaves in its middle
	defer t.rounds.Unlock()
	d.mu.Lock()
	d.unplugged = true // from now on a break of its tap is none
	d.mu.Unlock()
	err := d.gaps.settled(ctx)
	if err == nil {
		err = farewell(ctx)
	}
	if err != nil {
		d.stay()
		return err
	}
	taps, _ := t.current()
	for _, tap := range taps {
		if tap.volume.ID == v {
			tap.letGo(breakage(cbt.CauseDetached, errUnplugged))
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.disks = slices.DeleteFunc(slices.Clone(t.disks), func(o *disk) bool { return o == d })
	d.unplug()
	t.replugLocked()
	return nil
}

// stay undoes what Unplug began: a break that was not told meanwhile is told now.
func (d *disk) stay() {
	d.mu.Lock()
	d.unplugged = false
	untold := d.untold
	d.untold = nil
	d.mu.Unlock()
	if untold != nil {
		d.gaps.add(*untold)
	}
}

func (t *Tracker) find(v cbt.VolumeID) *disk {
	for _, d := range t.plugged() {
		if d.conf.Volume.ID == v {
			return d
		}
	}
	return nil
}

// plugged is the disks that are followed now.
func (t *Tracker) plugged() []*disk {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.disks)
}

// replugLocked wakes who looks after each disk.
func (t *Tracker) replugLocked() {
	close(t.replugged)
	t.replugged = make(chan struct{})
}

// eachPlugged runs f, at once, for every disk that is followed or will be, until ctx
// ends or the disk is unplugged; it returns when all have.
func (t *Tracker) eachPlugged(ctx context.Context, begin func(func()), f func(context.Context, *disk)) {
	begun := make(map[*disk]bool)
	for {
		t.mu.Lock()
		disks, changed := slices.Clone(t.disks), t.replugged
		t.mu.Unlock()
		for _, d := range disks {
			if begun[d] {
				continue
			}
			begun[d] = true
			begin(func() {
				own, done := d.until(ctx)
				defer done()
				f(own, d)
			})
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// errUnplugged is why the tap of a disk ends that its machine does not have any more.
var errUnplugged = errors.New("the disk was taken from the machine")

// until is ctx, and ends when the disk is unplugged.
func (d *disk) until(ctx context.Context) (context.Context, func()) {
	own, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(d.there, func() { cancel(errUnplugged) })
	return own, func() { stop(); cancel(nil) }
}
