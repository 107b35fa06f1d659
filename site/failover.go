package site

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/recovery/evidence"
	"github.com/novacron/afterimage/recovery/witness"
	"github.com/novacron/afterimage/replicator"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// Failover implements control.API. It goes on to its end even if the caller goes
// away: half a promotion helps nobody.
func (s *Site) Failover(ctx context.Context, q control.FailoverRequest, progress func(control.Progress)) (control.FailedOver, error) {
	what := "fail over " + q.Group
	l, release, err := s.forFailover(ctx, q)
	if err != nil {
		return control.FailedOver{}, err
	}
	defer release()
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	defer context.AfterFunc(l.ctx, func() { cancel(errDetached) })()
	if err := l.claimFailover(); err != nil {
		return control.FailedOver{}, err
	}
	defer l.releaseFailover()
	c, err := l.resumption(ctx, q)
	if err != nil {
		return control.FailedOver{}, explain(what, err)
	}
	if c != nil {
		if q.Expect != "" && q.Expect != c.plan.Digest {
			return control.FailedOver{Plan: c.plan}, stale(what, c.plan)
		}
		return l.resume(ctx, q, c, progress)
	}
	plan, err := l.plan(ctx, q)
	if err != nil {
		return control.FailedOver{}, explain(what, err)
	}
	if q.Expect != "" && q.Expect != plan.Digest {
		return control.FailedOver{Plan: planOf(plan)}, stale(what, planOf(plan))
	}
	if plan.Policy, err = policyOf(q, s.o.Now()); err != nil {
		return control.FailedOver{Plan: planOf(plan)}, err
	}
	if err := l.unattended(what, plan, q); err != nil {
		return control.FailedOver{Plan: planOf(plan)}, err
	}
	f, err := l.failoverOf(plan, q, progress)
	if err != nil {
		return control.FailedOver{Plan: planOf(plan)}, explain(what, err)
	}
	if _, err := plan.Order(q.Operator, q.Force); err == nil {
		if err := l.j.Remember(planKey, plan); err != nil {
			return control.FailedOver{Plan: planOf(plan)}, explain(what, err)
		}
	}
	o, err := f.Run(ctx)
	out := outcomeOf(o)
	defer closeMachine(o.Machine)
	if err != nil {
		if o.Stands() && l.reigning() == nil { // what stands is played by the next life
			l.hand(coronation{err: err})
		}
		out.Report = l.reportFailed(o, "-failed")
		return out, l.failedStep(what, plan, o, err)
	}
	if out.Report, err = l.report(o, ""); err != nil {
		s.o.Log.Error("report of the failover not written", "group", l.cfg.Ref(), "err", err)
	}
	s.o.Log.Warn("group failed over", "group", l.cfg.Ref(), "epoch", out.Epoch, "point", o.Plan.Point.String(), "lost_writes", out.Loss.Writes,
		"rto_seconds", out.RTOSeconds, "operator", o.Operator, "forced", o.Reign.Forced, "unfenced", o.Unfenced)
	return out, nil
}

// stale refuses a plan that is not the one that was confirmed.
func stale(what string, now control.Plan) error {
	return fault.New(fault.PlanStale, what, "since the plan was shown the point, the head or what speaks against it has changed").With(now)
}

func (l *life) claimFailover() error {
	select {
	case <-l.settled: // else play would take what this begins for what an earlier life left
	case <-l.ctx.Done():
		return fault.New(fault.GroupFailed, "fail over "+l.cfg.Ref(), "it is being closed").Advise("Try again in a moment.")
	}
	l.mu.Lock()
	if l.failover {
		l.mu.Unlock()
		return fault.New(fault.OperationBusy, "fail over "+l.cfg.Ref(), "a failover of it is under way")
	}
	l.failover = true
	end := l.upkeeping
	l.mu.Unlock()
	if end != nil { // the point must not be thinned between its plan and its promotion
		end()
	}
	return nil
}

func (l *life) releaseFailover() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failover = false
}

// failoverOf wires a plan to this group.
func (l *life) failoverOf(plan recovery.Plan, q control.FailoverRequest, progress func(control.Progress)) (recovery.Failover, error) {
	f := recovery.Failover{Plan: plan, Operator: q.Operator, Force: q.Force, History: l.promoting(), Serve: l.serveEpoch, Now: l.site.o.Now, Fence: l.prove(q),
		Step: func(t recovery.StepTime) { progress(stepProgress(t)) }}
	f.Right = func() error {
		if !l.guard.holds() {
			return fmt.Errorf("the right of the witness to run %s: %w", l.cfg.Ref(), witness.ErrLost)
		}
		return nil
	}
	if plan.Tail != nil {
		f.Tail = l.tailOf(plan, q, progress)
	}
	for _, p := range plan.Peers {
		if p.Reachable {
			f.Announce = l.announce
		}
	}
	if plan.Machine == "" {
		return f, nil
	}
	m := l.machine(l.cfg.Machine)
	f.Machine = &m
	f.Start = func(ctx context.Context, uris map[string]string) (*recovery.Running, error) {
		return l.ensure(ctx, m, uris)
	}
	f.Health = healthOf(l.cfg.Machine)
	return f, nil
}

func stepProgress(t recovery.StepTime) control.Progress {
	text := string(t.Name)
	switch {
	case t.Error != "":
		text += " failed"
	case t.Detail != "":
		text += " " + t.Detail
	}
	return control.Progress{Step: fmt.Sprintf("%s (%.3f s)", text, t.Seconds)}
}

// serveEpoch makes w's epoch the group's reign and says where its disks are.
func (l *life) serveEpoch(ctx context.Context, w *journal.Writer) (map[string]string, error) {
	r, _, err := recovery.RecallReign(l.j)
	if err != nil {
		return nil, err
	}
	l.setRole(r)
	reign, err := l.crown(ctx, w)
	if err != nil {
		return nil, err
	}
	if !l.hand(coronation{reign: reign}) {
		return nil, errDetached
	}
	return l.urisOf(reign), nil
}

// urisOf says where the disks of a reign are served, or lie.
func (l *life) urisOf(r *reign) map[string]string {
	uris := map[string]string{}
	for _, d := range r.disks {
		switch {
		case d.identity != "":
			uris[d.volume.Name] = recovery.DeviceURI(d.image, d.volume.Size, d.identity)
		case d.image != "":
			uris[d.volume.Name] = recovery.FileURI(d.image)
		default:
			uris[d.volume.Name] = nbdURI("unix", l.site.diskSocket(l.group), l.exportName(d.volume.Name))
		}
	}
	return uris
}

// hand gives c to play, unless the life is over.
func (l *life) hand(c coronation) bool {
	select {
	case l.crowned <- c:
		return true
	case <-l.ctx.Done():
		return false
	}
}

// finishPromotion ends a failover that an earlier life began: its epoch and role
// become what was ordered. The machine is left to whoever repeats the command.
func (l *life) finishPromotion(ctx context.Context) error {
	p, ok, err := recovery.Newest(l.j)
	if err != nil || !ok || p.State != recovery.PromotionBegun {
		return err
	}
	l.site.o.Log.Warn("an interrupted failover is finished", "group", l.cfg.Ref(), "point", p.Order.Point.String(), "operator", p.Order.Operator)
	done, err := recovery.Promote(ctx, l.promoting(), p.Order, l.site.o.Now())
	if err != nil {
		return err
	}
	if p.Order.Rewind { // who comes back finds other disks
		l.rewinds.Add(1)
	}
	l.setRole(done.Reign)
	return nil
}

// announceLimit is how long a failover waits for peers that answer.
const announceLimit = 5 * time.Second

// announce returns once e's first record is durable at every peer that takes it. A
// peer that refuses or is halted is named in the log and not waited for.
func (l *life) announce(ctx context.Context, e journal.Epoch) error {
	ctx, cancel := context.WithTimeout(ctx, announceLimit)
	defer cancel()
	l.site.repl.Refresh()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		var late []string
		for _, lag := range l.site.repl.Lags() {
			takes := lag.State == replicator.StateStreaming || lag.State == replicator.StateOpening
			if lag.Identity == l.id && lag.Direction == replicator.Outbound && takes && lag.Durable.Epoch != e.ID {
				late = append(late, lag.Peer)
			}
		}
		if len(late) == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if context.Cause(ctx) == context.DeadlineExceeded {
				l.site.o.Log.Warn("peers have not taken the new epoch yet", "group", l.cfg.Ref(), "peers", strings.Join(late, ","))
				return nil
			}
			return context.Cause(ctx)
		}
	}
}

// report writes the evidence of a failover below the data directory.
func (l *life) report(o recovery.Outcome, suffix string) (string, error) {
	r := recovery.NewReport(o, l.site.o.Now())
	r.RPO, r.Checks = l.measured("in"), l.failoverChecks(o)
	if o.Machine != nil {
		r.Console = l.machine(l.cfg.Machine).Look(l.ctx)
	}
	return l.site.writeReport(r, evidence.Failover, l.cfg.Ref(), fmt.Sprintf("%s-%s-epoch-%d%s", l.cfg.Tenant, l.cfg.Name, o.Epoch.Number, suffix))
}

// reportFailed writes the report of a failover that failed after its epoch stood: it is
// evidence as much as one that held. What changed nothing leaves none.
func (l *life) reportFailed(o recovery.Outcome, suffix string) string {
	if !o.Stands() {
		return ""
	}
	file, err := l.report(o, suffix)
	if err != nil {
		l.site.o.Log.Error("report of the failed failover not written", "group", l.cfg.Ref(), "err", err)
	}
	return file
}

// outcomeOf is an outcome as it is told.
func outcomeOf(o recovery.Outcome) control.FailedOver {
	out := control.FailedOver{Plan: planOf(o.Plan), Unfenced: o.Unfenced, Proof: o.Proof, RTOSeconds: o.RTOSeconds, Times: map[string]float64{}, Exports: []control.Export{}}
	if o.Stands() {
		out.Epoch = o.Epoch.Number
	}
	for _, t := range o.Steps {
		out.Times[string(t.Name)] = t.Seconds
	}
	for _, name := range slices.Sorted(maps.Keys(o.URIs)) {
		out.Exports = append(out.Exports, control.Export{Volume: name, URI: o.URIs[name]})
	}
	if m := o.Machine; m != nil {
		out.Started, out.QMP, out.Serial, out.PID = true, m.QMP, m.Serial, m.PID
		for _, x := range m.All() {
			if len(m.Besides) > 0 {
				out.Machines = append(out.Machines, control.MachineStarted{Name: x.Name, PID: x.PID, QMP: x.QMP, Serial: x.Serial, Adopted: x.Adopted})
			}
		}
	}
	return out
}
