package site

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/site/fault"
)

// writtenKey is where the site log keeps which promotion's point the machine's own disks
// hold. A rewind whose promotion is in effect and is not that one is not finished.
const writtenKey = "rewind/written"

// openDrives are the disks of a machine that is off, by volume id.
type openDrives map[string]*recovery.OpenDrive

func (o openDrives) close() error {
	var errs []error
	for id, d := range o {
		errs = append(errs, d.Close())
		delete(o, id)
	}
	return errors.Join(errs...)
}

// openAll opens drives, all or none. A QEMU that was told to end may hold them yet.
func openAll(ctx context.Context, drives map[string]recovery.Drive, limit time.Duration) (openDrives, error) {
	return openEach(ctx, drives, limit, recovery.Drive.Open)
}

func openEach(ctx context.Context, drives map[string]recovery.Drive, limit time.Duration, open func(recovery.Drive, context.Context) (*recovery.OpenDrive, error)) (openDrives, error) {
	waiting, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	out := openDrives{}
	for _, id := range slices.Sorted(maps.Keys(drives)) {
		for {
			d, err := open(drives[id], ctx)
			if err == nil {
				out[id] = d
				break
			}
			if pauseFor(waiting, lockPause) != nil {
				return nil, errors.Join(err, out.close())
			}
		}
	}
	return out, nil
}

// lockPause is between attempts at a drive that is locked.
const lockPause = 200 * time.Millisecond

// stopTapped turns off a machine that this site did not start, and opens its disks, so
// that nobody can start it from them before they are what they are to be. What it was
// is durable first.
func (w *rewinding) stopTapped(ctx context.Context) error {
	l := w.life
	t, err := l.lookAtTapped(ctx)
	if err != nil {
		return err
	}
	if t.running != w.order.Machine {
		return fault.New(fault.PlanStale, "rewind "+l.cfg.Ref(), "its machine was turned on or off since the plan was made")
	}
	if t.saved {
		return fault.New(fault.RewindElsewhere, "rewind "+l.cfg.Ref(), "%s", memorySaved)
	}
	if t.Autostart, err = l.autostartOwed(t); err != nil {
		return err
	}
	note := stoppedFor{Since: l.site.o.Now(), Tapped: &t, Halted: t.running != ""}
	if t.running != "" && !w.noMachine && l.cfg.Libvirt != nil {
		note.Machine = t.running
	}
	if err := l.j.Remember(stoppedKey, note); err != nil {
		return err
	}
	if t.running != "" {
		err := w.step(recovery.StepStop, func() (err error) {
			note.Halted, err = l.turnOff(ctx, w.force)
			return err
		})
		if !note.Halted {
			err = errors.Join(err, l.j.Remember(stoppedKey, note))
		}
		if err != nil {
			return err
		}
	}
	if err := l.autostart(ctx, t, false); err != nil {
		return err
	}
	if w.drives, err = openAll(ctx, t.Drives, lookLimit); err != nil {
		return err
	}
	volumes, err := l.j.Volumes(w.point)
	if err != nil {
		return err
	}
	if err := l.drivesFit(volumes, w.drives.sizes()); err != nil {
		return fault.Wrap(fault.RewindElsewhere, "rewind "+l.cfg.Ref(), err)
	}
	return nil
}

// autostartOwed is whether the domain is to start with its host once this is over: also
// where an earlier rewind has not given that back yet.
func (l *life) autostartOwed(t tappedMachine) (bool, error) {
	var was stoppedFor
	_, err := l.j.Recall(stoppedKey, &was)
	return t.Autostart || was.Tapped != nil && was.Tapped.Autostart && was.Tapped.Domain == t.Domain, err
}

// sizes are the drives', in bytes.
func (o openDrives) sizes() map[string]int64 {
	out := map[string]int64{}
	for id, d := range o {
		out[id] = d.Size()
	}
	return out
}

// drivesFit is nil if each volume that this site does not serve itself has a drive of its
// size: it is asked before anything is forked, for afterwards there would be no way on.
func (l *life) drivesFit(volumes []cbt.Volume, sizes map[string]int64) error {
	served := l.embeddedVolumes()
	for _, v := range volumes {
		size, ok := sizes[v.ID.String()]
		switch {
		case served[v.ID]:
		case !ok:
			return fmt.Errorf("%w: volume %s has none", recovery.ErrDrive, v.Name)
		case size != v.Size:
			return fmt.Errorf("%w: the one of volume %s has %d bytes, the volume %d", recovery.ErrDrive, v.Name, size, v.Size)
		}
	}
	return nil
}

// settleDrives makes the machine's own disks what a rewind owes them, before anything is
// captured. Done by who rewinds, their drives are open already; after a crash they are
// opened anew, which fails while somebody runs a machine from them.
func (l *life) settleDrives(ctx context.Context, r *reign) error {
	what := "rewind " + l.cfg.Ref()
	p, ok, err := recovery.Newest(l.j)
	if err != nil || !ok || !p.Order.Drives || p.State != recovery.PromotionDone || l.roleNow().Promotion != p.ID {
		return err
	}
	var written cbt.ID
	if _, err := l.j.Recall(writtenKey, &written); err != nil || written == p.ID {
		return err
	}
	drives := l.takeDrives()
	if drives == nil {
		l.site.o.Log.Warn("an interrupted rewind is finished", "group", l.cfg.Ref(), "point", p.Order.Point.String())
		if drives, err = l.openOwed(ctx); err != nil {
			return fault.Wrap(fault.RewindUnfinished, what, err)
		}
	}
	err = l.levelDrives(ctx, r, drives)
	if err = errors.Join(err, drives.close()); err != nil {
		return fault.Wrap(fault.RewindUnfinished, what, err)
	}
	l.site.o.passes("the drives are written")
	if err := l.j.Remember(writtenKey, p.ID); err != nil {
		return err
	}
	if err := l.autostartBack(ctx); err != nil { // its disks are as they are to be
		l.site.o.Log.Error("the domain does not start with its host any more", "group", l.cfg.Ref(), "err", err)
	}
	return nil
}

// autostartBack undoes what stopTapped and holdAutostart did to the domain's autostart. While
// something else than its own disks is the group's, it stays off.
func (l *life) autostartBack(ctx context.Context) error {
	if !l.taps() || l.comesHome() {
		return nil
	}
	var was stoppedFor
	if _, err := l.j.Recall(stoppedKey, &was); err != nil || was.Tapped == nil || !was.Tapped.Autostart {
		return err
	}
	if err := l.autostart(ctx, *was.Tapped, true); err != nil {
		return err
	}
	was.Tapped.Autostart = false
	return l.j.Remember(stoppedKey, was)
}

// takeDrives are those that the rewind under way holds open; nil: none is.
func (l *life) takeDrives() openDrives {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rewinding == nil {
		return nil
	}
	d := l.rewinding.drives
	l.rewinding.drives = nil
	return d
}

// openOwed opens what an interrupted rewind had open.
func (l *life) openOwed(ctx context.Context) (openDrives, error) {
	var was stoppedFor
	if ok, err := l.j.Recall(stoppedKey, &was); err != nil || !ok || was.Tapped == nil {
		return nil, errors.Join(err, errors.New("where its disks lie is not known"))
	}
	if l.cfg.Libvirt != nil {
		switch t, err := l.lookAtTapped(ctx); {
		case err == nil && t.running != "":
			return nil, fmt.Errorf("domain %s was started meanwhile: turn it off", t.running)
		case err == nil && t.saved:
			return nil, errors.New(memorySaved)
		case err != nil && was.Tapped.Definition == "":
			return nil, err
		}
	}
	return openAll(ctx, was.Tapped.Drives, 0)
}

// levelDrives writes what differs between the head and each drive. What was read back is
// the head: that is a point, and it ends at once, for the machine is off.
func (l *life) levelDrives(ctx context.Context, r *reign, drives openDrives) error {
	volumes, err := headVolumes(l.j)
	if err != nil {
		return err
	}
	if err := l.drivesFit(volumes, drives.sizes()); err != nil {
		return err
	}
	for _, v := range volumes {
		d := drives[v.ID.String()]
		if d == nil { // it is served from here
			continue
		}
		head := func(ctx context.Context, p []byte, off int64) error { return r.writer.ReadHead(ctx, v.ID, off, p) }
		wrote, err := d.Level(ctx, v.Size, head, func(step string, done, total int64) { l.levelled(step+" "+v.Name, done, total) })
		if err != nil {
			return fmt.Errorf("volume %s: %w", v.Name, err)
		}
		l.site.o.Log.Info("disk brought to the point", "group", l.cfg.Ref(), "volume", v.Name, "path", d.Path, "written", wrote)
	}
	for _, e := range []cbt.Event{{Kind: cbt.EventSynced}, {Kind: cbt.EventGap, Cause: cbt.CauseMachine, Detail: "it is off for a rewind"}} {
		for _, v := range volumes {
			if drives[v.ID.String()] == nil {
				continue
			}
			e.Volume = v.ID
			p, err := r.writer.Record(ctx, e)
			if err == nil {
				err = p.Wait(ctx)
			}
			if err != nil {
				return fmt.Errorf("volume %s: record what it holds: %w", v.Name, err)
			}
		}
	}
	return nil
}
