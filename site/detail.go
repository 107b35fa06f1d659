package site

import (
	"context"
	"errors"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
)

// Group implements control.API.
func (s *Site) Group(ctx context.Context, name string) (control.GroupDetail, error) {
	g, err := s.group(name)
	if err != nil {
		return control.GroupDetail{}, err
	}
	d := control.GroupDetail{Group: s.groupStatus(ctx, g), ID: g.id.Group.String(), Dir: g.dir, Sync: string(g.cfg.Sync), Stall: time.Duration(g.cfg.StallBudget).Seconds(),
		Configured: string(g.cfg.Role), Volumes: []control.Volume{}, Lineage: []control.Interval{}, Branches: []control.Branch{}}
	for i, l := range d.Lags {
		d.Lags[i].Recent = s.rpo.tell(rpoKey{d.Tenant, d.Name, l.Peer, l.Direction}, s.o.Now())
	}
	s.machineOf(g, &d)
	d.Conflict = g.conflict().why
	d.Timing = measuredOf(g.cfg.Ref(), s.measured())
	d.Retention = retentionTold(g.cfg)
	d.Maintenance, d.Holds, _ = g.upkeep.look()
	l, release, err := s.look(g)
	if err != nil {
		for _, v := range g.cfg.Volumes {
			d.Volumes = append(d.Volumes, control.Volume{Name: v.Name, ID: volumeOf(g.cfg, v).ID.String(), Size: int64(v.Size), Kind: kindOf(v), Machine: v.Machine})
		}
		return d, nil // the line says why
	}
	defer release()
	d.Usage = usageOf(l.j.Usage())
	d.Others = l.othersTold()
	if d.Pins, err = l.pins(); err != nil {
		return d, explain("list pins of "+g.cfg.Ref(), err)
	}
	if d.Skipped, err = l.skipped(ctx, false); err != nil {
		return d, explain("list what was skipped of "+g.cfg.Ref(), err)
	}
	lineage := l.j.Lineage()
	for _, i := range lineage {
		d.Lineage = append(d.Lineage, control.Interval{Epoch: i.Number, ID: i.Epoch.String(), First: uint64(i.First), Last: uint64(i.Last)})
	}
	head := l.j.Head().Epoch
	for _, b := range l.j.Branches() {
		current := b.ID == head
		for _, i := range lineage {
			current = current || i.Epoch == b.ID
		}
		told := branchOf(b)
		told.Current = current
		d.Branches = append(d.Branches, told)
	}
	return d, l.volumes(ctx, &d)
}

// branchOf is an epoch as it is told.
func branchOf(b journal.Branch) control.Branch {
	return control.Branch{Epoch: b.Number, ID: b.ID.String(), Site: b.Site, Begun: b.Begun, First: uint64(b.First()), Last: uint64(b.Last.Seq)}
}

// machineOf says which machine a failover here starts, and whether it runs.
func (s *Site) machineOf(g *group, d *control.GroupDetail) {
	if g.cfg.Machine == nil {
		return
	}
	d.Machine = g.cfg.Machine.Called()
	seen := map[string]int{}
	for _, m := range s.machineFor(g, g.cfg.Machine).Each() {
		x := control.MachineSeen{Name: m.Name, State: control.MachineRuns}
		var err error
		switch x.PID, err = m.Process(); {
		case err == nil && d.MachinePID == 0:
			d.MachinePID = x.PID
		case errors.Is(err, recovery.ErrNotRunning):
			x.State = control.MachineOff
		case err != nil:
			x.State = control.MachineUnknown
			s.o.Log.Warn("look for the machine", "group", g.cfg.Ref(), "machine", m.Name, "err", err)
		}
		if g.hosted() && x.State == control.MachineRuns {
			x.Renamed = m.Alias(context.Background())
		}
		seen[x.State]++
		d.Seen = append(d.Seen, x)
	}
	switch {
	case len(seen) == 1:
		d.MachineState = d.Seen[0].State
	case seen[control.MachineRuns] > 0:
		d.MachineState = control.MachinePartly
	default: // one is off, and nobody can tell of another one
		d.MachineState = control.MachineUnknown
	}
	if len(d.Seen) == 1 {
		d.Seen = nil
	}
}

// retentionTold is how a group's history is kept, in the configuration's words.
func retentionTold(c config.Group) control.Retention {
	r := control.Retention{History: []control.Rung{}, Lock: time.Duration(c.Lock).Seconds(), Quota: int64(c.Quota), Every: time.Duration(c.Maintenance.Every).Seconds(), Rate: int64(c.Maintenance.Rate)}
	for _, g := range c.History {
		r.History = append(r.History, control.Rung{Every: g.Every.String(), For: g.For.String()})
	}
	for _, w := range c.Warn {
		r.Warn = append(r.Warn, int(w))
	}
	return r
}

func kindOf(v config.Volume) string {
	switch {
	case v.Embedded != nil:
		return kindEmbedded
	case v.QEMU != nil:
		return kindTapped
	case v.Libvirt != nil:
		return kindDomain
	}
	return kindReplica
}

// Words for control.Volume.Kind.
const (
	kindEmbedded = "embedded"  // served from an image file
	kindTapped   = "tapped"    // of a machine whose QEMU mirrors it here
	kindDomain   = "libvirt"   // of a domain that libvirt runs
	kindReplica  = "replica"   // received
	kindJournal  = "journaled" // served from the journal, after a failover
)

// captureByWrite, captureByCopy and captureByBitmap are the ways in which disks are tapped.
const (
	captureByWrite  = "per write"
	captureByCopy   = "per write, by block copy"
	captureByBitmap = "by bitmap cycles"
)

// tellCapture says how a tapped disk is followed, and what that cost.
func (l *life) tellCapture(v *control.Volume, kind string, st cbt.VolumeStatus) {
	v.Detail = st.Detail
	if st.State == cbt.StateSynced { // cause and detail are those of the last break
		v.Cause, v.Detail = "", ""
	}
	if kind != kindTapped && kind != kindDomain {
		return
	}
	v.Capture, v.Since = captureByWrite, st.Since
	for _, t := range l.cfg.Taps() {
		if kind == kindDomain && t.Guest == v.Machine && t.Libvirt != nil && t.Libvirt.Passthrough == config.PassthroughForbidden {
			v.Capture = captureByCopy
		}
	}
	v.Mode, v.ModeSince, v.ModeWhy, v.Effect = string(st.Mode), st.ModeSince, st.ModeWhy, st.Mode.Effect()
	if every := l.cfg.Cycle(); every > 0 {
		v.Capture = captureByBitmap
		v.Cycles = &control.Cycles{EverySeconds: every.Seconds(), Points: st.Cycles.Points, Refused: st.Cycles.Refused, LongestPause: st.Cycles.Longest.Seconds()}
	}
	if a := st.Answers; a != nil && a.Count > 0 {
		v.Added = &control.Added{Writes: a.Count, P50: a.Quantile(0.5).Seconds(), P99: a.Quantile(0.99).Seconds(), Max: a.Most.Seconds()}
	}
	if r := st.Resync; !r.Began.IsZero() {
		v.Resync = &control.Resync{Full: r.Full, Why: r.Why, ToRead: r.BytesToRead, Read: r.BytesRead, Journaled: r.BytesJournaled, Running: r.Ended.IsZero()}
	}
}

// volumes lists the disks: those that are captured, else those of the history.
func (l *life) volumes(ctx context.Context, d *control.GroupDetail) error {
	if r := l.reigning(); r != nil {
		states := map[cbt.VolumeID]cbt.VolumeStatus{}
		for _, v := range l.volumeStates() {
			states[v.Volume.ID] = v
		}
		for _, k := range r.captured(states) {
			st := states[k.volume.ID]
			v := control.Volume{Name: k.volume.Name, ID: k.volume.ID.String(), Size: k.volume.Size, Kind: k.kind, Machine: k.guest, State: string(st.State), Cause: string(st.Cause)}
			l.tellCapture(&v, k.kind, st)
			var err error
			if v.Local, err = l.localOf(k.volume.ID); err != nil {
				return err
			}
			if k.device != nil {
				v.Export = nbdURI("unix", l.site.cfg.NBD, l.exportName(k.volume.Name))
			}
			d.Volumes = append(d.Volumes, v)
		}
		return nil
	}
	head, err := headVolumes(l.j)
	if err != nil {
		return explain("list volumes of "+l.cfg.Ref(), err)
	}
	for _, v := range head {
		d.Volumes = append(d.Volumes, control.Volume{Name: v.Name, ID: v.ID.String(), Size: v.Size, Kind: kindReplica})
	}
	return ctx.Err()
}
