package site

import (
	"context"
	"errors"
	"fmt"

	"github.com/novacron/afterimage/recovery/runbook"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// activeRun is a run that this process carries out.
type activeRun struct {
	cancel context.CancelCauseFunc
}

// RunRunbook implements control.API. The run goes on to its end, a failure or a
// question even if the caller goes away.
func (s *Site) RunRunbook(ctx context.Context, q control.RunbookRequest, progress func(control.Progress)) (control.RunbookRun, error) {
	what := "run runbook " + q.File
	if !s.running() {
		return control.RunbookRun{}, fault.New(fault.NeedsDaemon, what, "runbooks are carried out by the daemon")
	}
	p, err := s.planRunbook(ctx, q)
	if err != nil {
		return control.RunbookRun{}, err
	}
	shown, err := s.preflight(ctx, q, p)
	if err != nil {
		return control.RunbookRun{}, err
	}
	if q.Expect != "" && q.Expect != shown.Digest {
		return control.RunbookRun{}, fault.New(fault.PlanStale, what, "since the plan was shown the file, the mode or the moment has changed").With(shown)
	}
	if len(shown.Refused) > 0 && len(shown.Handover) > 0 { // what cannot be planned is not forced
		return control.RunbookRun{}, fault.New(fault.HandoverTrouble, what, "%s", shown.Refused[0]).With(shown)
	}
	if len(shown.Refused) > 0 && !q.Force {
		return control.RunbookRun{}, fault.New(fault.NotFenced, what, "%s", shown.Refused[0]).With(shown)
	}
	r, err := runbook.Begin(s.runsDir(), p, runbook.Order{Operator: q.Operator, Forced: q.Force}, s.o.Now())
	if err != nil {
		return control.RunbookRun{}, explain(what, err)
	}
	s.o.Log.Warn("run of a runbook begins", "run", r.ID, "mode", p.Mode, "plan", r.Digest, "operator", q.Operator, "forced", q.Force)
	s.keepPoints(context.WithoutCancel(ctx), r)
	return s.carryOut(ctx, what, r, nil, progress)
}

// ResumeRun implements control.API.
func (s *Site) ResumeRun(ctx context.Context, q control.RunRequest, progress func(control.Progress)) (control.RunbookRun, error) {
	what := "resume run " + q.Run
	r, err := s.openRun(what, q.Run)
	if err != nil {
		return control.RunbookRun{}, err
	}
	return s.carryOut(ctx, what, r, func(e *runbook.Engine) error {
		if q.Answer != "" {
			return e.Answer(q.Step-1, runbook.Answer(q.Answer))
		}
		return s.renew(r, e)
	}, progress)
}

// AbortRun implements control.API.
func (s *Site) AbortRun(ctx context.Context, q control.RunRequest, progress func(control.Progress)) (control.RunbookRun, error) {
	what := "abort run " + q.Run
	r, err := s.openRun(what, q.Run)
	if err != nil {
		return control.RunbookRun{}, err
	}
	return s.carryOut(ctx, what, r, func(e *runbook.Engine) error {
		why := q.Reason
		if why == "" {
			why = "by " + q.Operator
		}
		return e.Abort(why)
	}, progress)
}

// awaitOpened waits until the groups of a plan are open: who resumes a run right after the
// daemon began would have its steps fail else. What does not open, the steps tell.
func (s *Site) awaitOpened(ctx context.Context, p runbook.Plan) {
	for _, a := range p.Actions {
		if a.Group == "" {
			continue
		}
		if g, err := s.group(a.Group); err == nil {
			if _, release, err := g.await(ctx); err == nil {
				release()
			}
		}
	}
}

func (s *Site) openRun(what, id string) (*runbook.Run, error) {
	if !s.running() {
		return nil, fault.New(fault.NeedsDaemon, what, "runbooks are carried out by the daemon")
	}
	r, err := runbook.Open(s.runsDir(), id)
	if err != nil {
		return nil, explain(what, err)
	}
	if r.State().Over {
		return nil, errors.Join(explain(what, runbook.ErrEnded), r.Close())
	}
	return r, nil
}

// carryOut runs r until it is over, fails or asks. first, which may be nil, comes
// before.
func (s *Site) carryOut(ctx context.Context, what string, r *runbook.Run, first func(*runbook.Engine) error, progress func(control.Progress)) (out control.RunbookRun, err error) {
	defer func() { err = errors.Join(err, r.Close()) }()
	driver := &stepDriver{site: s, run: r}
	e, err := runbook.NewEngine(r.Plan, r.Entries, r, driver, s.o.Now)
	if err != nil {
		return out, explain(what, err)
	}
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	e.Tell = func(x runbook.Entry) {
		progress(entryProgress(r.Plan, x))
		s.o.Log.Info("run of a runbook", "run", r.ID, "step", x.Action+1, "event", x.Event, "detail", x.Detail)
	}
	s.mu.Lock()
	s.runs[r.ID] = &activeRun{cancel}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.runs, r.ID)
	}()
	s.awaitOpened(ctx, r.Plan)
	if first != nil {
		err = first(e)
	}
	if err == nil {
		err = e.Run(ctx)
	}
	out = runOf(r, e.State(), false)
	if e.State().Over {
		s.freePoints(context.WithoutCancel(ctx), r)
		var rerr error
		if out.Report, rerr = s.reportRun(ctx, r, e.State(), driver); rerr != nil {
			s.o.Log.Error("report of the run not written", "run", r.ID, "err", rerr)
		}
	}
	var asked *runbook.AskedError
	var failed *runbook.StepError
	switch {
	case errors.As(err, &asked):
		return out, fault.New(fault.RunAsks, what, "step %d, %s: %s", asked.Action.ID+1, asked.Action.Name(), asked.Question).
			Advise("afterimage runbook resume %s --step %d --answer %s", r.ID, asked.Action.ID+1, oneOf(asked.Answers)).With(out)
	case errors.As(err, &failed):
		return out, fault.New(fault.RunHalted, what, "step %d, %s: %s", failed.Action.ID+1, failed.Action.Name(), failed.Why).
			Advise("Put it right, then afterimage runbook resume %s; --step %d --answer skip passes it by; runbook abort %s ends the run.", r.ID, failed.Action.ID+1, r.ID).With(out)
	case err != nil:
		return out, explain(what, err)
	}
	return out, runOutcome(what, r, out)
}

func oneOf(answers []runbook.Answer) string {
	text := ""
	for i, a := range answers {
		if i > 0 {
			text += "|"
		}
		text += string(a)
	}
	return text
}

// runOutcome is nil for a run that did everything.
func runOutcome(what string, r *runbook.Run, out control.RunbookRun) error {
	switch out.State {
	case "partly":
		return fault.New(fault.Partly, what, "run %s is over, and not all of its steps were done; runbook show names them", r.ID).With(out)
	case "aborted":
		return fault.New(fault.RunHalted, what, "run %s was aborted: %s", r.ID, out.Why).Advise("runbook show %s tells what was done; a drill was taken down.", r.ID).With(out)
	}
	return nil
}

// renew begins a drill again whose machines went with the process that held them: what
// they wrote is gone, so the steps behind their start mean nothing any more.
func (s *Site) renew(r *runbook.Run, e *runbook.Engine) error {
	if r.Plan.Mode != runbook.Test {
		return nil
	}
	state := e.State()
	for _, a := range r.Plan.Actions {
		if a.Step.Kind != runbook.Start || state.Actions[a.ID].Phase != runbook.Ended {
			continue
		}
		g, err := s.group(a.Group)
		if err != nil {
			return err
		}
		if s.drillOf(g) == nil {
			return e.Renew(fmt.Sprintf("machine %s went with the process that served its disks", a.Step.Machine))
		}
	}
	return nil
}

// endRuns interrupts all runs, at the end of the site; they can be resumed.
func (s *Site) endRuns() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.runs {
		r.cancel(errStopping)
	}
}

// Runs implements control.API.
func (s *Site) Runs(context.Context) ([]control.RunbookRun, error) {
	all, err := runbook.List(s.runsDir())
	out := []control.RunbookRun{}
	for _, r := range all {
		out = append(out, runOf(r, r.State(), s.carriesOut(r.ID)))
	}
	return out, explain("list runs", err)
}

// RunDetail implements control.API.
func (s *Site) RunDetail(_ context.Context, id string) (control.RunbookRun, error) {
	r, err := runbook.Look(s.runsDir(), id)
	if err != nil {
		return control.RunbookRun{}, explain("show run "+id, err)
	}
	return runOf(r, r.State(), s.carriesOut(id)), nil
}

func (s *Site) carriesOut(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.runs[id] != nil
}
