package site

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// planKey is where the site log keeps the plan of the newest failover: who repeats
// the command is told the loss that was told then.
const planKey = "failover/plan"

// attachLimit bounds the look at a machine that runs: on a busy host it takes its time to
// answer, and one that never does is not waited for.
const attachLimit = 30 * time.Second

// resumption is what is left of a failover that promoted this site and whose
// machine does not run: it did not start, or died since.
type resumption struct {
	reign recovery.Reign
	first recovery.Plan // as it was confirmed; of another site log it is empty but for names
	plan  control.Plan
}

// resumption says what a repeated failover would do; nil where the group was not
// promoted yet. What a repeat cannot do is refused with the reason.
func (l *life) resumption(ctx context.Context, q control.FailoverRequest) (*resumption, error) {
	r := l.roleNow()
	if !r.Role.Captures() {
		return nil, nil
	}
	what := "plan a failover of " + l.cfg.Ref()
	p, _, err := recovery.Newest(l.j)
	if err != nil {
		return nil, err
	}
	m := l.cfg.Machine
	held, err := l.startsHeld()
	if err != nil {
		return nil, err
	}
	switch {
	case held && !q.NoMachine:
	case r.Role != recovery.Uncommitted || r.Promotion != p.ID || p.State != recovery.PromotionDone:
		return nil, fault.New(fault.NotReplica, what, "the group is %s here already", r.Role)
	case m == nil || q.NoMachine:
		return nil, fault.New(fault.NotReplica, what, "the group is %s here already, its disks are served", r.Role).Advise("group show tells where its disks are served.")
	}
	if err := l.machineGone(ctx, what); err != nil {
		return nil, err
	}
	if held && q.At != l.allAt() {
		return nil, fault.New(fault.NotReplica, what, "the group is %s here already", r.Role).Advise("Its machines %s do not all run. Repeat with --at '%s' to start them.", m.Called(), l.allAt())
	}
	if q.At != r.At && !held {
		return nil, fault.New(fault.NotReplica, what, "the group was promoted here from --at %s, not %s, and no other point is gone to from there", r.At, q.At).
			Advise("Machine %s does not run. Repeat with --at %s to start it.", m.Called(), r.At)
	}
	reign := l.reignOf(ctx)
	if reign == nil {
		return nil, fault.New(fault.GroupFailed, what, "its disks are being opened").Advise("Try again in a moment.")
	}
	return l.resumptionOf(ctx, r, p, reign.writer.Epoch())
}

// machineGone is nil if the configured machine does not run, or one of several. A machine
// is asked only where all are there: what one that is busy does not answer says nothing of
// another one that is gone.
func (l *life) machineGone(ctx context.Context, what string) error {
	m := l.machine(l.cfg.Machine)
	for _, one := range m.Each() {
		if _, err := one.Process(); errors.Is(err, recovery.ErrNotRunning) {
			return nil
		}
	}
	ctx, cancel := context.WithTimeout(ctx, attachLimit)
	defer cancel()
	name := l.cfg.Machine.Called()
	running, err := m.Attach(ctx)
	switch {
	case errors.Is(err, recovery.ErrNotRunning):
		return nil
	case err != nil:
		return fault.Wrap(fault.MachineTrouble, what, fmt.Errorf("look for machine %s: %w", name, err)).Advise("If its process is there, end it; then repeat the command.")
	}
	pid := running.PID
	return errors.Join(fault.New(fault.NotReplica, what, "the group is %s here already, and machine %s runs (process %d)", l.roleNow().Role, name, pid).
		Advise("Nothing is left to do. group show tells where its disks are served."), running.Close())
}

func (l *life) resumptionOf(ctx context.Context, r recovery.Reign, p recovery.Promotion, e journal.Epoch) (*resumption, error) {
	c := &resumption{reign: r}
	known, err := l.j.Recall(planKey, &c.first)
	if err != nil {
		return nil, fmt.Errorf("recall plan: %w", err)
	}
	if !known || c.first.Digest != p.Order.Plan {
		c.first = recovery.Plan{Tenant: l.cfg.Tenant, Group: l.cfg.Name, Identity: l.id, Site: l.site.cfg.Site, At: r.At, Fence: r.Fence}
	}
	from := r.From
	if r.Role != recovery.Uncommitted { // where its reign began is long ago
		from, c.first.At = l.j.Head().Position, l.allAt()
	}
	if c.first.Point, err = pointAt(ctx, l.j, epochNumbers(l.j)[from.Epoch], from.Seq); err != nil {
		return nil, err
	}
	m := l.cfg.Machine
	c.plan = planOf(c.first)
	c.plan.Resumes, c.plan.Epoch, c.plan.Machine, c.plan.Refused = true, e.Number, m.Called(), nil
	c.plan.Digest = named("resume", p.ID.String(), e.ID.String(), m.Called()).Short()
	c.plan.Steps = []string{fmt.Sprintf("%s: start machine %s from the disks that are served here, and wait until it runs", recovery.StepStart, m.Called())}
	if m.Checked() {
		c.plan.Steps = append(c.plan.Steps, fmt.Sprintf("%s: wait for its line on the serial console", recovery.StepHealth))
	}
	c.plan.Warnings = []string{fmt.Sprintf("the group was promoted here at %s; nothing is promoted again, and the loss is what was told then", r.Since.Format(timeLayout))}
	if why := l.conflict().why; why != "" {
		c.plan.Refused = []string{"the group is halted: " + why}
	}
	return c, nil
}

// resume starts the machine of a failover that is done but for it.
func (l *life) resume(ctx context.Context, q control.FailoverRequest, c *resumption, progress func(control.Progress)) (control.FailedOver, error) {
	what := "start the machine of " + l.cfg.Ref()
	out := control.FailedOver{Plan: c.plan}
	if len(c.plan.Refused) > 0 && !q.Force {
		return out, fault.New(fault.PeerDiverged, what, "%s", c.plan.Refused[0]).With(c.plan)
	}
	r := l.reigning()
	if r == nil {
		return out, fault.New(fault.GroupFailed, what, "its disks are being opened").Advise("Try again in a moment.")
	}
	o := recovery.Outcome{Plan: c.first, Operator: q.Operator, Reign: c.reign, Epoch: r.writer.Epoch(), Unfenced: c.reign.Unfenced, Resumed: true, Began: l.site.o.Now(), URIs: l.urisOf(r)}
	o.Plan.Machine = c.plan.Machine
	err := l.startMachine(ctx, &o, progress)
	o.RTOSeconds = l.site.o.Now().Sub(o.Began).Seconds()
	out = outcomeOf(o)
	out.Plan = c.plan
	defer closeMachine(o.Machine)
	if err != nil {
		out.Report = l.reportFailed(o, "-resumed-failed")
		return out, l.failedStep(what, c.first, o, err)
	}
	if out.Report, err = l.report(o, "-resumed"); err != nil {
		l.site.o.Log.Error("report of the resumed failover not written", "group", l.cfg.Ref(), "err", err)
	}
	l.site.o.Log.Warn("machine of a failover started", "group", l.cfg.Ref(), "epoch", out.Epoch, "machine", out.Machine, "process", out.PID, "operator", q.Operator)
	return out, nil
}

// startMachine does the last steps of a failover into o.
func (l *life) startMachine(ctx context.Context, o *recovery.Outcome, progress func(control.Progress)) error {
	step := func(name recovery.StepName, do func() (string, error)) error {
		began := l.site.o.Now()
		detail, err := do()
		t := recovery.StepTime{Name: name, Began: began, Seconds: l.site.o.Now().Sub(began).Seconds(), Detail: detail}
		if err != nil {
			t.Error, o.Failed = err.Error(), name
		}
		o.Steps = append(o.Steps, t)
		progress(stepProgress(t))
		return err
	}
	err := step(recovery.StepStart, func() (detail string, err error) {
		start := l.ensure
		if o.Operator == witnessOperator {
			start = l.ensureUnasked
		}
		if o.Machine, err = start(ctx, l.machine(l.cfg.Machine), o.URIs); err != nil {
			return "", err
		}
		return o.Machine.Told(), nil
	})
	h := healthOf(l.cfg.Machine)
	if err != nil || !l.machine(l.cfg.Machine).Waits(h) {
		return err
	}
	return step(recovery.StepHealth, func() (string, error) {
		return o.Machine.Healthy(ctx, h)
	})
}

// failedStep says what a failover came to that failed after its epoch began: that
// stands, and repeating the command does what is left.
func (l *life) failedStep(what string, plan recovery.Plan, o recovery.Outcome, err error) error {
	if !o.Stands() {
		return refusal(what, plan, err)
	}
	f := fault.Of(explain(what, err))
	switch {
	case errors.Is(err, recovery.ErrUnhealthy):
		return f.Advise("The machine is not stopped from here; look at its serial console. If it is gone, repeat the command: it is started again and nothing is promoted again.")
	case o.Failed == recovery.StepStart || o.Failed == recovery.StepHealth:
		return fault.Wrap(fault.MachineTrouble, what, err)
	case f.Code == fault.Unexpected || f.Code == fault.FileTrouble:
		return fault.Wrap(fault.FailoverTrouble, what, err)
	}
	return f
}

// closeMachine frees the handle of a machine; the machine goes on.
func closeMachine(m *recovery.Running) {
	if m != nil {
		_ = m.Close() // of a process's handle: nothing is lost
	}
}
