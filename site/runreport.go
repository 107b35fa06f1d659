package site

import (
	"context"

	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/recovery/evidence"
	"github.com/novacron/afterimage/recovery/runbook"
)

// seen is what a drill of a run was when it was taken away. It
// outlives no process: a run that was resumed after its drill's end shows none.
type seen struct {
	console recovery.Console
	point   string
	chain   string
}

// keep keeps what was seen of a drill that has ended.
func (d *stepDriver) keep(x *drill) {
	c := seen{console: x.console}
	if x.view != nil {
		c.point, c.chain = x.view.at.String(), x.view.chain.String()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.seen == nil {
		d.seen = map[string]seen{}
	}
	d.seen[x.group.cfg.Ref()] = c
}

// reportRun writes the report of a run that is over.
func (s *Site) reportRun(ctx context.Context, r *runbook.Run, state runbook.State, d *stepDriver) (string, error) {
	out := runbook.NewReport(*r, state, s.cfg.Site, s.o.Now())
	// A group's own drills and failovers have entries of their own; this one stands for
	// all of the run's, so that a rehearsal by runbook is one.
	e := evidence.Entry{Kind: evidence.Run, Name: "run-" + r.ID, Held: out.Held(), RTOSeconds: out.RTO, Steps: map[string]float64{}}
	if r.Plan.Mode == runbook.Test {
		e.Kind = evidence.Drill
	}
	for _, a := range r.Plan.Actions {
		if a.Step.Kind == runbook.Start {
			m := s.machineOfRun(ctx, r, a, d)
			out.Machines, e.Groups = append(out.Machines, m), append(e.Groups, m.Group)
		}
		e.Steps[a.Key()] = out.Steps[a.ID].Seconds
	}
	return s.enterReport(out, e)
}

// machineOfRun is what a run made of one group's machine.
func (s *Site) machineOfRun(ctx context.Context, r *runbook.Run, a runbook.Action, d *stepDriver) runbook.ReportMachine {
	m := runbook.ReportMachine{Machine: a.Step.Machine, Group: a.Group}
	g, err := s.group(a.Group)
	if err != nil {
		m.Why = err.Error()
		return m
	}
	m.Group = g.cfg.Ref()
	if r.Plan.Mode == runbook.Test {
		d.mu.Lock()
		c := d.seen[m.Group]
		d.mu.Unlock()
		m.Point, m.Chain, m.Picture, m.Text, m.Why = c.point, c.chain, c.console.Picture, c.console.Text, c.console.Why
		return m
	}
	l, release, err := g.use()
	if err != nil {
		m.Why = err.Error()
		return m
	}
	defer release()
	if x, ok, err := l.machineHere(ctx); err == nil && ok {
		c := x.Look(ctx)
		m.Picture, m.Text, m.Why = c.Picture, c.Text, c.Why
	}
	now := l.roleNow()
	if r.Plan.Mode != runbook.Unplanned && !now.Handed.IsZero() {
		m.Point, m.Chain, m.Loss = now.From.String(), now.Chain.String(), &runbook.Loss{Known: true}
		return m
	}
	m.Point, m.Chain = now.From.String(), now.Chain.String()
	var p recovery.Plan
	if known, err := l.j.Recall(planKey, &p); err == nil && known && p.Point.Position == now.From {
		m.Point = p.Point.String()
		m.Loss = &runbook.Loss{Known: p.Loss.Known, Seconds: p.Loss.Seconds, Writes: p.Loss.Writes, Bytes: p.Loss.Bytes}
	}
	return m
}
