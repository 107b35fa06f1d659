package site

import (
	"context"
	"fmt"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/recovery"
)

// takenKey is where the site log keeps the promotion of the last handover to this site
// that nothing is left to be done for: its machine runs, and its report is written.
const takenKey = "handover/settled"

// startTaken does beside a reign what a handover has left to do here: the machine is
// started, or found running, and looked at; the report is written; and that is durable.
// A crash before repeats it, which starts no second machine; after it nobody starts a
// machine again that somebody has switched off since.
func (l *life) startTaken(ctx context.Context, r *reign) {
	p, settled, err := l.handedHere()
	if err != nil || settled {
		if err != nil {
			l.site.o.Log.Error("look for a handover to this site", "group", l.cfg.Ref(), "err", err)
		}
		return
	}
	l.mu.Lock()
	now := l.took == p.Order.Handover // else nobody knows how long ago that was
	l.mu.Unlock()
	if p.Order.Machine != "" && !now && !l.untilTold(ctx, r, p.Order.Machine) {
		return
	}
	said := ""
	for wait := askFirst; ctx.Err() == nil; wait = min(2*wait, renewLast) {
		o := l.takenOutcome(p, r)
		err := l.startOrdered(ctx, &o)
		if err == nil {
			err = l.settleTaken(ctx, p, o)
		}
		closeMachine(o.Machine)
		if err == nil || ctx.Err() != nil {
			return
		}
		if err.Error() != said {
			said = err.Error()
			l.site.o.Log.Error("machine of the group that was taken over does not run", "group", l.cfg.Ref(), "machine", p.Order.Machine, "err", err)
		}
		_ = pauseFor(ctx, wait) // the loop sees that ctx ended
	}
}

// handedHere is the promotion of the handover that the reign began with; settled says
// that nothing is left to do for it, or that there was none.
func (l *life) handedHere() (p recovery.Promotion, settled bool, err error) {
	r := l.roleNow()
	p, ok, err := recovery.Newest(l.j)
	if err != nil || !ok || r.Handed.IsZero() || p.Order.Handover != r.Handed || p.State != recovery.PromotionDone {
		return p, true, err
	}
	var done cbt.ID
	if _, err := l.j.Recall(takenKey, &done); err != nil {
		return p, false, err
	}
	return p, done == p.ID, nil
}

// takenOutcome is the handover as far as it has come: the disks are served.
func (l *life) takenOutcome(p recovery.Promotion, r *reign) recovery.Outcome {
	role, now := l.roleNow(), l.site.o.Now()
	o := recovery.Outcome{Plan: l.verbPlan(p.Order.Point), Operator: p.Order.Operator, Reign: role, Epoch: r.writer.Epoch(), Began: p.Began, URIs: l.urisOf(r)}
	o.Plan.Machine = p.Order.Machine
	o.Steps = []recovery.StepTime{
		{Name: recovery.StepPromote, Began: p.Began, Seconds: p.Ended.Sub(p.Began).Seconds(), Detail: fmt.Sprintf("epoch %d, from record %s of %s", role.Epoch, p.Order.Point, p.Order.Giver)},
		{Name: recovery.StepServe, Began: p.Ended, Seconds: now.Sub(p.Ended).Seconds(), Detail: fmt.Sprintf("%d volumes", len(r.disks))},
	}
	return o
}

// startOrdered starts the machine that the handover named, and looks whether it is well.
func (l *life) startOrdered(ctx context.Context, o *recovery.Outcome) error {
	if o.Plan.Machine == "" {
		return nil
	}
	l.site.o.passes("machine is to be started")
	if err := l.startHere(ctx, o); err != nil && o.Machine == nil {
		return err
	} else if err != nil { // it runs; that it is not well is the report's to say
		l.site.o.Log.Error("machine of the group that was taken over is not well", "group", l.cfg.Ref(), "machine", o.Plan.Machine, "err", err)
		return nil
	}
	l.site.o.passes("machine started")
	l.site.o.Log.Warn("machine of the group that was taken over runs", "group", l.cfg.Ref(), "machine", o.Plan.Machine, "process", o.Machine.PID, "ran_already", o.Machine.Adopted)
	return nil
}

// startHere starts the machine that runs from the group's disks here into o, and waits
// until it is well where the configuration says how that is told.
func (l *life) startHere(ctx context.Context, o *recovery.Outcome) error {
	step := func(name recovery.StepName, do func() (string, error)) error {
		began := l.site.o.Now()
		detail, err := do()
		t := recovery.StepTime{Name: name, Began: began, Seconds: l.site.o.Now().Sub(began).Seconds(), Detail: detail, Error: textOf(err)}
		if err != nil {
			o.Failed = name
		}
		o.Steps = append(o.Steps, t)
		return err
	}
	m, ok, err := l.machineHere(ctx)
	if err == nil && !ok {
		err = fmt.Errorf("%w: the group has none here", recovery.ErrNotRunning)
	}
	if err != nil {
		return err
	}
	err = step(recovery.StepStart, func() (_ string, err error) {
		if o.Machine, err = l.ensureUnasked(ctx, m, o.URIs); err != nil {
			return "", err
		}
		return o.Machine.Told(), nil
	})
	if err != nil || l.atHome() || !m.Waits(healthOf(l.cfg.Machine)) {
		return err
	}
	return step(recovery.StepHealth, func() (string, error) { return o.Machine.Healthy(ctx, healthOf(l.cfg.Machine)) })
}

// settleTaken writes the report and remembers that nothing is left to be done.
func (l *life) settleTaken(ctx context.Context, p recovery.Promotion, o recovery.Outcome) error {
	if o.Failed == "" {
		o.RTOSeconds = l.site.o.Now().Sub(o.Began).Seconds()
	}
	if _, err := l.reportTaken(ctx, p, o); err != nil {
		l.site.o.Log.Error("report of the handover not written", "group", l.cfg.Ref(), "err", err)
	}
	if err := l.j.Remember(takenKey, p.ID); err != nil {
		return fmt.Errorf("remember that the handover is settled: %w", err)
	}
	l.site.o.passes("handover settled")
	return nil
}
