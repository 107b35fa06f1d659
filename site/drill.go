package site

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/recovery/domain"
	"github.com/novacron/afterimage/recovery/evidence"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// drill is a group's machine over scratch disks, isolated. What it writes lies in
// files without a name, and its directory (drillDir) is known before its machine is
// started: after any end of this process the next one finds it and takes it away.
type drill struct {
	group   *group
	view    *view
	machine recovery.Machine
	running *recovery.Running
	health  string
	failed  recovery.StepName
	console recovery.Console // as it was last seen
	times   []recovery.StepTime
	began   time.Time

	stop  context.CancelCauseFunc // ends its beginning
	begun chan struct{}           // closed when that is over, however
	ended sync.Once
	left  error // of its end
}

// drillLimit bounds the end of a drill.
const drillLimit = 30 * time.Second

func (s *Site) drillsDir() string { return filepath.Join(s.cfg.Data, "d") }

func (s *Site) drillDir(g *group) string {
	return filepath.Join(s.drillsDir(), machineID(g))
}

// drillNote is what a drill's directory says of it.
type drillNote struct {
	Group   string    `json:"group"`
	Machine string    `json:"machine"`
	Began   time.Time `json:"began"`
	Libvirt string    `json:"libvirt,omitempty"` // the libvirtd that runs it
	Sockets string    `json:"sockets,omitempty"` // the directory of its sockets there
}

const drillNoteFile = "drill.json"

// beginDrill starts the group's machine, isolated, as of at. A drill that fails on its
// way is taken away again; what it came to is returned with the error, nil if it came to
// nothing.
func (s *Site) beginDrill(ctx context.Context, g *group, at string, progress func(recovery.StepTime)) (*drill, error) {
	what := "test a failover of " + g.cfg.Ref()
	c := g.cfg.Machine
	if c == nil {
		return nil, fault.New(fault.MachineAbsent, what, "the group names no machine here").Advise("Add machine: to the group; its disks alone are shown by view serve --scratch.")
	}
	d := &drill{group: g, began: s.o.Now(), begun: make(chan struct{})}
	beginning, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	d.stop = stop
	var err error
	if d.machine, err = s.machineFor(g, c).Isolated(s.drillDir(g)); err != nil {
		return nil, explain(what, err)
	}
	if err := s.enterDrill(d); err != nil {
		return nil, err
	}
	err = s.runDrill(beginning, d, at, progress)
	close(d.begun)
	if err != nil {
		left := s.endDrill(context.WithoutCancel(ctx), d)
		return d, errors.Join(explain(what, err), left)
	}
	return d, nil
}

// enterDrill makes d the group's only one, and its directory durable.
func (s *Site) enterDrill(d *drill) error {
	what := "test a failover of " + d.group.cfg.Ref()
	s.mu.Lock()
	_, taken := s.drills[d.group.cfg.Ref()]
	if !taken {
		s.drills[d.group.cfg.Ref()] = d
	}
	s.mu.Unlock()
	if taken {
		return fault.New(fault.OperationBusy, what, "a drill of it is under way")
	}
	err := s.noteDrill(d)
	if err != nil {
		close(d.begun)
		s.leaveDrill(d)
		return fault.Wrap(fault.FileTrouble, what, err)
	}
	return nil
}

func (s *Site) leaveDrill(d *drill) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.drills, d.group.cfg.Ref())
}

func (s *Site) noteDrill(d *drill) error {
	for _, m := range d.machine.Each() {
		if err := os.MkdirAll(m.Dir, 0o700); err != nil {
			return err
		}
		note := drillNote{Group: d.group.cfg.Ref(), Machine: m.Name, Began: d.began}
		if d.group.hosted() {
			note.Libvirt, note.Sockets = d.group.cfg.Machine.Libvirt.URI, machineSockets(d.group, drillPrefix)
		}
		b, err := json.Marshal(note)
		if err == nil {
			err = os.WriteFile(filepath.Join(m.Dir, drillNoteFile), b, 0o600)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// runDrill opens the scratch view, starts the machine on it and waits for its health.
func (s *Site) runDrill(ctx context.Context, d *drill, at string, progress func(recovery.StepTime)) error {
	step := func(name recovery.StepName, do func() (string, error)) error {
		began := s.o.Now()
		detail, err := do()
		t := recovery.StepTime{Name: name, Began: began, Seconds: s.o.Now().Sub(began).Seconds(), Detail: detail}
		if err != nil {
			t.Error, d.failed = err.Error(), name
		}
		d.times = append(d.times, t)
		progress(t)
		return err
	}
	uris := map[string]string{}
	err := step(recovery.StepServe, func() (string, error) {
		// The view is the drill's, not the caller's, who may leave before its end.
		q := control.ServeRequest{Group: d.group.cfg.Ref(), At: at, Scratch: true}
		owner := 0
		if d.group.hosted() {
			var err error
			if q.Listen, owner, err = socketFor(d.group, drillPrefix); err != nil {
				return "", err
			}
		}
		v, err := s.serve(context.WithoutCancel(ctx), q)
		if err != nil {
			return "", err
		}
		d.view = v
		if owner != 0 {
			if err := os.Chown(q.Listen, owner, -1); err != nil {
				return "", err
			}
		}
		for _, x := range v.Exports {
			uris[x.Volume] = x.URI
		}
		return fmt.Sprintf("%d volumes as of %s over scratch files", len(uris), seqText(v.Point)), nil
	})
	if err != nil {
		return err
	}
	err = step(recovery.StepStart, func() (_ string, err error) {
		if err := s.defineDrill(ctx, d); err != nil {
			return "", err
		}
		if d.running, err = d.machine.Ensure(ctx, uris); err != nil {
			return "", err
		}
		return d.running.Told() + ", isolated", nil
	})
	h := healthOf(d.group.cfg.Machine)
	if err != nil || !d.machine.Waits(h) {
		return err
	}
	return step(recovery.StepHealth, func() (_ string, err error) {
		d.health, err = d.running.Healthy(ctx, h)
		return d.health, err
	})
}

// defineDrill gives machines that libvirtd runs their definitions as of the drill's point.
func (s *Site) defineDrill(ctx context.Context, d *drill) error {
	if !d.group.hosted() {
		return nil
	}
	l, release, err := s.open(ctx, d.group)
	if err != nil {
		return err
	}
	defer release()
	configured := d.group.cfg.Machine.Each()
	for i, m := range d.machine.Each() {
		text, err := l.definitionAt(d.view.at, configured[i])
		if err != nil {
			return err
		}
		m.Host.(*domain.Runner).Definition = func(context.Context) (string, error) { return text, nil }
	}
	return nil
}

// drillOf is the group's drill, nil if there is none.
func (s *Site) drillOf(g *group) *drill {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.drills[g.cfg.Ref()]
}

// endDrill takes everything of d away, once; what could not be is the error's to name.
func (s *Site) endDrill(ctx context.Context, d *drill) error {
	d.stop(errStopping)
	<-d.begun
	d.ended.Do(func() { d.left = s.takeAway(ctx, d) })
	return d.left
}

func (s *Site) takeAway(ctx context.Context, d *drill) error {
	if d.running != nil {
		d.console = d.machine.Look(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, drillLimit)
	defer cancel()
	closeMachine(d.running)
	err := d.machine.End(ctx)
	if d.view != nil {
		d.view.close(errClosed)
		<-d.view.done
	}
	if err == nil && d.group.hosted() {
		err = os.RemoveAll(machineSockets(d.group, drillPrefix))
	}
	for _, m := range d.machine.Each() {
		if err == nil { // while a machine lives its directory is how it is found
			err = os.RemoveAll(m.Dir)
		}
	}
	s.leaveDrill(d)
	if err != nil {
		return fault.Wrap(fault.DrillLeft, "end the drill of "+d.group.cfg.Ref(), err)
	}
	return nil
}

// endDrills ends all drills, at the end of the site.
func (s *Site) endDrills() {
	s.mu.Lock()
	var open []*drill
	for _, d := range s.drills {
		open = append(open, d)
	}
	s.mu.Unlock()
	for _, d := range open {
		if err := s.endDrill(context.Background(), d); err != nil {
			s.o.Log.Error("drill not ended", "group", d.group.cfg.Ref(), "err", err)
		}
	}
}

// sweepDrills takes away what drills of an earlier life left: machines that outlived
// it, and their directories. What cannot be is named by every status.
func (s *Site) sweepDrills() {
	entries, err := os.ReadDir(s.drillsDir())
	if err != nil {
		return // there never was one
	}
	for _, e := range entries {
		dir := filepath.Join(s.drillsDir(), e.Name())
		var note drillNote
		if b, err := os.ReadFile(filepath.Join(dir, drillNoteFile)); err == nil {
			_ = json.Unmarshal(b, &note) // of one cut short the machine was never started
		}
		ctx, cancel := context.WithTimeout(context.Background(), drillLimit)
		left := recovery.Machine{Name: note.Machine, Dir: dir}
		if note.Libvirt != "" {
			left.Host = &domain.Runner{URI: note.Libvirt, Name: note.Machine}
		}
		err := left.End(ctx)
		cancel()
		if err == nil && filepath.IsAbs(note.Sockets) {
			err = os.RemoveAll(note.Sockets)
		}
		if err == nil {
			err = os.RemoveAll(dir)
		}
		if err != nil {
			s.leftover = append(s.leftover, fmt.Sprintf("of a drill of %s, begun %s: %v (%s)", note.Group, note.Began.Format(timeLayout), err, dir))
		}
		s.o.Log.Warn("left-over of a drill taken away", "group", note.Group, "began", note.Began, "dir", dir, "err", err)
	}
}

// TestFailover implements control.API.
func (s *Site) TestFailover(ctx context.Context, q control.DrillRequest, progress func(control.Progress)) (control.Drilled, error) {
	what := "test a failover of " + q.Group
	l, release, err := s.forFailover(ctx, control.FailoverRequest{Group: q.Group})
	if err != nil {
		return control.Drilled{}, err
	}
	defer release()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(l.ctx, func() { cancel(errDetached) })()
	before, cursor := l.untouched(), l.j.Head().Durable.Seq
	d, err := s.beginDrill(ctx, l.group, q.At, func(t recovery.StepTime) { progress(stepProgress(t)) })
	if d == nil {
		return control.Drilled{}, err
	}
	rto := s.o.Now().Sub(d.began)
	left := s.endDrill(context.WithoutCancel(ctx), d)
	checks := []recovery.Check{{Claim: "nothing of the drill is left", Held: left == nil}, {Claim: "role, epoch and branches are as before the drill", Held: l.untouched() == before, Detail: before},
		{Claim: "what the group has received did not go back", Held: l.j.Head().Durable.Seq >= cursor, Detail: fmt.Sprintf("durable up to record %d before, %d after", cursor, l.j.Head().Durable.Seq)}}
	report, rerr := l.drillReport(q, d, rto, checks)
	if rerr != nil {
		s.o.Log.Error("report of the drill not written", "group", l.cfg.Ref(), "err", rerr)
	}
	if err != nil {
		return control.Drilled{}, err
	}
	out := control.Drilled{Group: l.cfg.Ref(), At: q.At, Point: d.view.Point, Machine: d.machine.Called(), RTOSeconds: rto.Seconds(), Health: d.health, Times: map[string]float64{}, Report: report}
	for _, t := range d.times {
		out.Times[string(t.Name)] = t.Seconds
	}
	if left != nil {
		out.Left = []string{left.Error()}
	}
	s.o.Log.Info("drill ended", "group", l.cfg.Ref(), "point", seqText(d.view.Point), "rto_seconds", rto.Seconds(), "operator", q.Operator, "left", out.Left)
	if left != nil {
		return out, explain(what, left)
	}
	return out, nil
}

// untouched is what a drill must not change.
func (l *life) untouched() string {
	r := l.roleNow()
	return fmt.Sprintf("role %s, epoch %s, %d branches", r.Role, l.j.Head().Epoch.Short(), len(l.j.Branches()))
}

func seqText(p control.Point) string { return fmt.Sprintf("#%d.%d", p.Epoch, p.Seq) }

func (l *life) drillReport(q control.DrillRequest, d *drill, rto time.Duration, checks []recovery.Check) (string, error) {
	o := recovery.Outcome{Plan: recovery.Plan{Tenant: l.cfg.Tenant, Group: l.cfg.Name, Identity: l.id, Site: l.site.cfg.Site, At: q.At, Machine: d.machine.Called(), Made: d.began},
		Operator: q.Operator, Steps: d.times, Began: d.began, Failed: d.failed}
	if d.failed == "" {
		o.RTOSeconds = rto.Seconds()
	}
	r := recovery.NewReport(o, l.site.o.Now())
	if d.view != nil {
		r.Outcome.Plan.Point, r.Chain = d.view.at, d.view.chain
	}
	r.Drill, r.Title, r.Checks, r.Console, r.RPO = true, "Drill of "+l.cfg.Name, checks, d.console, l.measured("in")
	return l.site.writeReport(r, evidence.Drill, l.cfg.Ref(), fmt.Sprintf("%s-%s-drill-%s", l.cfg.Tenant, l.cfg.Name, d.began.UTC().Format("20060102-150405.000")))
}
