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

// PlanRewind implements control.API.
func (s *Site) PlanRewind(ctx context.Context, q control.RewindRequest) (control.RewindPlan, error) {
	what := "plan a rewind of " + q.Group
	l, release, err := s.forRewind(ctx, what, q.Group)
	if err != nil {
		return control.RewindPlan{}, err
	}
	defer release()
	p, _, err := l.rewindPlan(ctx, q.At)
	if err != nil {
		return control.RewindPlan{}, explain(what, err)
	}
	return l.rewindTold(p), nil
}

// forRewind gives the life of a group that reigns here.
func (s *Site) forRewind(ctx context.Context, what, name string) (*life, func(), error) {
	g, err := s.group(name)
	if err != nil {
		return nil, nil, err
	}
	if !s.running() {
		return nil, nil, fault.New(fault.NeedsDaemon, what, "the daemon writes the group's disks")
	}
	l, release, err := g.await(ctx)
	if err != nil {
		return nil, nil, err
	}
	r := l.reignOf(ctx)
	switch {
	case r != nil:
		return l, release, nil
	case l.roleNow().Role.Captures():
		err = fault.New(fault.GroupFailed, what, "its disks are being opened").Advise("Try again in a moment.")
	default:
		err = fault.New(fault.NotPrimary, what, "the group is %s here", l.roleNow().Role)
	}
	release()
	return nil, nil, err
}

// rewindPlan collects what is known and asks recovery what a rewind would mean.
func (l *life) rewindPlan(ctx context.Context, at string) (recovery.RewindPlan, journal.Point, error) {
	pt, err := resolve(ctx, l.j, at)
	if err != nil {
		return recovery.RewindPlan{}, pt, err
	}
	p, err := l.rewindPlanTo(ctx, at, pt)
	return p, pt, err
}

func (l *life) rewindPlanTo(ctx context.Context, at string, pt journal.Point) (recovery.RewindPlan, error) {
	head := l.j.Head()
	if err := l.j.WaitDurable(ctx, head.Position); err != nil {
		return recovery.RewindPlan{}, err
	}
	in := recovery.RewindInputs{Tenant: l.cfg.Tenant, Group: l.cfg.Name, Site: l.site.cfg.Site, Identity: l.id, Reign: l.roleNow(), At: at, Point: pt, Head: head,
		Lineage: l.j.Lineage(), Now: l.site.o.Now()}
	for _, n := range epochNumbers(l.j) {
		in.HighestEpoch = max(in.HighestEpoch, n)
	}
	var err error
	if in.Since, in.Thinned, err = l.givenUp(ctx, pt, head); err != nil {
		return recovery.RewindPlan{}, err
	}
	if in.Changed, err = l.j.Diff(ctx, head.Position, pt.Position); err != nil {
		return recovery.RewindPlan{}, err
	}
	if in.Volumes, err = headVolumes(l.j); err != nil {
		return recovery.RewindPlan{}, err
	}
	inputs := l.servedInputs
	if l.taps() {
		inputs = l.tappedInputs
	}
	if err := inputs(ctx, &in); err != nil {
		return recovery.RewindPlan{}, err
	}
	return recovery.NewRewind(in), nil
}

// servedInputs is what a rewind of disks that this site serves depends on beside the
// history.
func (l *life) servedInputs(ctx context.Context, in *recovery.RewindInputs) error {
	if _, err := pointAt(ctx, l.j, in.Head.Number, in.Head.Seq); err == nil {
		in.Undo = fmt.Sprintf("#%d.%d", in.Head.Number, in.Head.Seq)
	}
	mine, err := l.ownMachine()
	if err != nil {
		return err
	}
	in.Machine = mine
	if mine == "" { // else they are its own, which ends
		if err := l.emptied(ctx, justLeft); err != nil {
			in.Clients = l.connected()
		}
	}
	return l.localInputs(ctx, in)
}

// ownMachine names the machine of this site that runs from the group's disks, if it does.
func (l *life) ownMachine() (string, error) {
	if l.cfg.Machine == nil {
		return "", nil
	}
	_, err := l.machine(l.cfg.Machine).Process()
	switch {
	case errors.Is(err, recovery.ErrNotRunning):
		return "", nil
	case err != nil:
		return "", fmt.Errorf("look for machine %s: %w", l.cfg.Machine.Called(), err)
	}
	return l.cfg.Machine.Called(), nil
}

// connected counts the clients of the group's disks.
func (l *life) connected() int {
	n := 0
	if r := l.reigning(); r != nil {
		for _, d := range r.disks {
			n += l.site.clients.of(l.exportName(d.volume.Name))
		}
	}
	return n
}

// Rewind implements control.API. It goes on to its end even if the caller goes away.
func (s *Site) Rewind(ctx context.Context, q control.RewindRequest, progress func(control.Progress)) (control.Rewound, error) {
	what := "rewind " + q.Group
	l, release, err := s.forRewind(ctx, what, q.Group)
	if err != nil {
		return control.Rewound{}, err
	}
	defer release()
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	defer context.AfterFunc(l.ctx, func() { cancel(errDetached) })()
	if err := l.claimFailover(); err != nil {
		return control.Rewound{}, err
	}
	defer l.releaseFailover()
	plan, pt, err := l.rewindPlan(ctx, q.At)
	if err != nil {
		return control.Rewound{}, explain(what, err)
	}
	told := l.rewindTold(plan)
	if q.Expect != "" && q.Expect != plan.Digest {
		return control.Rewound{RewindPlan: told}, fault.New(fault.PlanStale, what, "since the plan was shown the point, the machine or what speaks against it has changed").With(told)
	}
	order, err := plan.Order(q.Operator, q.Force)
	if err != nil {
		return control.Rewound{RewindPlan: told}, fault.Wrap(fault.RewindRefused, what, err).With(told)
	}
	view, err := l.j.View(ctx, pt) // keeps the point
	if err != nil {
		return control.Rewound{RewindPlan: told}, explain(what, err)
	}
	defer func() {
		if err := view.Close(); err != nil {
			s.o.Log.Warn("close view", "group", l.cfg.Ref(), "err", err)
		}
	}()
	w := &rewinding{life: l, order: order, began: s.o.Now(), force: q.Force, noMachine: q.NoMachine, progress: progress, point: pt, done: make(chan error, 1), times: map[string]float64{}}
	if err := w.do(ctx); err != nil {
		return control.Rewound{RewindPlan: told}, explain(what, err)
	}
	out := control.Rewound{RewindPlan: l.rewindTold(w.plan), SecondsTaken: s.o.Now().Sub(w.began).Seconds(), Times: w.times, Pin: w.pin, Started: w.started}
	s.o.Log.Warn("group rewound", "group", l.cfg.Ref(), "epoch", w.epoch, "point", pt.String(), "given_up_writes", out.Writes, "undo", out.Undo, "operator", q.Operator, "forced", order.Forced)
	out.Epoch = w.epoch
	return out, nil
}

func (l *life) rewindTold(p recovery.RewindPlan) control.RewindPlan {
	numbers := epochNumbers(l.j)
	out := control.RewindPlan{Group: l.cfg.Ref(), At: p.At, Point: pointOf(p.Point), Head: control.Point{Epoch: numbers[p.Head.Epoch], Seq: uint64(p.Head.Seq)},
		Epoch: p.Epoch, Seconds: p.GivenUp.Seconds, Writes: p.GivenUp.Writes, Bytes: p.GivenUp.Bytes, Volumes: []control.RewindVolume{}, Machine: p.Machine, Undo: p.Undo,
		StaysOff: p.Stays, Steps: []string{}, Warnings: p.Warnings, Digest: p.Digest}
	for _, v := range p.Volumes {
		out.Volumes = append(out.Volumes, control.RewindVolume{Volume: v.Volume, Differ: v.Differ, Writes: v.Writes, Bytes: v.Bytes})
	}
	for _, x := range p.Steps {
		out.Steps = append(out.Steps, fmt.Sprintf("%s: %s", x.Name, x.What))
	}
	for _, x := range p.Refused {
		out.Refused = append(out.Refused, x.Text)
	}
	return out
}

// Bounds of the wait for connections to end: of a machine that was turned off, and of
// clients that have gone a moment ago.
const (
	leaveLimit = 10 * time.Second
	justLeft   = time.Second
)

// emptied waits until nobody has a disk of the group open.
func (l *life) emptied(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for l.connected() > 0 {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fault.New(fault.RewindRefused, "rewind "+l.cfg.Ref(), "%d clients have disks of it open still", l.connected())
		}
	}
	return nil
}
