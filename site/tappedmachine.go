package site

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/novacron/afterimage/cbt"
	tap "github.com/novacron/afterimage/cbt/libvirt"
	"github.com/novacron/afterimage/cbt/qemu"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/recovery/libvirt"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/fault"
)

// tappedMachine is a machine that this site taps and did not start, as it was found.
type tappedMachine struct {
	Domain string `json:"domain,omitempty"` // its UUID at libvirtd; empty: a plain QEMU
	// Definition is of a domain that libvirtd forgets when it ends.
	Definition string                    `json:"definition,omitempty"`
	Autostart  bool                      `json:"autostart,omitempty"` // libvirtd had started it with its host
	Drives     map[string]recovery.Drive `json:"drives"`              // by volume id

	running string // its name, while it runs
	saved   bool   // it is off, and its next start goes on with what its memory held
}

// taps reports whether the group's disks are those of a machine that is tapped here.
func (l *life) taps() bool {
	return len(l.cfg.Taps()) > 0 && !l.servesJournal()
}

// driveKey is where a group's journal remembers where a disk of a tapped machine lies: for
// the time when nobody can ask a plain QEMU, and when a domain's definition may name another.
func driveKey(v cbt.VolumeID) string { return "site/drive/" + v.String() }

// found remembers where the machine at a monitor has a disk open.
func (l *life) found(monitor string, v cbt.VolumeID, i qemu.Image) {
	now := recovery.Drive{Path: openedAt(monitor, i.Path), Format: i.Format}
	if err := l.rememberDrive(v, now); err != nil {
		l.site.o.Log.Warn("where a disk lies is not remembered", "group", l.cfg.Ref(), "volume", v.String(), "err", err)
	}
}

func (l *life) rememberDrive(v cbt.VolumeID, now recovery.Drive) error {
	var was recovery.Drive
	_, err := l.j.Recall(driveKey(v), &was)
	if err == nil && was != now {
		err = l.j.Remember(driveKey(v), now)
	}
	return err
}

// noteDrives remembers where a domain that runs has the group's disks.
func (l *life) noteDrives(ctx context.Context, d *tap.Domain) error {
	if l.cfg.Libvirt == nil {
		return nil // one of several machines, which are not rewound
	}
	disks, err := d.Lying(ctx)
	if err != nil {
		return err
	}
	for _, part := range partsOf(l.j) {
		for _, k := range disks {
			if k.Writable && l.targetOf(part.Volume) == k.Target {
				if err := l.rememberDrive(part.Volume.ID, recovery.Drive{Path: k.Image, Format: k.Format}); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// elsewhere is why a domain that is off may have been given other disks than it ran with;
// nil: drives, by volume id, are those.
func (l *life) elsewhere(drives map[string]recovery.Drive) error {
	for id, part := range partsOf(l.j) {
		d, ok := drives[id.String()]
		if !ok {
			continue
		}
		var was recovery.Drive
		switch known, err := l.j.Recall(driveKey(id), &was); {
		case err != nil:
			return err
		case !known:
			return fmt.Errorf("where volume %s lay when the domain ran is not known, and its definition names %s now", part.Volume.Name, placeText(d))
		case was != d:
			return fmt.Errorf("volume %s lay in %s when the domain ran, and its definition names %s now", part.Volume.Name, placeText(was), placeText(d))
		}
	}
	return nil
}

// placeText tells a drive from another in the same file.
func placeText(d recovery.Drive) string { return d.Path + " (" + d.Format + ")" }

// lookAtTapped finds the machine, whether it runs, and where its disks lie.
func (l *life) lookAtTapped(ctx context.Context) (tappedMachine, error) {
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	if l.cfg.Libvirt != nil {
		return l.lookAtDomain(ctx)
	}
	t := tappedMachine{Drives: map[string]recovery.Drive{}}
	if r := l.reigning(); r != nil && r.tracker != nil {
		images, err := r.tracker.images(ctx)
		if err == nil {
			t.running = "at " + l.cfg.QEMU.QMP
			for id, i := range images {
				t.Drives[id.String()] = recovery.Drive{Path: i.Path, Format: i.Format}
			}
			return t, nil
		}
		if !errors.Is(err, qemu.ErrMonitor) {
			return t, err
		}
	}
	for _, c := range l.cfg.Volumes { // it is off, and was seen before
		var d recovery.Drive
		id := volumeOf(l.cfg, c).ID
		if ok, err := l.j.Recall(driveKey(id), &d); err != nil {
			return t, err
		} else if ok && c.QEMU != nil {
			t.Drives[id.String()] = d
		}
	}
	return t, nil
}

func (l *life) lookAtDomain(ctx context.Context) (tappedMachine, error) {
	t := tappedMachine{Drives: map[string]recovery.Drive{}}
	var in tap.Inspection
	err := l.onDomain(ctx, func(_ *libvirt.Host, m *libvirt.Machine) (err error) {
		t.Domain = m.UUID
		if in, err = tap.Inspect(ctx, l.cfg.Libvirt.URI, m.UUID); err != nil {
			return err
		}
		if in.Runs() {
			t.running = m.Name
		}
		t.saved = in.Saved
		kept, err := m.Persistent(ctx)
		switch {
		case err != nil:
		case kept:
			t.Autostart, err = m.Autostart(ctx)
		default:
			t.Definition, err = m.Definition(ctx)
		}
		return err
	})
	if err != nil {
		return t, err
	}
	parts := partsOf(l.j)
	for _, k := range in.Disks {
		for id, part := range parts {
			if k.Writable && l.targetOf(part.Volume) == k.Target {
				t.Drives[id.String()] = recovery.Drive{Path: k.Image, Format: k.Format}
			}
		}
	}
	return t, nil
}

// onDomain does something to the group's domain.
func (l *life) onDomain(ctx context.Context, do func(*libvirt.Host, *libvirt.Machine) error) error {
	h, err := libvirt.Connect(ctx, l.cfg.Libvirt.URI)
	if err != nil {
		return err
	}
	defer h.Close()
	return l.named(l.cfg.Taps()[0], func(name string) error {
		m, err := h.Machine(ctx, name)
		if err != nil {
			return err
		}
		return do(h, m)
	})
}

// targetOf is the target of the domain's disk that a volume is; "" if none is.
func (l *life) targetOf(v cbt.Volume) string {
	for _, c := range l.cfg.Volumes {
		if volumeOf(l.cfg, c).ID == v.ID {
			if c.Libvirt == nil {
				return ""
			}
			return c.Libvirt.Target
		}
	}
	if l.cfg.Libvirt.Disks != config.DisksAll {
		return ""
	}
	return targetOf(l.cfg, "", v.Name)
}

// unfollowed is why the history may lack what the machine's disks hold; nil: it does not.
func (l *life) unfollowed(ctx context.Context, running bool) error {
	r := l.reigning()
	if r == nil || r.tracker == nil {
		return errors.New("nothing is captured now")
	}
	if p := r.tracker.paused(); p.at(l.site.o.Now()) {
		return p
	}
	if !running {
		return l.watchedToItsEnd(ctx)
	}
	if l.cfg.Cycle() > 0 {
		return nil // the last cycle is closed once the guest stands still
	}
	for _, v := range r.tracker.Status() {
		if v.State != cbt.StateSynced {
			return fmt.Errorf("volume %s is %s: %s %s", v.Volume.Name, v.State, v.Cause, v.Detail)
		}
	}
	return nil
}

// watchedToItsEnd is nil if the newest points end with the machine's, and this process
// has watched since: nobody can have run it unseen.
func (l *life) watchedToItsEnd(ctx context.Context) error {
	spans, err := l.j.Spans(ctx)
	if err != nil {
		return err
	}
	if len(spans) == 0 {
		return errors.New("there are no points")
	}
	last := spans[len(spans)-1]
	switch {
	case last.Ended != cbt.CauseMachine && last.Ended != cbt.CauseTapEnded:
		return fmt.Errorf("points ended by %s, not with the machine", last.Ended)
	case last.Last.Epoch != l.j.Head().Epoch:
		return errors.New("since the last point this site was restarted, and the machine may have run meanwhile; start it and wait until it is synced")
	}
	return l.endedWhole(ctx)
}

// tappedInputs is what a rewind of a machine's own disks depends on beside the history.
func (l *life) tappedInputs(ctx context.Context, in *recovery.RewindInputs) error {
	if len(l.cfg.Machines) > 0 {
		return fault.New(fault.RewindElsewhere, "rewind "+l.cfg.Ref(), "its disks are those of several machines, which are not turned off together").
			Advise("Fail it over to the point at another site, where all of them start together, and rewind it there as often as you like; or view restore each disk while its machine is off.")
	}
	in.Drives, in.Stays = true, l.cfg.Libvirt == nil
	if last, err := resolve(ctx, l.j, "latest"); err == nil {
		in.Undo = fmt.Sprintf("#%d.%d", last.Number, last.Seq)
	}
	if l.reigning() == nil {
		return nil // it is off by now, and its drives are open
	}
	t, err := l.lookAtTapped(ctx)
	if err != nil {
		return err
	}
	in.Machine = t.running
	if l.cfg.Libvirt != nil && t.running == "" {
		if err := l.elsewhere(t.Drives); err != nil {
			return fault.Wrap(fault.RewindElsewhere, "rewind "+l.cfg.Ref(), err).
				Advise("If that is its disk now, start the domain and wait until it is synced; otherwise put its definition right.")
		}
	}
	if err := l.unfollowed(ctx, t.running != ""); err != nil {
		in.Unfollowed = err.Error()
	}
	return l.writable(t, in.Point, in.Volumes)
}

// embeddedVolumes are those whose images this site serves.
func (l *life) embeddedVolumes() map[cbt.VolumeID]bool {
	served := map[cbt.VolumeID]bool{}
	for _, c := range l.cfg.Volumes {
		served[volumeOf(l.cfg, c).ID] = c.Embedded != nil
	}
	return served
}

// writable is nil if all disks that the point covers can be written to here, or are
// images that this site serves.
func (l *life) writable(t tappedMachine, p journal.Point, now []cbt.Volume) error {
	then, err := l.j.Volumes(p)
	if err != nil {
		return err
	}
	what := "rewind " + l.cfg.Ref()
	if t.saved {
		return fault.New(fault.RewindElsewhere, what, "%s", memorySaved)
	}
	served := l.embeddedVolumes()
	for _, v := range then {
		for _, n := range now {
			if n.ID == v.ID && n.Size != v.Size {
				return fault.New(fault.RewindElsewhere, what, "volume %s had %d bytes at the point and has %d now", v.Name, v.Size, n.Size)
			}
		}
		if served[v.ID] {
			continue
		}
		d, ok := t.Drives[v.ID.String()]
		if !ok {
			return fault.New(fault.RewindElsewhere, what, "volume %s is no disk of the machine now", v.Name)
		}
		if err := d.Check(); err != nil {
			return fault.Wrap(fault.RewindElsewhere, what, fmt.Errorf("volume %s: %w", v.Name, err))
		}
	}
	return nil
}

// turnOff halts the guest, makes sure that the history has all that it wrote, and pulls
// the machine's plug. Where it does not, and force does not say so, the guest goes on.
// halted: it may stand still, and runs from its disks.
func (l *life) turnOff(ctx context.Context, force bool) (halted bool, err error) {
	if l.cfg.Libvirt == nil {
		m, err := l.haltingNow()
		if err != nil {
			return false, err
		}
		return l.haltAndEnd(ctx, force, m.Halt, m.Proceed, m.Quit)
	}
	err = l.onDomain(ctx, func(_ *libvirt.Host, m *libvirt.Machine) error {
		halted, err = l.haltAndEnd(ctx, force, m.Suspend, m.Resume, m.Stop)
		return err
	})
	return halted, err
}

func (l *life) haltAndEnd(ctx context.Context, force bool, halt, proceed, end func(context.Context) error) (halted bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, turnOffLimit)
	defer cancel()
	if err := halt(ctx); err != nil {
		return true, err
	}
	l.site.o.passes("the guest is halted")
	if err := l.caughtUp(ctx); err != nil && !force {
		again, cancel := context.WithTimeout(context.WithoutCancel(ctx), lookLimit)
		defer cancel()
		back := proceed(again)
		return back != nil, errors.Join(fault.New(fault.RewindRefused, "rewind "+l.cfg.Ref(), "the disks hold what the history does not: %v", err), back)
	}
	err = end(ctx)
	return err != nil, err
}

// lookLimit bounds the questions to a libvirtd, and the wait for a QEMU to let go.
const lookLimit = 30 * time.Second

// turnOffLimit bounds the end of a tapped machine, with the cycle that is closed before.
const turnOffLimit = 2 * markPatience

// caughtUp is nil once the newest point is what the disks of a guest that stands still
// hold.
func (l *life) caughtUp(ctx context.Context) error {
	if err := l.unfollowed(ctx, true); err != nil {
		return err
	}
	r := l.reigning()
	if r == nil {
		return errDetached
	}
	ctx, cancel := context.WithTimeoutCause(ctx, markPatience, errors.New("no cycle was closed meanwhile"))
	defer cancel()
	return r.tracker.atPoint(ctx, func(context.Context) error { return nil })
}

// autostart has libvirtd start the domain with its host, or not, if it did before the
// rewind: not from disks that are half-way.
func (l *life) autostart(ctx context.Context, t tappedMachine, on bool) error {
	if !t.Autostart {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	err := l.onDomain(ctx, func(_ *libvirt.Host, m *libvirt.Machine) error { return m.SetAutostart(ctx, on) })
	if err != nil {
		return fmt.Errorf("set autostart of the domain: %w", err)
	}
	return nil
}

// startTapped starts a domain that was turned off for a rewind, or lets it go on.
func (l *life) startTapped(ctx context.Context, t tappedMachine) error {
	if l.cfg.Libvirt == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, turnOffLimit)
	defer cancel()
	h, err := libvirt.Connect(ctx, l.cfg.Libvirt.URI)
	if err != nil {
		return err
	}
	defer h.Close()
	m, err := h.Machine(ctx, t.Domain)
	if errors.Is(err, tap.ErrNoDomain) && t.Definition != "" {
		return h.CreateTransient(ctx, t.Definition)
	}
	if err != nil {
		return err
	}
	switch state, err := m.State(ctx); {
	case err != nil:
		return err
	case state == tap.StateOff, state == tap.StateCrashed:
		return m.Create(ctx)
	case state == tap.StatePaused:
		return m.Resume(ctx)
	}
	return nil
}

// letGoOn has a guest go on that a rewind has halted and not ended: the daemon died in
// between, or its end failed. Nothing of its disks was changed. Only the rewind itself, by,
// may undo what one that is under way has halted.
func (l *life) letGoOn(ctx context.Context, by *rewinding) error {
	l.starting.Lock()
	defer l.starting.Unlock()
	var was stoppedFor
	if _, err := l.j.Recall(stoppedKey, &was); err != nil || !was.Halted || was.Tapped == nil || !l.taps() {
		return err
	}
	l.mu.Lock()
	other := l.rewinding != nil && l.rewinding != by // looked at after what it may have noted
	l.mu.Unlock()
	if other {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	went, err := l.proceedHalted(ctx)
	if err != nil {
		return fmt.Errorf("let the guest go on that was halted for a rewind: %w", err)
	}
	if went {
		l.site.o.Log.Warn("a guest that was halted for a rewind, and not ended, goes on; the rewind is given up", "group", l.cfg.Ref())
	}
	was.Halted = false
	return l.j.Remember(stoppedKey, was)
}

// proceedHalted is nil once the machine does not stand still; qemu.ErrMonitor: it is off,
// or does not answer now.
func (l *life) proceedHalted(ctx context.Context) (went bool, err error) {
	if l.cfg.Libvirt == nil {
		m, err := l.haltingNow()
		if err != nil {
			return false, err
		}
		if went, err = m.Stands(ctx); went {
			err = m.Proceed(ctx)
		}
		return went, err
	}
	err = l.onDomain(ctx, func(_ *libvirt.Host, m *libvirt.Machine) error {
		state, err := m.State(ctx)
		if went = err == nil && state == tap.StatePaused; went {
			err = m.Resume(ctx)
		}
		return err
	})
	if errors.Is(err, tap.ErrNoDomain) { // it was transient, and has ended
		err = nil
	}
	return went, err
}

// images asks the tapped machine where its disks lie.
func (t *tapping) images(ctx context.Context) (map[cbt.VolumeID]qemu.Image, error) {
	m, ok := t.halting()
	if !ok {
		return nil, qemu.ErrMonitor
	}
	return m.Images(ctx)
}

// haltingNow is the tracker of the plain QEMU whose disks are tapped now.
func (l *life) haltingNow() (*qemu.Tracker, error) {
	r := l.reigning()
	if r == nil || r.tracker == nil {
		return nil, errDetached
	}
	m, ok := r.tracker.halting()
	if !ok {
		return nil, qemu.ErrMonitor
	}
	return m, nil
}

// halting is a tracker of a machine that can be ended through its monitor.
func (t *tapping) halting() (*qemu.Tracker, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f, ok := t.tracker.(*fleet); ok && len(f.trackers) == 1 {
		return f.trackers[0], true
	}
	return nil, false
}
