package site

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/qemu"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/site/config"
)

// guestTap is a machine whose disks are captured.
type guestTap struct {
	config.Tap
	disks  []qemu.Disk           // of a QEMU
	domain map[string]cbt.Volume // of a domain, by target
	plugs  *plugs                // of a domain
	own    bool                  // started by a failover here, with disks that became local
}

// openCaptured opens the disks that the configuration names: images that this
// site serves, and disks of machines that are tapped.
func (l *life) openCaptured(ctx context.Context, r *reign) error {
	if err := l.settleDrives(ctx, r); err != nil {
		return err
	}
	var taps []*guestTap
	by := make(map[string]*guestTap)
	for _, t := range l.cfg.Taps() {
		m := &guestTap{Tap: t, domain: make(map[string]cbt.Volume)}
		taps, by[t.Guest] = append(taps, m), m
	}
	parts := partsOf(l.j)
	for _, c := range l.cfg.Volumes {
		v := volumeOf(l.cfg, c)
		part, known := parts[v.ID]
		delete(parts, v.ID)
		if known && c.Embedded == nil {
			v.Size = part.Size // it was resized since; the tracker asks the disk
		}
		if part.Left && c.Libvirt != nil {
			r.disks = append(r.disks, &disk{volume: v, kind: kindDomain, guest: c.Machine})
			continue // it joins when the domain has it again
		}
		if err := r.writer.AddVolume(ctx, v); err != nil {
			return fmt.Errorf("add volume %s: %w", v.Name, err)
		}
		switch {
		case c.Embedded != nil:
			d, err := l.openImage(ctx, r, v, c.Embedded.Image)
			if err != nil {
				return fmt.Errorf("open volume %s: %w", v.Name, err)
			}
			r.disks = append(r.disks, d)
		case c.QEMU != nil:
			m := by[c.Machine]
			m.disks = append(m.disks, qemu.Disk{Volume: v, Node: c.QEMU.Node})
			r.disks = append(r.disks, &disk{volume: v, kind: kindTapped, guest: c.Machine})
		case c.Libvirt != nil:
			by[c.Machine].domain[c.Libvirt.Target] = v
			r.disks = append(r.disks, &disk{volume: v, kind: kindDomain, guest: c.Machine})
		}
	}
	if err := l.openDomains(ctx, r, taps, parts); err != nil {
		return err
	}
	taps = slices.DeleteFunc(taps, func(m *guestTap) bool { return len(m.disks) == 0 && m.plugs == nil })
	if len(taps) == 0 {
		return nil
	}
	return l.openTrackers(ctx, r, taps)
}

// openDomains settles which disks of domains are captured to begin with; others are
// the volumes that the configuration does not name.
func (l *life) openDomains(ctx context.Context, r *reign, taps []*guestTap, others map[cbt.VolumeID]journal.Part) error {
	domains := slices.DeleteFunc(slices.Clone(taps), func(m *guestTap) bool { return m.Libvirt == nil })
	if len(domains) == 0 {
		return nil
	}
	if err := l.plugged(ctx, r, domains, others); err != nil {
		return err
	}
	for _, m := range domains {
		if err := l.firstLook(ctx, r, m); err != nil {
			return err
		}
		m.plugs = newPlugs(l, r, m.Tap, m.domain)
		r.plugs = append(r.plugs, m.plugs)
	}
	return nil
}

// plugged adds to the disks of domains the others that were captured last, or
// ends their part in the group where the configuration does not want them any more.
func (l *life) plugged(ctx context.Context, r *reign, domains []*guestTap, others map[cbt.VolumeID]journal.Part) error {
	for _, part := range others {
		all := slices.IndexFunc(domains, func(m *guestTap) bool {
			return m.Libvirt.Disks == config.DisksAll && targetOf(l.cfg, m.Guest, part.Name) != ""
		})
		switch {
		case part.Left:
		case all >= 0:
			domains[all].domain[targetOf(l.cfg, domains[all].Guest, part.Name)] = part.Volume
		default:
			if err := r.writer.LeaveVolume(ctx, part.ID); err != nil {
				return fmt.Errorf("let volume %s leave: %w", part.Name, err)
			}
			l.site.o.Log.Warn("a volume has left: the configuration does not name it", "group", l.cfg.Ref(), "volume", part.Name)
		}
	}
	return nil
}

// openJournaled opens the disks of the history: after a failover the journal is all
// there is of them, but for those that became local.
func (l *life) openJournaled(ctx context.Context, r *reign) error {
	volumes, err := headVolumes(l.j)
	if err != nil {
		return fmt.Errorf("list volumes: %w", err)
	}
	local, err := l.pivotedNow(l.roleNow())
	if err != nil {
		return err
	}
	tap := &guestTap{}
	for _, v := range volumes {
		if d, ok := local.local(v.ID); ok {
			if err := l.openLocal(r, v, d, tap); err != nil {
				return err
			}
			continue
		}
		d, err := l.openFromJournal(ctx, r, v)
		if err != nil {
			return fmt.Errorf("open volume %s: %w", v.Name, err)
		}
		r.disks = append(r.disks, d)
	}
	if len(tap.disks) == 0 {
		return nil
	}
	return l.openTrackers(ctx, r, []*guestTap{tap})
}

// openTrackers makes what taps the machines: one tracker each, that share the writer.
func (l *life) openTrackers(ctx context.Context, r *reign, taps []*guestTap) error {
	sink := l.watch(r)
	var guests []string
	var options []qemu.Options
	for _, m := range taps {
		o, err := l.tapOptions(r, m, sink)
		if err == nil && m.Guest != "" && m.QEMU != nil {
			err = l.describeGuest(ctx, r, m.Tap)
		}
		if err != nil {
			return err
		}
		guests, options = append(guests, m.Guest), append(options, o)
	}
	var p pause
	if _, err := l.j.Recall(pauseKey, &p); err != nil {
		return fmt.Errorf("recall pause: %w", err)
	}
	var err error
	again := p.at(l.site.o.Now())
	r.tracker, err = newTapping(p, l.site.o.Now, func(p pause) error { return l.j.Remember(pauseKey, p) }, func() (cbt.Tracker, error) {
		if again && (r.tracker == nil || !r.tracker.holding()) { // what runs while it holds is on the disks, which are read
			if err := l.ranUnseen(); err != nil {
				return nil, err
			}
		}
		again = true
		for i, m := range taps {
			if m.plugs != nil {
				options[i].Disks = m.plugs.tapped()
			}
			options[i].Incarnation = cbt.Incarnation(cbt.NewID()) // a name of an earlier tracker's export is never answered
		}
		return newFleet(guests, options)
	})
	return err
}

// tapOptions is how one machine is tapped.
func (l *life) tapOptions(r *reign, m *guestTap, sink cbt.Sink) (qemu.Options, error) {
	log := l.site.o.Log.With("group", l.cfg.Ref())
	if m.Guest != "" {
		log = log.With("machine", m.Guest)
	}
	o := qemu.Options{Name: l.trackerName(m.Guest), Disks: m.disks, Sink: sink, Memory: l.j,
		Every: l.cfg.Cycle(), StallBudget: time.Duration(l.cfg.StallBudget), Heartbeat: l.site.watchdog.heartbeat(m.own), Log: log,
		Resize: l.resized(r),
		Events: qemu.Events{
			StateChanged: stateLogger(log),
			RanOn:        l.ranOn,
			BytesRead:    func(_ cbt.VolumeID, n int64) { l.site.meters.resynced(l.cfg, n) },
		}}
	if m.Libvirt != nil {
		return o, l.throughLibvirt(m, &o)
	}
	o.Events.DiskFound = func(v cbt.VolumeID, i qemu.Image) { l.found(m.QEMU.QMP, v, i) }
	o.QMP, o.ReadServer, o.WatchdogQMP = m.QEMU.QMP, m.QEMU.NBD, m.QEMU.Watchdog
	o.Dir = filepath.Join(l.site.tapDir(), o.Name.Short())
	return o, os.MkdirAll(o.Dir, 0o700)
}

// trackerName is that of a machine's tracker. Of the only one it is that of the group's
// first volume, if the configuration names one.
func (l *life) trackerName(guest string) cbt.ID {
	switch {
	case guest != "":
		return named("disks of machine", l.cfg.Tenant, l.cfg.Name, guest)
	case len(l.cfg.Volumes) > 0:
		return cbt.ID(volumeOf(l.cfg, l.cfg.Volumes[0]).ID)
	}
	return named("disks of", l.cfg.Tenant, l.cfg.Name)
}

// describeGuest records which disks of a machine are which volumes, so that every point
// tells whose they are. A domain's definition, which says more, comes from the tap.
func (l *life) describeGuest(ctx context.Context, r *reign, t config.Tap) error {
	definition, err := json.Marshal(struct {
		Name    string          `json:"name"`
		QEMU    *config.QEMU    `json:"qemu"`
		Volumes []config.Volume `json:"volumes"`
	}{t.Guest, t.QEMU, t.Volumes})
	if err != nil {
		return err
	}
	if err := r.writer.Machine(ctx, t.Guest, definition); err != nil {
		return fmt.Errorf("record machine %s: %w", t.Guest, err)
	}
	return nil
}

// resized takes over a disk's new size. A smaller one is refused: what is cut off would
// be lost to every point that is yet to come, and nobody shrinks a disk by accident
// without wanting it back.
func (l *life) resized(r *reign) func(context.Context, cbt.Volume) error {
	return func(ctx context.Context, v cbt.Volume) error {
		part := partsOf(l.j)[v.ID]
		if v.Size < part.Size {
			return fmt.Errorf("the disk has shrunk from %d to %d bytes, which is not taken over: grow it again, or configure it as another volume", part.Size, v.Size)
		}
		if err := r.writer.AddVolume(ctx, v); err != nil {
			return err
		}
		l.site.o.Log.Info("a disk was resized", "group", l.cfg.Ref(), "volume", v.Name, "from", part.Size, "to", v.Size)
		return nil
	}
}

// stateLogger logs a volume's state when it is another one than before: a tracker
// also tells of every attempt that changes nothing.
func stateLogger(log *slog.Logger) func(cbt.VolumeStatus) {
	var mu sync.Mutex // guards last
	last := map[cbt.VolumeID]cbt.VolumeStatus{}
	return func(v cbt.VolumeStatus) {
		mu.Lock()
		defer mu.Unlock()
		was := last[v.Volume.ID]
		last[v.Volume.ID] = v
		if was.State != v.State || was.Cause != v.Cause || was.Detail != v.Detail {
			log.Info("capture state", "volume", v.Volume.Name, "state", v.State, "cause", v.Cause, "detail", v.Detail)
		}
	}
}

// track runs the tracker; its errors are such that no retry of its own cures.
func (l *life) track(ctx context.Context, r *reign) error {
	if err := r.tracker.Run(ctx); err != nil && ctx.Err() == nil {
		return fmt.Errorf("tap machine: %w", err)
	}
	return nil
}

// groupLabels are the labels of a group's metrics.
func groupLabels(g config.Group) []string { return []string{g.Tenant, g.Name} }
