package site

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/qemu"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/site/config"
)

// openCaptured opens the disks that the configuration names: images that this
// site serves, and disks of a machine that are tapped.
func (l *life) openCaptured(ctx context.Context, r *reign) error {
	var tapped []qemu.Disk
	domain, parts := make(map[string]cbt.Volume), partsOf(l.j)
	for _, c := range l.cfg.Volumes {
		v := volumeOf(l.cfg, c)
		part, known := parts[v.ID]
		delete(parts, v.ID)
		if known && c.Embedded == nil {
			v.Size = part.Size // it was resized since; the tracker asks the disk
		}
		if part.Left && c.Libvirt != nil {
			r.disks = append(r.disks, &disk{volume: v, kind: kindDomain})
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
			tapped = append(tapped, qemu.Disk{Volume: v, Node: c.QEMU.Node})
			r.disks = append(r.disks, &disk{volume: v, kind: kindTapped})
		case c.Libvirt != nil:
			domain[c.Libvirt.Target] = v
			r.disks = append(r.disks, &disk{volume: v, kind: kindDomain})
		}
	}
	if l.cfg.Libvirt != nil {
		if err := l.plugged(ctx, r, domain, parts); err != nil {
			return err
		}
		if err := l.firstLook(ctx, r, domain); err != nil {
			return err
		}
		r.plugs = newPlugs(l, r, domain)
	}
	if len(tapped) == 0 && r.plugs == nil {
		return nil
	}
	return l.openTracker(r, tapped)
}

// plugged adds to a domain's disks, by target, the others that were captured last, or
// ends their part in the group where the configuration does not want them any more.
func (l *life) plugged(ctx context.Context, r *reign, disks map[string]cbt.Volume, others map[cbt.VolumeID]journal.Part) error {
	for _, part := range others {
		switch {
		case part.Left:
		case l.cfg.Libvirt.Disks == config.DisksAll && targetOf(l.cfg, part.Name) != "":
			disks[targetOf(l.cfg, part.Name)] = part.Volume
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
// there is of them.
func (l *life) openJournaled(ctx context.Context, r *reign) error {
	volumes, err := headVolumes(l.j)
	if err != nil {
		return fmt.Errorf("list volumes: %w", err)
	}
	for _, v := range volumes {
		d, err := l.openFromJournal(ctx, r, v)
		if err != nil {
			return fmt.Errorf("open volume %s: %w", v.Name, err)
		}
		r.disks = append(r.disks, d)
	}
	return nil
}

func (l *life) openTracker(r *reign, disks []qemu.Disk) error {
	log := l.site.o.Log.With("group", l.cfg.Ref())
	o := qemu.Options{Name: l.trackerName(), Disks: disks, Sink: l.watch(r), Memory: l.j,
		Every: l.cfg.Cycle(), StallBudget: time.Duration(l.cfg.StallBudget), Heartbeat: l.site.watchdog.heartbeat(), Log: log,
		Resize: l.resized(r),
		Events: qemu.Events{
			StateChanged: stateLogger(log),
			BytesRead:    func(_ cbt.VolumeID, n int64) { l.site.meters.resynced(l.cfg, n) },
		}}
	var err error
	if l.cfg.Libvirt != nil {
		err = l.throughLibvirt(r, &o)
	} else {
		q := l.cfg.QEMU
		o.QMP, o.ReadServer, o.WatchdogQMP = q.QMP, q.NBD, q.Watchdog
		o.Dir = filepath.Join(l.site.tapDir(), o.Name.Short())
		err = os.MkdirAll(o.Dir, 0o700)
	}
	if err != nil {
		return err
	}
	var p pause
	if _, err := l.j.Recall(pauseKey, &p); err != nil {
		return fmt.Errorf("recall pause: %w", err)
	}
	r.tracker, err = newTapping(p, l.site.o.Now, func(p pause) error { return l.j.Remember(pauseKey, p) }, func() (cbt.Tracker, error) {
		if r.plugs != nil {
			o.Disks = r.plugs.tapped()
		}
		o.Incarnation = cbt.Incarnation(cbt.NewID()) // a name of an earlier tracker's export is never answered
		return qemu.New(o)
	})
	return err
}

// trackerName is that of the group's tracker: of its first volume, if the configuration
// names one.
func (l *life) trackerName() cbt.ID {
	if len(l.cfg.Volumes) > 0 {
		return cbt.ID(volumeOf(l.cfg, l.cfg.Volumes[0]).ID)
	}
	return named("disks of", l.cfg.Tenant, l.cfg.Name)
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
