package site

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/libvirt"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/recovery/domain"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// A captured domain has disks of its own. When its group is handed back to its site they
// hold what they held when the machine was shut down there, and the history has gone on:
// before anybody may write, they are brought to the head, whole, and read back; then
// Reign.Own says so, durably, and the domain is captured as it was before. Until then
// nothing of it is open here, and libvirtd does not start it with its host. Interrupted anywhere, it is done again from the start.

// atHome reports that what runs from the group's disks here is, or will be, the domain
// that is captured, and not a machine that is made of the history.
func (l *life) atHome() bool {
	return l.cfg.Libvirt != nil && (!l.roleNow().Role.Captures() || !l.servesJournal())
}

// comesHome reports that the group was handed to this site and that the domain's own
// disks are behind the head.
func (l *life) comesHome() bool {
	r := l.roleNow()
	return l.cfg.Libvirt != nil && r.Role == recovery.Primary && !r.Handed.IsZero() && !r.Own
}

// machineHere is the machine that runs from the group's disks at this site, or would;
// ok is false where there is none.
func (l *life) machineHere(ctx context.Context) (m recovery.Machine, ok bool, err error) {
	switch {
	case l.atHome():
		m, err = l.ownDomain(ctx)
		return m, err == nil, err
	case l.cfg.Machine != nil:
		return l.machine(l.cfg.Machine), true, nil
	}
	return m, false, nil
}

// hasMachine names what machineHere is, "" for none.
func (l *life) hasMachine() string {
	switch {
	case l.atHome():
		return l.cfg.Libvirt.Domain
	case l.cfg.Machine != nil:
		return l.cfg.Machine.Called()
	}
	return ""
}

// home is the captured domain; where several are one group, nobody's.
func (l *life) home() config.Tap { return config.Tap{Group: l.cfg} }

// ownPatience bounds a question to libvirtd about the domain.
const ownPatience = 10 * time.Second

// ownDomain is the captured domain as a machine. Its owner's definition stays as it is.
func (l *life) ownDomain(ctx context.Context) (recovery.Machine, error) {
	c := l.cfg.Libvirt
	r := &domain.Runner{URI: c.URI, Name: c.Domain, Own: true}
	if c.Passthrough == config.PassthroughAllowed {
		r.Pictures = filepath.Join(c.Sockets, l.trackerName("").Short())
	}
	m := recovery.Machine{Name: c.Domain, Dir: filepath.Join(l.site.cfg.Data, "m", machineID(l.group)), Host: r}
	if _, err := l.j.Recall(domainKey(l.home()), &m.UUID); err != nil {
		return m, err
	}
	if m.UUID != "" {
		return m, nil
	}
	ctx, cancel := context.WithTimeout(ctx, ownPatience)
	defer cancel()
	uuid, err := r.Identify(ctx)
	m.UUID = uuid
	return m, err
}

// memorySaved is why the disks of a domain that is off are not written to.
const memorySaved = "the domain's memory is saved, and its next start would restore that over other disks: start it and shut it down, or virsh managedsave-remove"

// definedDisks are the disks that the domain's definition names for the volumes at the
// head, by their ids: what can be written to, whosever it is.
func (l *life) definedDisks(ctx context.Context) (map[string]recovery.Drive, error) {
	ctx, cancel := context.WithTimeout(ctx, ownPatience)
	defer cancel()
	var in libvirt.Inspection
	err := l.named(l.home(), func(name string) (err error) {
		in, err = libvirt.Inspect(ctx, l.cfg.Libvirt.URI, name)
		return err
	})
	if err != nil {
		return nil, err
	}
	if in.Runs() {
		return nil, fault.New(fault.PrimaryAlive, "write to the disks of "+l.cfg.Libvirt.Domain, "the domain is %s", in.State).Advise("Shut it down; what it wrote since the group went away is in no history.")
	}
	if in.Saved {
		return nil, fault.New(fault.ImageTrouble, "write to the disks of "+l.cfg.Libvirt.Domain, "%s", memorySaved)
	}
	volumes, err := headVolumes(l.j)
	if err != nil {
		return nil, err
	}
	out := map[string]recovery.Drive{}
	for _, v := range volumes {
		target := targetOf(l.cfg, "", v.Name)
		for _, c := range l.cfg.Volumes {
			if c.Name == v.Name && c.Libvirt != nil {
				target = c.Libvirt.Target
			}
		}
		i := slices.IndexFunc(in.Disks, func(k libvirt.InspectedDisk) bool { return k.Target == target && k.Writable })
		if i < 0 {
			return nil, fault.New(fault.ImageTrouble, "write to the disks of "+l.cfg.Libvirt.Domain, "it has no disk %s for volume %s", target, v.Name)
		}
		k := in.Disks[i]
		if k.Image == "" {
			return nil, fault.New(fault.ImageTrouble, "write to the disks of "+l.cfg.Libvirt.Domain, "disk %s (%s) is shared, transient, encrypted, a slice, or no file or block device of this host", target, k.Source)
		}
		d := recovery.Drive{Path: k.Image, Format: k.Format}
		if k.Size != 0 && k.Size != v.Size {
			return nil, fault.New(fault.ImageTrouble, "write to the disks of "+l.cfg.Libvirt.Domain, "disk %s has %d bytes, volume %s has %d", target, k.Size, v.Name, v.Size).
				Advise("Resize the image with qemu-img resize to the volume's size.")
		}
		if err := d.Check(); err != nil {
			return nil, fault.Wrap(fault.ImageTrouble, "write to the disks of "+l.cfg.Libvirt.Domain, err)
		}
		out[v.ID.String()] = d
	}
	return out, nil
}

// bringHome makes the domain's disks hold the head, and remembers that they do. All are
// held open meanwhile, so that nobody starts the domain from some of them.
func (l *life) bringHome(ctx context.Context, w *journal.Writer) error {
	disks, err := l.homeDisks(ctx)
	if err != nil {
		return err
	}
	if err := l.holdAutostart(ctx); err != nil {
		return err
	}
	began := l.site.o.Now()
	drives, err := openAll(ctx, disks, 0)
	if err == nil {
		err = errors.Join(l.levelHome(ctx, w, drives), drives.close())
	}
	if err != nil {
		return fault.Wrap(fault.ImageTrouble, "write to the disks of "+l.cfg.Libvirt.Domain, err)
	}
	l.site.o.passes("disks brought home")
	_, err = l.patiently(ctx, func(r recovery.Reign) (recovery.Reign, error) {
		r.Own = true
		return r, nil
	})
	if err != nil {
		return err
	}
	l.site.o.Log.Info("the domain's own disks are the group's again", "group", l.cfg.Ref(), "seconds", l.site.o.Now().Sub(began).Seconds())
	if err := l.autostartBack(ctx); err != nil { // who reigns tries again
		l.site.o.Log.Error("the domain does not start with its host any more", "group", l.cfg.Ref(), "err", err)
	}
	return nil
}

// holdAutostart keeps libvirtd from starting the domain with its host while its disks are
// half-way to the head. That it is owed back is durable first.
func (l *life) holdAutostart(ctx context.Context) error {
	t, err := l.lookAtTapped(ctx)
	if err != nil {
		return err
	}
	if t.Autostart, err = l.autostartOwed(t); err != nil || !t.Autostart {
		return err
	}
	var note stoppedFor
	if _, err := l.j.Recall(stoppedKey, &note); err != nil {
		return err
	}
	if note.Tapped == nil || note.Tapped.Domain != t.Domain {
		note = stoppedFor{Since: l.site.o.Now(), Tapped: &t}
	}
	note.Tapped.Autostart = true
	if err := l.j.Remember(stoppedKey, note); err != nil {
		return err
	}
	return l.autostart(ctx, t, false)
}

func (l *life) levelHome(ctx context.Context, w *journal.Writer, drives openDrives) error {
	volumes, err := headVolumes(l.j)
	if err != nil {
		return err
	}
	for _, v := range volumes {
		d := drives[v.ID.String()]
		if d == nil {
			return fmt.Errorf("%w: volume %s has none", recovery.ErrDrive, v.Name)
		}
		wrote, err := d.Level(ctx, v.Size, func(ctx context.Context, p []byte, off int64) error { return w.ReadHead(ctx, v.ID, off, p) }, func(string, int64, int64) {})
		if err != nil {
			return fmt.Errorf("volume %s: %w", v.Name, err)
		}
		l.site.o.Log.Info("a disk of the domain is level with the history", "group", l.cfg.Ref(), "image", d.Path, "written", wrote)
	}
	return nil
}

// shutPatience is how long a guest may take to switch itself off, where nobody said.
const shutPatience = 3 * time.Minute

// shutKey is where the site log keeps the machine that was shut down for a handover.
const shutKey = "handover/stopped"

// shutFor is why a machine is off: it is started again where the handover does not come about.
type shutFor struct {
	Handover cbt.ID    `json:"handover,omitzero"` // zero: none is to be started
	Machine  string    `json:"machine,omitempty"`
	Since    time.Time `json:"since,omitzero"`
	// Seen is when it was first found running after nobody waited for its end any more.
	Seen time.Time `json:"seen,omitzero"`
}

// stays reports that a guest which was told to switch itself off, and runs, will not do so
// any more. Until then it has to be looked after: nobody else would start it again.
func (w shutFor) stays(now time.Time) bool {
	return !w.Seen.IsZero() && now.Sub(w.Seen) >= shutPatience
}

// errMayGo says that a machine runs, and may not for long.
var errMayGo = errors.New("it may still be switching itself off")

// runsHere names the machine that runs from the group's disks here, "" for none.
func (l *life) runsHere(ctx context.Context) (string, error) {
	m, ok, err := l.machineHere(ctx)
	if err != nil || !ok {
		return "", err
	}
	_, err = m.Process()
	switch {
	case errors.Is(err, recovery.ErrNotRunning):
		return "", nil
	case err != nil:
		return "", fmt.Errorf("look for machine %s: %w", m.Name, err)
	}
	return m.Called(), nil
}

// shutDown asks the machine's guest to switch itself off for a handover and waits until
// the last of its writes is here, or, of one that is captured in cycles, on its disks. That
// it was us is durable first.
func (l *life) shutDown(ctx context.Context, m *move) (detail string, err error) {
	name, err := l.runsHere(ctx)
	if err != nil || name == "" {
		return "no machine runs here", err
	}
	patience := shutPatience
	if s := m.request.ShutdownSeconds; s > 0 {
		patience = time.Duration(s * float64(time.Second))
	}
	m.step(control.Progress{Step: "stop: shut machine " + name + " down"})
	if err := l.forgetStarts(); err != nil {
		return "", err
	}
	if err := l.j.Remember(shutKey, shutFor{Handover: m.id, Machine: name, Since: l.site.o.Now()}); err != nil {
		return "", fmt.Errorf("remember that machine %s is shut down: %w", name, err)
	}
	l.site.o.passes("machine is to be shut down")
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	mach, _, err := l.machineHere(ctx)
	if err == nil {
		err = mach.Shutdown(ctx)
	}
	for err == nil {
		tapped, last := l.writerIsGone(ctx)
		if last == nil && tapped {
			last = l.ended(ctx, l.readsEnd())
		}
		if last == nil && ctx.Err() == nil {
			break
		}
		if werr := pauseFor(ctx, askFirst); werr != nil {
			err = errors.Join(werr, last)
		}
	}
	l.site.o.passes("machine is off")
	if err != nil {
		return "", fmt.Errorf("shut machine %s down: %w", name, err)
	}
	return "machine " + name + " has switched itself off", nil
}

// startShut starts a machine again that was shut down for a handover which did not come
// about.
func (l *life) startShut(ctx context.Context) error {
	l.starting.Lock()
	defer l.starting.Unlock()
	var was shutFor
	if ok, err := l.j.Recall(shutKey, &was); err != nil || !ok || was.Handover.IsZero() {
		return err
	}
	if s := l.roleNow().Stage(); s == recovery.StageDraining || s == recovery.StageCeded {
		return nil // of another handover, whose end is waited for
	}
	m, ok, err := l.machineHere(ctx)
	r := l.reigning()
	if err != nil || !ok || r == nil {
		return err
	}
	running, err := l.ensureUnasked(ctx, m, l.urisOf(r))
	if err != nil {
		return err
	}
	if now := l.site.o.Now(); running.AnyAdopted() && !was.stays(now) {
		err := running.Close()
		if was.Seen.IsZero() {
			was.Seen = now
			err = errors.Join(err, l.j.Remember(shutKey, was))
		}
		return errors.Join(errMayGo, err)
	}
	l.site.o.Log.Warn("a machine that was shut down for a handover runs again", "group", l.cfg.Ref(), "machine", m.Called(), "handover", was.Handover.Short())
	return errors.Join(running.Close(), l.j.Remember(shutKey, shutFor{}))
}

// startWithdrawn is startShut beside a reign: of a handover that was withdrawn, or that
// died with an earlier life.
func (l *life) startWithdrawn(ctx context.Context, r *reign) {
	for wait := askFirst; ctx.Err() == nil; wait = min(2*wait, renewLast) {
		if l.moves() { // it is being shut down
			_ = pauseFor(ctx, askLast)
			continue
		}
		var was shutFor
		_, err := l.j.Recall(shutKey, &was)
		if err == nil && !was.Handover.IsZero() && l.moveOf(was.Handover) == nil && !l.untilTold(ctx, r, was.Machine) {
			return
		}
		if err == nil {
			err = l.startShut(ctx)
		}
		if err == nil || ctx.Err() != nil {
			return
		}
		if errors.Is(err, errMayGo) {
			l.site.o.Log.Info("a machine that was told to switch itself off for a handover runs", "group", l.cfg.Ref(), "err", err)
		} else {
			l.site.o.Log.Error("a machine that was shut down for a handover did not start again", "group", l.cfg.Ref(), "err", err)
		}
		_ = pauseFor(ctx, wait) // the loop sees that ctx ended
	}
}

// moves reports that this process carries a handover out.
func (g *group) moves() bool {
	g.mu.Lock()
	m := g.move
	g.mu.Unlock()
	return m != nil && !m.isOver()
}

// forgetShut takes back what a machine that is gone for good left: its definition, where
// it was made of the history, and the intent to start it again.
func (l *life) forgetShut(ctx context.Context) error {
	if l.hosted() && !l.atHome() {
		ctx, cancel := context.WithTimeout(ctx, leaveLimit)
		defer cancel()
		if err := l.machine(l.cfg.Machine).End(ctx); err != nil {
			return err
		}
	}
	var was shutFor
	if ok, err := l.j.Recall(shutKey, &was); err != nil || !ok || was.Handover.IsZero() {
		return err
	}
	return l.j.Remember(shutKey, shutFor{})
}
