package site

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// PlanDecision implements control.API.
func (s *Site) PlanDecision(ctx context.Context, q control.DecisionRequest) (control.Decision, error) {
	l, release, err := s.forDecision(ctx, q)
	if err != nil {
		return control.Decision{}, err
	}
	defer release()
	d, err := l.decision(ctx, q)
	return d, explain("plan to "+q.Verb+" "+q.Group, err)
}

func (s *Site) forDecision(ctx context.Context, q control.DecisionRequest) (*life, func(), error) {
	g, err := s.group(q.Group)
	if err != nil {
		return nil, nil, err
	}
	if !s.running() {
		return nil, nil, fault.New(fault.NeedsDaemon, q.Verb+" "+q.Group, "what a failover came to is decided by the daemon")
	}
	return g.await(ctx)
}

// decision is what a decision means now.
func (l *life) decision(ctx context.Context, q control.DecisionRequest) (d control.Decision, err error) {
	r := l.roleNow()
	d = control.Decision{Verb: q.Verb, Group: l.cfg.Ref(), Role: string(r.Role), Epoch: l.j.Head().Number, Steps: []string{}}
	switch q.Verb {
	case control.VerbCommit:
		err = l.commitPlan(&d, r)
	case control.VerbRollback:
		err = l.rollbackPlan(ctx, &d, r)
	case control.VerbReprotect:
		err = l.reprotectPlan(ctx, &d, q)
	case control.VerbResolve:
		err = l.resolvePlan(ctx, &d, q)
	case control.VerbStandDown:
		err = l.standDownPlan(ctx, &d, r)
	case control.VerbRejoin:
		_, err = l.rejoinPlan(ctx, &d)
	default:
		err = fault.New(fault.Usage, "decide about "+q.Group, "there is no verb %q", q.Verb)
	}
	d.Digest = named("decision", q.Verb, q.Keep, l.id.Group.String(), string(r.Stage()), l.j.Head().Epoch.String(), fmt.Sprint(d.Refused)).Short()
	return d, err
}

func (l *life) commitPlan(d *control.Decision, r recovery.Reign) error {
	if r.Can(recovery.ActCommit) != nil {
		return fault.New(fault.RoleForbids, "commit "+d.Group, "the group is %s here, not uncommitted", r.Stage())
	}
	d.Steps = []string{fmt.Sprintf("commit: epoch %d is the trunk; what the old primary holds beyond record %d is a branch when it comes back", r.Epoch, r.From.Seq)}
	for _, peer := range l.cfg.Peers {
		if l.halts(peer) {
			d.Warnings = append(d.Warnings, peer+" has a history of its own: failover reprotect makes it follow this one")
		}
	}
	return nil
}

func (l *life) rollbackPlan(ctx context.Context, d *control.Decision, r recovery.Reign) error {
	what := "roll back " + d.Group
	if r.Can(recovery.ActRollback) != nil {
		return fault.New(fault.RoleForbids, what, "the group is %s here, not uncommitted", r.Stage())
	}
	head := l.j.Head()
	lineage := l.j.Lineage()
	if !lineage.Holds(r.From) {
		return fault.New(fault.RoleForbids, what, "the record that was failed over to is not in the history here any more")
	}
	fork := journal.Point{Position: r.From, Number: epochNumbers(l.j)[r.From.Epoch]}
	if p, err := pointAt(ctx, l.j, fork.Number, fork.Seq); err == nil {
		fork = p
	}
	since, thinned, err := l.givenUp(ctx, fork, head)
	if err != nil {
		return err
	}
	c := pointOf(fork)
	d.Fork, d.Loss = &c, lossOf(since, l.volumeNames())
	d.Branch = &control.Branch{Epoch: r.Epoch, ID: r.ID.String(), Site: l.site.cfg.Site, First: uint64(r.From.Seq) + 1, Last: uint64(head.Seq)}
	if thinned {
		d.Warnings = append(d.Warnings, "the history since was thinned: a block that was written again counts once")
	}
	if m := l.cfg.Machine; m != nil {
		if pid, err := l.machine(m).Process(); err == nil {
			d.Steps = append(d.Steps, fmt.Sprintf("stop: end machine %s (process %d) at once", m.Called(), pid))
		}
	}
	d.Steps = append(d.Steps, fmt.Sprintf("leave: what was written here since is branch #%d.%d, kept and readable", r.Epoch, head.Seq),
		fmt.Sprintf("follow: this site is a replica again from record %d on, of whoever is primary", r.From.Seq))
	return nil
}

// volumeNames are the names of the group's volumes by id.
func (l *life) volumeNames() map[string]string {
	names := map[string]string{}
	vs, err := headVolumes(l.j)
	if err != nil {
		return names // ids are shown
	}
	for _, v := range vs {
		names[v.ID.String()] = v.Name
	}
	return names
}

// lossOf is what a history holds beyond a record, as a loss, never less than the truth:
// where history was thinned its writes are no longer known, only how many records it had.
func lossOf(s journal.Since, names map[string]string) *control.Loss {
	out := &control.Loss{Known: true, Volumes: []control.VolumeLoss{}}
	if !s.First.IsZero() && s.Last.After(s.First) {
		out.Seconds = s.Last.Sub(s.First).Seconds()
	}
	thinned := s.Partly
	for _, v := range s.Volumes {
		thinned = thinned || v.Writes == 0 && v.Fills == 0 && v.Bytes > 0
		name := v.Volume.String()
		if n := names[name]; n != "" {
			name = n
		}
		out.Volumes = append(out.Volumes, control.VolumeLoss{Volume: name, Writes: v.Writes, Bytes: v.Bytes + v.FillBytes})
		out.Writes, out.Bytes = out.Writes+v.Writes, out.Bytes+v.Bytes+v.FillBytes
	}
	if thinned {
		out.Writes = max(out.Writes, s.Records)
	}
	return out
}

// Decide implements control.API.
func (s *Site) Decide(ctx context.Context, q control.DecisionRequest, progress func(control.Progress)) (control.Decision, error) {
	what := q.Verb + " " + q.Group
	l, release, err := s.forDecision(ctx, q)
	if err != nil {
		return control.Decision{}, err
	}
	free := release
	defer func() { free() }()
	d, err := l.decision(ctx, q)
	switch {
	case err != nil:
		return d, explain(what, err)
	case q.Expect != "" && q.Expect != d.Digest:
		return d, fault.New(fault.PlanStale, what, "since the plan was shown the group or what speaks against it has changed").With(d)
	case len(d.Refused) > 0:
		return d, fault.New(fault.RoleForbids, what, "%s", d.Refused[0]).With(d)
	}
	progress(control.Progress{Step: q.Verb})
	before, began := l.roleNow(), s.o.Now()
	switch q.Verb {
	case control.VerbCommit:
		err = l.commit(q.Operator)
	case control.VerbRollback:
		err = l.rollback(context.WithoutCancel(ctx), &d, q.Operator)
	case control.VerbReprotect:
		err = l.reprotect(ctx, &d, q.Operator, q.Peer)
	case control.VerbResolve:
		err = l.resolve(ctx, &d, q)
	case control.VerbStandDown:
		d.Statement, err = s.standDown(ctx, l, free, q.Operator)
		free = func() {}
	case control.VerbRejoin:
		err = l.rejoin(ctx, &d, q.Operator)
	}
	if err != nil {
		return d, explain(what, err)
	}
	d.Done, d.Role = true, string(l.roleNow().Role)
	d.Report = l.decided(d, q.Operator, before, began)
	return d, nil
}

// decided leaves the evidence of a decision that stands.
func (l *life) decided(d control.Decision, operator string, before recovery.Reign, began time.Time) string {
	path, err := l.reportDecision(d, operator, before, began)
	if err != nil {
		l.site.o.Log.Error("report of a decision not written", "group", l.cfg.Ref(), "verb", d.Verb, "err", err)
	}
	return path
}

func (l *life) commit(operator string) error {
	_, err := l.act(func(r recovery.Reign) (recovery.Reign, error) {
		if operator != "" {
			r.Operator = operator
		}
		return r.Commit(l.site.o.Now())
	})
	return err
}

// rollback ends the machine and leaves what the uncommitted reign wrote; d tells how much
// that is, once nobody writes any more.
func (l *life) rollback(ctx context.Context, d *control.Decision, operator string) error {
	if m := l.cfg.Machine; m != nil {
		l.alls.Lock() // until the role says that they are not started any more
		defer l.alls.Unlock()
		ending, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		if err := l.machine(m).End(ending); err != nil {
			return fault.Wrap(fault.MachineTrouble, "roll back "+l.cfg.Ref(), err)
		}
		_ = l.emptied(ending, leaveLimit) // whoever still has a disk open is told by the end of the reign
		l.site.o.passes("machine ended")
	}
	now := control.Decision{Group: d.Group}
	if err := l.rollbackPlan(ctx, &now, l.roleNow()); err != nil {
		return err
	}
	d.Loss, d.Branch = now.Loss, now.Branch
	d.Steps = append(d.Steps[:max(0, len(d.Steps)-len(now.Steps))], now.Steps...)
	_, err := l.act(func(r recovery.Reign) (recovery.Reign, error) {
		left, err := l.leftAt(journal.Cursor{Position: r.From, Chain: r.Chain}, "", operator, "the failover was rolled back")
		if err != nil {
			return r, err
		}
		return r.Rollback(left)
	})
	if err != nil {
		return err
	}
	if m := l.cfg.Machine; m != nil && l.guard != nil { // one that was just being started unordered
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		if err := l.machine(m).End(ending); err != nil {
			l.site.o.Log.Error("machine of a failover that was rolled back not ended", "group", l.cfg.Ref(), "err", err)
		}
	}
	l.next()
	return nil
}

// keepPolicy decides about an uncommitted reign when its time has come. What a restart
// interrupts goes on with the next life: the time is part of the role.
func (l *life) keepPolicy(ctx context.Context) {
	for {
		r := l.roleNow()
		if r.Stage() != recovery.StageUncommitted || r.Policy.Mode != recovery.CommitAuto && r.Policy.Mode != recovery.CommitRollback {
			return
		}
		if wait := r.Policy.At.Sub(l.site.o.Now()); wait > 0 {
			if pauseFor(ctx, min(wait, time.Minute)) != nil { // clocks are set
				return
			}
			continue
		}
		err := l.decideByPolicy(ctx, r)
		if err == nil || errors.Is(err, recovery.ErrNotNow) {
			return
		}
		l.site.o.Log.Error("commit policy not carried out", "group", l.cfg.Ref(), "mode", r.Policy.Mode, "err", err)
		if pauseFor(ctx, askLast) != nil {
			return
		}
	}
}

func (l *life) decideByPolicy(ctx context.Context, r recovery.Reign) error {
	l.site.o.Log.Warn("nobody decided on the failover in time", "group", l.cfg.Ref(), "policy", r.Policy.Mode)
	began := l.site.o.Now()
	d, err := l.decision(ctx, control.DecisionRequest{Verb: string(r.Policy.Mode), Group: l.cfg.Ref()})
	switch {
	case err != nil:
	case r.Policy.Mode == recovery.CommitAuto:
		err = l.commit("")
	default:
		err = l.rollback(context.WithoutCancel(ctx), &d, "commit policy")
	}
	if err == nil {
		l.decided(d, "commit policy", r, began)
	}
	return err
}

// policyOf reads a request's policy.
func policyOf(q control.FailoverRequest, now time.Time) (recovery.Policy, error) {
	mode := recovery.CommitMode(q.Policy)
	known := []recovery.CommitMode{"", recovery.CommitNone, recovery.CommitAuto, recovery.CommitRollback}
	switch {
	case !slices.Contains(known, mode):
		return recovery.Policy{}, fault.New(fault.Usage, "fail over "+q.Group, "there is no commit policy %q", q.Policy).Advise("none, commit or rollback.")
	case mode == "" || mode == recovery.CommitNone:
		return recovery.Policy{}, nil
	case q.PolicySeconds < 0:
		return recovery.Policy{}, fault.New(fault.Usage, "fail over "+q.Group, "a commit policy after %g s", q.PolicySeconds)
	}
	return recovery.Policy{Mode: mode, At: now.Add(time.Duration(q.PolicySeconds * float64(time.Second)))}, nil
}
