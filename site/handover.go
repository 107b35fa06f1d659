package site

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/replicator"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// PlanHandover implements control.API.
func (s *Site) PlanHandover(ctx context.Context, q control.HandoverRequest) (control.HandoverPlan, error) {
	l, release, err := s.forHandover(ctx, q.Group)
	if err != nil {
		return control.HandoverPlan{}, err
	}
	defer release()
	if !l.roleNow().Role.Captures() {
		p, err := l.plead(ctx, q, true)
		return p.Plan, explain("plan to hand over "+q.Group, err)
	}
	p, err := l.handoverPlan(ctx, q)
	return p, explain("plan to hand over "+q.Group, err)
}

func (s *Site) forHandover(ctx context.Context, name string) (*life, func(), error) {
	g, err := s.group(name)
	if err != nil {
		return nil, nil, err
	}
	if !s.running() {
		return nil, nil, fault.New(fault.NeedsDaemon, "hand over "+name, "a handover is done by the daemons of both sites")
	}
	return g.await(ctx)
}

// handoverPlan says what a handover from this site means now.
func (l *life) handoverPlan(ctx context.Context, q control.HandoverRequest) (control.HandoverPlan, error) {
	to, err := l.takerOf(q)
	if err != nil {
		return control.HandoverPlan{}, err
	}
	head := l.j.Head()
	p := control.HandoverPlan{Group: l.cfg.Ref(), From: l.site.cfg.Site, To: to, Head: control.Point{Epoch: head.Number, Seq: uint64(head.Seq), Time: head.Time},
		Loss: control.Loss{Known: true}, Expected: expectedSeconds(l.cfg.Ref(), l.site.measured())}
	p.Steps = []string{
		"drain: no write is taken here any more, until " + to + " holds all, durably",
		"cede: both sites name the record at which their histories end; this site gives the role up, durably",
		"take: " + to + " begins an epoch there and serves the disks",
		"follow: this site is a replica of " + to + " at once",
	}
	switch r := l.roleNow(); {
	case r.Can(recovery.ActDrain) == nil:
	case r.Stage() == recovery.StageCeded:
		p.Refused = append(p.Refused, l.cededText(r.Handover)+". "+l.cededAdvice(r.Handover))
	default:
		p.Refused = append(p.Refused, fmt.Sprintf("the group is %s here; failover commit makes it the trunk", r.Stage()))
	}
	if why := l.conflict().why; why != "" {
		p.Refused = append(p.Refused, "histories exclude each other: "+why)
	}
	lag := lagTo(l.site.lagsOf(l.group), to)
	switch {
	case lag == nil || !lag.Connected || lag.State != replicator.StateStreaming && lag.State != replicator.StateCatchingUp:
		p.Refused = append(p.Refused, to+" takes nothing of the group now: it cannot be handed over")
	default:
		p.Behind, p.Pending = lag.Records, lag.Bytes
	}
	l.planShutdown(ctx, &p, q)
	if l.hasMachine() == "" && q.Quiesce == "" {
		p.Warnings = append(p.Warnings, "whoever writes to the disks here gets errors from then on: shut it down first")
	}
	p.Digest = named("handover", l.id.Group.String(), p.From, p.To, head.Epoch.String(), fmt.Sprint(p.Refused)).Short()
	return p, nil
}

// planShutdown says what becomes of the machine that runs here: it is shut down where
// that was asked for and all that it writes until then will be here, else it is in the way.
func (l *life) planShutdown(ctx context.Context, p *control.HandoverPlan, q control.HandoverRequest) {
	if !q.Shutdown {
		l.planOff(ctx, p)
		return
	}
	name, err := l.runsHere(ctx)
	taps, unknown := l.tapsAny()
	switch err := errors.Join(err, unknown); {
	case err != nil:
		p.Refused = append(p.Refused, err.Error())
	case name == "":
		l.planOff(ctx, p)
	case taps && l.cfg.Cycle() > 0:
		if err := l.canReadEnd(ctx); err != nil {
			p.Refused = append(p.Refused, "machine "+name+": "+err.Error())
			return
		}
		p.Steps = append([]string{"stop: the guest of machine " + name + " is asked to switch itself off", readStep}, p.Steps...)
	default:
		p.Steps = append([]string{"stop: the guest of machine " + name + " is asked to switch itself off; its last writes arrive here"}, p.Steps...)
		r := l.reigning()
		if r == nil && taps {
			p.Refused = append(p.Refused, errNotOpened.Error())
		}
		if r != nil && r.tracker != nil {
			for _, v := range r.tracker.Status() {
				if v.State != cbt.StateSynced {
					p.Refused = append(p.Refused, fmt.Sprintf("volume %s is %s: what the machine writes until it is off would not all be here", v.Volume.Name, v.State))
				}
			}
		}
	}
}

// planOff is planShutdown of a machine that has to be off already.
func (l *life) planOff(ctx context.Context, p *control.HandoverPlan) {
	err := l.writerIsOff(ctx, "")
	if err == nil {
		return
	}
	if l.readsEnd() {
		if _, err = l.writerIsGone(ctx); err == nil {
			err = l.canReadEnd(ctx)
		}
	}
	if err != nil {
		p.Refused = append(p.Refused, err.Error())
		return
	}
	p.Steps = append([]string{readStep}, p.Steps...)
}

// takerOf is the peer that a request names, or the only one.
func (l *life) takerOf(q control.HandoverRequest) (string, error) {
	what := "hand over " + l.cfg.Ref()
	switch {
	case q.To == "" && len(l.cfg.Peers) == 1:
		return l.cfg.Peers[0], nil
	case q.To == "":
		return "", fault.New(fault.Usage, what, "the group has %d peers", len(l.cfg.Peers)).Advise("Say which one takes over: --to SITE.")
	case !slices.Contains(l.cfg.Peers, q.To):
		return "", fault.New(fault.PeerUnknown, what, "%s is no peer of the group", q.To)
	}
	return q.To, nil
}

// Handover implements control.API. Asked at a replica, it has the primary do it.
func (s *Site) Handover(ctx context.Context, q control.HandoverRequest, progress func(control.Progress)) (control.HandedOver, error) {
	what := "hand over " + q.Group
	l, release, err := s.forHandover(ctx, q.Group)
	if err != nil {
		return control.HandedOver{}, err
	}
	if !l.roleNow().Role.Captures() {
		defer release()
		out, err := l.pleadAndWait(ctx, q, progress)
		return out, explain(what, err)
	}
	m, plan, err := l.beginMove(ctx, cbt.NewID(), q, progress)
	if err != nil {
		release()
		return control.HandedOver{HandoverPlan: plan}, err
	}
	go func() {
		defer release() // the life may end now
		l.startMove(m, plan)
	}()
	return l.group.awaitMove(ctx, what, m, plan)
}

// startMove stops the machine, where that was asked for, and makes the handover durable;
// the next life carries it out. It goes on though whoever asked has gone away.
func (l *life) startMove(m *move, plan control.HandoverPlan) {
	var err error
	if m.request.Shutdown {
		err = m.timed(l.site.o.Now, recovery.StepStop, func() (string, error) { return l.shutDown(l.ctx, m) })
	}
	if err == nil && l.readsEnd() {
		err = m.timed(l.site.o.Now, recovery.StepRead, func() (string, error) { return l.readEnd(l.ctx, m.step) })
	}
	if err == nil {
		h := recovery.Handover{ID: m.id, To: plan.To, Operator: m.request.Operator, Since: l.site.o.Now(), NoMachine: m.request.NoMachine}
		err = l.beginDrain(h)
	}
	if err != nil {
		l.site.o.Log.Warn("handover not begun", "group", l.cfg.Ref(), "to", plan.To, "err", err)
		m.end(control.HandedOver{}, err)
		if r := l.reigning(); r != nil {
			l.startWithdrawn(l.ctx, r)
		}
		return
	}
	l.next()
}

// beginDrain makes a handover durable while nobody starts the machine: one of an earlier
// handover may have switched itself off late, and have been started since the plan.
func (l *life) beginDrain(h recovery.Handover) error {
	l.starting.Lock()
	defer l.starting.Unlock()
	if err := l.writerIsOff(l.ctx, ""); err != nil {
		return err
	}
	_, err := l.act(func(r recovery.Reign) (recovery.Reign, error) { return r.Drain(h) })
	return err
}

// beginMove checks a handover and remembers it in this process; startMove begins it.
func (l *life) beginMove(ctx context.Context, id cbt.ID, q control.HandoverRequest, progress func(control.Progress)) (*move, control.HandoverPlan, error) {
	what := "hand over " + l.cfg.Ref()
	if q.Quiesce != "" {
		if err := l.quiesceForMove(ctx, q); err != nil {
			return nil, control.HandoverPlan{}, explain(what, err)
		}
	}
	plan, err := l.handoverPlan(ctx, q)
	switch {
	case err != nil:
		return nil, plan, explain(what, err)
	case q.Expect != "" && q.Expect != plan.Digest:
		return nil, plan, fault.New(fault.PlanStale, what, "since the plan was shown the group or what speaks against it has changed").With(plan)
	case len(plan.Refused) > 0:
		return nil, plan, fault.New(fault.HandoverTrouble, what, "%s", plan.Refused[0]).With(plan)
	}
	patience := drainPatience
	if q.Patience > 0 {
		patience = time.Duration(q.Patience * float64(time.Second))
	}
	m := &move{id: id, patience: patience, request: q, step: progress, began: l.site.o.Now(), over: make(chan struct{})}
	if l.moves() {
		return nil, plan, fault.New(fault.OperationBusy, what, "a handover of it is under way")
	}
	l.group.mu.Lock()
	l.move = m
	l.group.mu.Unlock()
	return m, plan, nil
}

// awaitMove waits until a handover is over. Who goes away leaves it going on.
func (g *group) awaitMove(ctx context.Context, what string, m *move, plan control.HandoverPlan) (control.HandedOver, error) {
	select {
	case <-m.over:
	case <-ctx.Done():
		return control.HandedOver{HandoverPlan: plan}, fault.Wrap(fault.Interrupted, what, context.Cause(ctx)).Advise("It goes on; group show tells how it ended.")
	}
	out := m.out
	out.HandoverPlan = plan
	var away *awayError
	switch {
	case errors.As(m.err, &away):
		return out, fault.Wrap(fault.HandoverTrouble, what, m.err).Advise("%s", away.advice).With(plan)
	case m.err != nil:
		return out, fault.Wrap(fault.HandoverTrouble, what, m.err).Advise("Nothing changed: this site is primary as before.").With(plan)
	}
	return out, nil
}

// quiesceForMove marks an application-consistent point as the last one.
func (l *life) quiesceForMove(ctx context.Context, q control.HandoverRequest) error {
	r := l.reignOf(ctx)
	if r == nil {
		return fault.New(fault.NotPrimary, "quiesce "+l.cfg.Ref(), "the group does not capture here now")
	}
	name := "handover-" + l.site.o.Now().UTC().Format("20060102T150405.000")
	_, err := l.site.Mark(ctx, control.MarkRequest{Group: q.Group, Name: name, App: true, Note: "before a planned failover"})
	return err
}
