package site

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/novacron/afterimage/cbt"
	tap "github.com/novacron/afterimage/cbt/libvirt"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// What a machine wrote after its last bitmap cycle, as it shut down, is in no cycle, and
// lies on its disks. So before its group is handed over they are read, once it is off:
//
//  1. the tracker ends, so that nothing of a cycle has a place in the order to come;
//  2. all disks are opened for reading, under QEMU's own lock: nobody starts the machine
//     from them meanwhile;
//  3. what differs from the head is recorded, durably; then all is read once more, past
//     the page cache, and has to be the head;
//  4. each volume is synced, and at once there is the gap of a machine that is off: a
//     point, of the instant at which it was seen off. endedWhole asks for no more.
//
//	crash before 4  → there is no point, and the source is primary as before
//	crash after it  → the next life knows nothing of this one's reading: the machine is
//	                  started again, where we had shut it down, and followed anew
//
// A disk is read where the machine was seen to have it when it was followed. As with any
// tap, a plain QEMU that was given another image for a disk, and that ended before the next
// look at it, is not seen to have that.

// readStep is what a plan says of it.
const readStep = "read: the machine's disks are read whole once it is off, for what it wrote after its last cycle"

// readsEnd reports that the end of the group's machine is read from its disks: it is one
// machine that is tapped here in cycles.
func (l *life) readsEnd() bool {
	return l.cfg.Cycle() > 0 && l.taps() && len(l.cfg.Machines) == 0
}

// canReadEnd is nil if the disks of the machine, which runs or is off, were followed, and
// are such that they can be read when it is off.
func (l *life) canReadEnd(ctx context.Context) error {
	r := l.reigning()
	switch {
	case !l.readsEnd():
		return errors.New(cyclesEnd)
	case r == nil || r.tracker == nil:
		return errNotOpened
	}
	if p := r.tracker.paused(); p.at(l.site.o.Now()) {
		return p
	}
	if err := l.ended(ctx, true); err != nil {
		return err
	}
	drives, err := l.endDrives(ctx)
	if err != nil {
		return err
	}
	for _, id := range slices.Sorted(maps.Keys(drives)) {
		if err := drives[id].CheckToRead(); err != nil {
			return err
		}
	}
	return nil
}

// endDrives are the disks of the volumes at the head that are captured from outside.
func (l *life) endDrives(ctx context.Context) (map[string]recovery.Drive, error) {
	what := "read the disks of " + l.cfg.Ref()
	t, err := l.lookAtTapped(ctx)
	switch {
	case errors.Is(err, tap.ErrNoDomain):
		return nil, fault.New(fault.HandoverTrouble, what, "libvirtd has forgotten the domain, and with it where its disks lie: define it")
	case err != nil:
		return nil, err
	case t.saved:
		return nil, fault.New(fault.HandoverTrouble, what, "%s", memorySaved)
	}
	if l.cfg.Libvirt != nil && t.running == "" {
		if err := l.elsewhere(t.Drives); err != nil {
			return nil, fault.Wrap(fault.HandoverTrouble, what, err)
		}
	}
	volumes, err := headVolumes(l.j)
	if err != nil {
		return nil, err
	}
	served, out := l.embeddedVolumes(), map[string]recovery.Drive{}
	for _, v := range volumes {
		d, ok := t.Drives[v.ID.String()]
		switch {
		case served[v.ID]:
		case !ok:
			return nil, fault.New(fault.HandoverTrouble, what, "where volume %s lies was never seen", v.Name)
		default:
			out[v.ID.String()] = d
		}
	}
	return out, nil
}

// readEnd brings into the history what a machine that is off wrote after its last cycle.
func (l *life) readEnd(ctx context.Context, step func(control.Progress)) (detail string, err error) {
	if l.endedWhole(ctx) == nil {
		return "the disks were read already", nil
	}
	if _, err := l.writerIsGone(ctx); err != nil {
		return "", err
	}
	if err := l.canReadEnd(ctx); err != nil {
		return "", err
	}
	r := l.reigning()
	if r == nil || r.tracker == nil {
		return "", errNotOpened
	}
	release, err := r.tracker.hold(ctx)
	if err != nil {
		return "", err
	}
	read, err := l.readHeld(ctx, r, step)
	release()
	if err != nil {
		return "", err
	}
	return read, l.awaitOff(ctx)
}

// awaitOff waits until the tracker, which has only begun, has seen that nobody is there.
func (l *life) awaitOff(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	for {
		err := l.writerIsOff(ctx, "")
		if err == nil || pauseFor(ctx, askFirst) != nil {
			return err
		}
	}
}

// nobodyThere is nil if the machine is off by all but the locks of its disks, which are ours.
func (l *life) nobodyThere(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, ownPatience)
	defer cancel()
	for _, t := range l.cfg.Taps() {
		var err error
		if t.Libvirt != nil {
			err = l.domainEnded(ctx, t)
		} else {
			err = plainSilent(ctx, t.QEMU.QMP)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// readHeld is readEnd while nothing is tapped.
func (l *life) readHeld(ctx context.Context, r *reign, step func(control.Progress)) (detail string, err error) {
	what := "read the disks of " + l.cfg.Ref()
	wanted, err := l.endDrives(ctx)
	if err != nil {
		return "", err
	}
	drives, err := openEach(ctx, wanted, lookLimit, recovery.Drive.OpenToRead)
	if err != nil {
		return "", fault.Wrap(fault.HandoverTrouble, what, err).Advise("Whoever has the disk open has to let go of it: then repeat the command, or start the machine again.")
	}
	defer func() { err = errors.Join(err, drives.close()) }()
	if err := l.nobodyThere(ctx); err != nil { // and from now on nobody starts it from these
		return "", err
	}
	l.site.o.passes("the machine's disks are locked")
	e := &endRead{life: l, reign: r, at: l.site.o.Now(), drives: drives, step: step}
	if e.volumes, err = headVolumes(l.j); err != nil {
		return "", err
	}
	if err := l.drivesFit(e.volumes, drives.sizes()); err != nil {
		return "", fault.Wrap(fault.HandoverTrouble, what, err)
	}
	e.volumes = slices.DeleteFunc(e.volumes, func(v cbt.Volume) bool { return drives[v.ID.String()] == nil }) // served from here
	if err := e.all(ctx); err != nil {
		return "", fault.Wrap(fault.HandoverTrouble, what, err)
	}
	l.site.o.passes("the machine's end is recorded")
	l.site.o.Log.Info("the disks of a machine that is off were read for what it wrote after its last cycle", "group", l.cfg.Ref(), "bytes", e.size, "bytes_read", e.read, "bytes_journaled", e.journaled)
	return fmt.Sprintf("bytes_read %d of %d, bytes_journaled %d, and all of it once more", e.read, e.size, e.journaled), nil
}

// endRead is one reading of the disks of a machine that is off.
type endRead struct {
	life    *life
	reign   *reign
	at      time.Time // the instant that is read
	drives  openDrives
	volumes []cbt.Volume // that have one
	step    func(control.Progress)

	size, read, journaled int64 // bytes
}

// all is steps 3 and 4.
func (e *endRead) all(ctx context.Context) error {
	w := e.reign.writer
	for _, v := range e.volumes {
		e.step(control.Progress{Step: "read: disk " + v.Name + " for what is in no cycle"})
		n, err := e.drives[v.ID.String()].Differences(ctx, v.Size, e.head(v), func(ctx context.Context, x cbt.Extent, data []byte) error {
			return e.record(ctx, v, x, data)
		})
		e.size, e.read = e.size+v.Size, e.read+n
		e.life.site.meters.resynced(e.life.cfg, n)
		if err != nil {
			return fmt.Errorf("volume %s: %w", v.Name, err)
		}
	}
	if err := w.WaitDurable(ctx); err != nil {
		return err
	}
	e.life.site.o.passes("the machine's disks are read")
	for _, v := range e.volumes {
		e.step(control.Progress{Step: "read: disk " + v.Name + " once more"})
		if err := e.drives[v.ID.String()].Steady(ctx, v.Size, e.head(v)); err != nil {
			return fmt.Errorf("volume %s: %w", v.Name, err)
		}
	}
	if err := e.life.nobodyThere(ctx); err != nil { // a QEMU can be told to lock nothing
		return err
	}
	for _, ev := range []cbt.Event{{Kind: cbt.EventSynced}, {Kind: cbt.EventGap, Cause: cbt.CauseMachine, Detail: "it is off, and its disks were read"}} {
		for _, v := range e.volumes {
			ev.Volume, ev.At = v.ID, e.at
			if err := e.safe(ctx, ev); err != nil {
				return fmt.Errorf("volume %s: %w", v.Name, err)
			}
		}
	}
	return w.WaitDurable(ctx)
}

func (e *endRead) head(v cbt.Volume) func(context.Context, []byte, int64) error {
	return func(ctx context.Context, p []byte, off int64) error {
		return e.reign.writer.ReadHead(ctx, v.ID, off, p)
	}
}

// record is of what a disk holds and the head does not, as a cycle would have it.
func (e *endRead) record(ctx context.Context, v cbt.Volume, x cbt.Extent, data []byte) error {
	ev := cbt.Event{Kind: cbt.EventFill, Volume: v.ID, Extent: x, Data: data, At: e.at}
	if data == nil {
		ev.Kind = cbt.EventZero
	}
	e.journaled += int64(len(data))
	return e.safe(ctx, ev)
}

func (e *endRead) safe(ctx context.Context, ev cbt.Event) error {
	p, err := e.reign.writer.Record(ctx, ev)
	if err != nil {
		return err
	}
	return p.Wait(ctx)
}
