package site

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
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
	if r := l.roleNow(); r.Can(recovery.ActDrain) != nil {
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
	if err := l.writerIsOff(ctx, q.Quiesce); err != nil {
		p.Refused = append(p.Refused, err.Error())
	}
	if l.cfg.Machine == nil && q.Quiesce == "" {
		p.Warnings = append(p.Warnings, "whoever writes to the disks here gets errors from then on: shut it down first")
	}
	p.Digest = named("handover", l.id.Group.String(), p.From, p.To, head.Epoch.String(), fmt.Sprint(p.Refused)).Short()
	return p, nil
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

// writerIsOff is nil if no machine can write to disks that are captured from outside:
// what it wrote after the drain would be lost. Disks that this site serves are shut by
// the drain itself.
func (l *life) writerIsOff(ctx context.Context, quiesce string) error {
	if m := l.cfg.Machine; m != nil {
		if pid, err := l.machine(m).Process(); err == nil {
			return fmt.Errorf("machine %s runs here (process %d): shut it down first", m.Name, pid)
		}
	}
	r := l.reigning()
	if r == nil || r.tracker == nil {
		return nil
	}
	for _, v := range r.tracker.Status() {
		off := v.Cause == cbt.CauseMachine || v.Cause == cbt.CauseTapEnded
		if v.State == cbt.StateSynced || v.State == cbt.StateSyncing || v.State == cbt.StateAttaching || !off {
			return fmt.Errorf("the machine of volume %s runs (%s): shut it down first; its last writes arrive then", v.Volume.Name, v.State)
		}
	}
	return l.endedWhole(ctx)
}

// endedWhole is nil if every volume was followed up to its machine's end.
func (l *life) endedWhole(ctx context.Context) error {
	hs, err := l.j.Happenings(ctx, time.Time{}, time.Time{})
	if err != nil {
		return err
	}
	gaps := map[cbt.VolumeID]cbt.Cause{}
	for _, h := range hs {
		switch h.Kind {
		case journal.KindSynced:
			delete(gaps, h.Volume)
		case journal.KindGap:
			if gaps[h.Volume] == "" {
				gaps[h.Volume] = h.Cause
			}
		}
	}
	for _, v := range l.cfg.Volumes {
		switch cause := gaps[volumeOf(l.cfg, v).ID]; cause {
		case "", cbt.CauseMachine, cbt.CauseTapEnded:
		default:
			return fmt.Errorf("volume %s was not followed to its machine's end (%s): start the machine, wait until it is synced, shut it down", v.Name, cause)
		}
	}
	return nil
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
	release() // the life ends now
	if err != nil {
		return control.HandedOver{HandoverPlan: plan}, err
	}
	return l.group.awaitMove(ctx, what, m, plan)
}

// beginMove checks a handover and makes it durable; the next life carries it out.
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
	l.group.mu.Lock()
	l.move = m
	l.group.mu.Unlock()
	h := recovery.Handover{ID: m.id, To: plan.To, Operator: q.Operator, Since: m.began}
	if _, err := l.act(func(r recovery.Reign) (recovery.Reign, error) { return r.Drain(h) }); err != nil {
		return nil, plan, explain(what, err)
	}
	l.next()
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
	if m.err != nil {
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

// pleading asks the primary to hand the group over to the asker, or how far that is.
type pleading struct {
	ID      cbt.ID                  `json:"id,omitzero"` // of the handover; the asker chose it
	Request control.HandoverRequest `json:"request"`
	DryRun  bool                    `json:"dry_run,omitempty"`
}

// pleaded is how far a handover is.
type pleaded struct {
	ID    cbt.ID               `json:"id"`
	Plan  control.HandoverPlan `json:"plan"`
	Over  bool                 `json:"over"`
	Error string               `json:"error,omitempty"`
	Out   control.HandedOver   `json:"out"`
	Known bool                 `json:"known"`
}

// pleaded begins a handover to peer, who asked for it.
func (l *life) pleaded(peer string, q pleading) (pleaded, error) {
	q.Request.To, q.Request.Group = peer, l.cfg.Ref()
	ctx, cancel := context.WithTimeout(l.ctx, askLimit)
	defer cancel()
	if q.DryRun {
		plan, err := l.handoverPlan(ctx, q.Request)
		return pleaded{Plan: plan}, declinedBy(err)
	}
	m, plan, err := l.beginMove(ctx, q.ID, q.Request, func(control.Progress) {})
	if err != nil {
		return pleaded{Plan: plan}, declinedBy(err)
	}
	return pleaded{ID: m.id, Plan: plan, Known: true}, nil
}

func declinedBy(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", replicator.ErrDeclined, err)
}

// movesOf tells how far a handover of this process is.
func (g *group) movesOf(id cbt.ID) pleaded {
	m := g.moveOf(id)
	if m == nil {
		return pleaded{ID: id}
	}
	out := pleaded{ID: id, Known: true}
	select {
	case <-m.over:
		out.Over, out.Out = true, m.out
		if m.err != nil {
			out.Error = m.err.Error()
		}
	default:
	}
	return out
}

// plead asks the peer that is primary to hand the group over to this site.
func (l *life) plead(ctx context.Context, q control.HandoverRequest, dry bool) (pleaded, error) {
	if q.To != "" && q.To != l.site.cfg.Site {
		return pleaded{}, fault.New(fault.NotPrimary, "hand over "+l.cfg.Ref(), "the group is a replica here: to hand it to %s, ask there or at the primary", q.To)
	}
	primary, err := l.primaryOf(ctx)
	if err != nil {
		return pleaded{}, err
	}
	if q.Expect != "" && dry {
		q.Expect = ""
	}
	p, err := ask[pleaded](ctx, l, primary, topicPlease, pleading{Request: q, DryRun: dry})
	if err != nil {
		return p, fault.Wrap(fault.HandoverTrouble, "hand over "+l.cfg.Ref(), err)
	}
	return p, nil
}

// primaryOf is the peer that says that it is the group's primary.
func (l *life) primaryOf(ctx context.Context) (string, error) {
	var errs []error
	for _, peer := range l.cfg.Peers {
		once, cancel := context.WithTimeout(ctx, askLimit)
		h, err := ask[heads](once, l, peer, topicHeads, struct{}{})
		cancel()
		if err == nil && h.Role.Captures() {
			return peer, nil
		}
		errs = append(errs, err)
	}
	return "", fault.Wrap(fault.PeerUnreachable, "find the primary of "+l.cfg.Ref(), errors.Join(append(errs, errors.New("no peer says that it is primary"))...)).
		Advise("A planned failover needs the primary. If it is lost, failover unplanned.")
}

// pleadAndWait has the primary hand over and waits until this site reigns, or knows
// that it will not.
func (l *life) pleadAndWait(ctx context.Context, q control.HandoverRequest, progress func(control.Progress)) (control.HandedOver, error) {
	what := "hand over " + l.cfg.Ref()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(l.ctx, func() { cancel(errDetached) })() // the journal is not held open for it
	p, err := l.plead(ctx, q, true)
	if err != nil {
		return control.HandedOver{}, err
	}
	out := control.HandedOver{HandoverPlan: p.Plan}
	id := cbt.NewID()
	_, err = ask[pleaded](ctx, l, p.Plan.From, topicPlease, pleading{ID: id, Request: q})
	if errors.Is(err, replicator.ErrDeclined) {
		return out, fault.Wrap(fault.HandoverTrouble, what, err)
	}
	progress(control.Progress{Step: "asked " + p.Plan.From + " to hand over"}) // an answer that was lost says nothing
	unknown := 0
	for {
		if err := pauseFor(ctx, askFirst); err != nil {
			return out, err
		}
		t, err := l.taken(id)
		if err != nil {
			return out, err
		}
		once, cancel := context.WithTimeout(ctx, askLimit)
		now, err := ask[pleaded](once, l, p.Plan.From, topicProgress, pleading{ID: id})
		cancel()
		switch {
		case err != nil && t.Taken, err == nil && !now.Known && t.Taken:
			out.Epoch = t.Epoch
			return out, nil
		case err != nil:
			continue
		case now.Over && now.Error != "":
			return out, fault.New(fault.HandoverTrouble, what, "%s", now.Error)
		case now.Over:
			now.Out.HandoverPlan = p.Plan
			return now.Out, nil
		case !now.Known:
			if unknown++; unknown > maxUnknown {
				return out, fault.New(fault.HandoverTrouble, what, "%s knows nothing of it: it was restarted, or never heard", p.Plan.From).
					Advise("group show tells who is primary; repeat the command if it is not this site.")
			}
		}
	}
}

// maxUnknown is how often a primary may say that it knows nothing of a handover before
// that is believed: the question that began it may still be on its way.
const maxUnknown = 50
