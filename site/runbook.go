package site

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/recovery/runbook"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// runbookCodes are the codes of a runbook's problems.
var runbookCodes = map[runbook.Code]fault.Code{
	runbook.CodeSyntax: fault.RunbookSyntax, runbook.CodeKey: fault.RunbookKey, runbook.CodeStep: fault.RunbookStep,
	runbook.CodeValue: fault.RunbookValue, runbook.CodeAbsent: fault.RunbookValue, runbook.CodeDuplicate: fault.RunbookValue, runbook.CodeVariable: fault.RunbookValue,
	runbook.CodeMachine: fault.RunbookMachine, runbook.CodeGroup: fault.RunbookGroup, runbook.CodeBoot: fault.RunbookCycle, runbook.CodeCycle: fault.RunbookCycle,
	runbook.CodeProgram: fault.RunbookProgram,
}

// runbookFault is problems as a fault with the first one's code and all as evidence.
func runbookFault(ps runbook.Problems) *fault.Error {
	first := ps[0]
	why := fmt.Sprintf("line %d, column %d: %s", first.Line, first.Column, first.What)
	if n := len(ps) - 1; n > 0 {
		why += fmt.Sprintf(" (and %d more)", n)
	}
	all := make(config.Problems, len(ps)) // as those of a configuration are told
	for i, p := range ps {
		all[i] = config.Problem{Code: runbookCodes[p.Code], File: p.File, Line: p.Line, Column: p.Column, What: p.What, Hint: p.Hint, Excerpt: p.Excerpt}
	}
	return &fault.Error{Code: runbookCodes[first.Code], What: "check runbook " + first.File, Why: why, Hint: first.Hint, Evidence: all, Err: ps}
}

// facts are what runbooks are checked against: groups with a machine or a captured domain, by
// every name that a command takes.
func (s *Site) facts() runbook.Facts {
	f := runbook.Facts{Programs: s.cfg.RunbookPrograms()}
	for _, g := range s.cfg.Groups {
		if g.Machine == nil && g.Libvirt == nil {
			continue
		}
		f.Groups = append(f.Groups, g.Ref())
		if _, err := s.cfg.Group(g.Name); err == nil {
			f.Groups = append(f.Groups, g.Name)
		}
	}
	return f
}

// readRunbook parses and checks a file.
func (s *Site) readRunbook(q control.RunbookRequest) (*runbook.Runbook, error) {
	b, err := runbook.Parse(q.File, q.Text)
	if err == nil {
		err = b.Check(s.facts())
	}
	if ps, ok := err.(runbook.Problems); ok {
		return nil, runbookFault(ps)
	}
	return b, err
}

// CheckRunbook implements control.API.
func (s *Site) CheckRunbook(_ context.Context, q control.RunbookRequest) (control.RunbookPlan, error) {
	b, err := s.readRunbook(q)
	if err != nil {
		return control.RunbookPlan{}, err
	}
	var groups []string
	for _, m := range b.Machines {
		groups = append(groups, m.Group)
	}
	return control.RunbookPlan{Runbook: b.Name, Groups: groups, Steps: []control.RunbookStep{}}, nil
}

// PlanRunbook implements control.API. Beside the file's own plan it asks each group
// what the mode would mean to it, at this site alone.
func (s *Site) PlanRunbook(ctx context.Context, q control.RunbookRequest) (control.RunbookPlan, error) {
	p, err := s.planRunbook(ctx, q)
	if err != nil {
		return control.RunbookPlan{}, err
	}
	return s.preflight(ctx, q, p)
}

func (s *Site) planRunbook(ctx context.Context, q control.RunbookRequest) (runbook.Plan, error) {
	b, err := s.readRunbook(q)
	if err != nil {
		return runbook.Plan{}, err
	}
	if !slices.Contains(runbook.Modes(), runbook.Mode(q.Mode)) {
		return runbook.Plan{}, fault.New(fault.Usage, "plan runbook "+q.File, "%q is no mode", q.Mode).Advise("Modes are test, planned, unplanned and failback.")
	}
	past, err := s.past()
	if err != nil {
		s.o.Log.Warn("runs that cannot be read are not in the estimate", "err", err)
	}
	p := runbook.NewPlan(b, runbook.Mode(q.Mode), q.At, past)
	p.Points, err = s.momentsOf(ctx, p, q)
	return p, err
}

// momentsOf is what the plan's moment comes to in each group that is brought to it, or
// what it came to when the plan was shown: a run that waits, asks or is resumed tomorrow
// loses what was confirmed. The newest point is whatever it is when a group's turn comes;
// by then nothing more can be lost.
func (s *Site) momentsOf(ctx context.Context, p runbook.Plan, q control.RunbookRequest) (map[string]string, error) {
	what := "plan runbook " + q.File
	if p.At == "" {
		return nil, nil
	}
	at, err := parseAt(p.At)
	switch {
	case err != nil:
		return nil, err
	case p.Mode != runbook.Test && p.Mode != runbook.Unplanned:
		if p.At != "latest" {
			return nil, fault.New(fault.Usage, what, "--at %s: a run of mode %s loses nothing, and takes no moment", p.At, p.Mode).
				Advise("--mode unplanned goes back to a moment; group rewind does after a planned one.")
		}
		return nil, nil
	case at.Moves():
		return nil, nil
	}
	at = at.Since(s.o.Now())
	points := make(map[string]string)
	for _, name := range groupsOf(p) {
		if p.Mode == runbook.Unplanned && s.promotedHere(name) {
			continue
		}
		if shown, ok := q.Points[name]; ok {
			points[name] = shown
			continue
		}
		err := s.withJournal(ctx, name, func(j *journal.Journal) error {
			pt, err := resolveAt(ctx, j, at)
			points[name] = seqText(pointOf(pt))
			return err
		})
		if err != nil {
			return nil, explain(what+" for "+name, err)
		}
	}
	return points, nil
}

// withJournal does something with a group's journal.
func (s *Site) withJournal(ctx context.Context, name string, do func(*journal.Journal) error) error {
	g, err := s.group(name)
	if err != nil {
		return err
	}
	l, release, err := s.open(ctx, g)
	if err != nil {
		return err
	}
	defer release()
	return do(l.j)
}

// keepPoints pins what a run goes back to until it is over: nothing thins it while the
// run waits.
func (s *Site) keepPoints(ctx context.Context, r *runbook.Run) {
	for name, at := range r.Plan.Points {
		err := s.withJournal(ctx, name, func(j *journal.Journal) error {
			pt, err := resolve(ctx, j, at)
			if err == nil {
				_, err = j.Pin(ctx, pinOfRun(r.ID), pt, false)
			}
			return err
		})
		if err != nil {
			s.o.Log.Warn("point of a run is not pinned", "run", r.ID, "group", name, "point", at, "err", err)
		}
	}
}

// freePoints takes these pins away again.
func (s *Site) freePoints(ctx context.Context, r *runbook.Run) {
	for name := range r.Plan.Points {
		err := s.withJournal(ctx, name, func(j *journal.Journal) error { return j.Unpin(pinOfRun(r.ID)) })
		if err != nil && !errors.Is(err, journal.ErrNoPin) {
			s.o.Log.Warn("point of a run stays pinned", "run", r.ID, "group", name, "err", err)
		}
	}
}

func pinOfRun(id string) string { return "run " + id }

// preflight adds what each group that is started loses, and what speaks against it.
func (s *Site) preflight(ctx context.Context, q control.RunbookRequest, p runbook.Plan) (control.RunbookPlan, error) {
	out := control.RunbookPlan{Runbook: p.Runbook, Mode: string(p.Mode), At: p.At, Points: p.Points, Digest: p.Digest(), Groups: groupsOf(p), Unknown: p.Estimate.Unknown, Warnings: p.Warnings, Text: p.String()}
	if p.Estimate.Runs > 0 {
		total := p.Estimate.Total.Seconds()
		out.Expected = &total
	}
	for _, a := range p.Actions {
		out.Steps = append(out.Steps, stepOf(p, a))
	}
	for _, name := range out.Groups {
		what := fmt.Sprintf("plan runbook %s for %s", p.Runbook, name)
		switch p.Mode {
		case runbook.Test:
			if _, err := s.Points(ctx, control.PointsQuery{Group: name, At: p.Moment(name)}); err != nil {
				return out, explain(what, err)
			}
		case runbook.Unplanned:
			plan, err := s.PlanFailover(ctx, control.FailoverRequest{Group: name, At: p.Moment(name), Operator: q.Operator})
			if fault.Is(err, fault.NotReplica) && s.promotedHere(name) {
				out.Warnings = append(out.Warnings, name+" runs here already")
				continue
			}
			if err != nil {
				return out, explain(what, err)
			}
			out.Failover = append(out.Failover, plan)
			for _, r := range plan.Refused {
				out.Refused = append(out.Refused, name+": "+r)
			}
		default:
			if s.promotedHere(name) {
				out.Warnings = append(out.Warnings, name+" is primary here already: its machine is started, nothing is handed over")
				continue
			}
			plan, err := s.PlanHandover(ctx, control.HandoverRequest{Group: name, Shutdown: true, Operator: q.Operator})
			if err != nil {
				return out, explain(what, err)
			}
			out.Handover = append(out.Handover, plan)
			for _, r := range plan.Refused {
				out.Refused = append(out.Refused, name+": "+r)
			}
		}
	}
	return out, nil
}

// promotedHere reports whether the group is primary at this site.
func (s *Site) promotedHere(name string) bool {
	return s.lives(name, func(l *life) bool { return l.roleNow().Role.Captures() })
}

// groupsOf are those that a plan starts machines of, once each.
func groupsOf(p runbook.Plan) []string {
	out := []string{}
	for _, a := range p.Actions {
		if a.Step.Kind == runbook.Start && !slices.Contains(out, a.Group) {
			out = append(out, a.Group)
		}
	}
	return out
}

func stepOf(p runbook.Plan, a runbook.Action) control.RunbookStep {
	st := control.RunbookStep{Step: a.ID + 1, Boot: a.Boot, Name: a.Name(), Kind: string(a.Step.Kind), Machine: a.Step.Machine}
	for _, id := range a.After {
		st.After = append(st.After, id+1)
	}
	if a.ID < len(p.Estimate.Steps) && p.Estimate.Steps[a.ID] != nil {
		d := p.Estimate.Steps[a.ID].Seconds()
		st.Expected = &d
	}
	return st
}

func (s *Site) runsDir() string { return filepath.Join(s.cfg.Data, "runs") }

// past is the times of every run that came to its end.
func (s *Site) past() (runbook.History, error) {
	runs, err := runbook.List(s.runsDir())
	var h runbook.History
	for _, r := range runs {
		if p, ok := r.Past(); ok {
			h = append(h, p)
		}
	}
	return h, err
}

// runOf is a run as it is told.
func runOf(r *runbook.Run, state runbook.State, running bool) control.RunbookRun {
	out := control.RunbookRun{Run: r.ID, Runbook: r.Plan.Runbook, Mode: string(r.Plan.Mode), At: r.Plan.At, Digest: r.Digest, Operator: r.Operator, State: state.Word(), Why: state.Why, Begun: r.Begun, Ended: state.Ended}
	if running && !state.Over {
		out.State = "running"
	}
	if p, ok := r.Past(); ok {
		rto := p.RTO.Seconds()
		out.RTO = &rto
	}
	for _, a := range r.Plan.Actions {
		st, is := stepOf(r.Plan, a), state.Actions[a.ID]
		st.State, st.Attempts, st.Detail, st.Output = string(is.Phase), is.Attempts, is.Detail, is.Output
		st.Began, st.Ended = is.Began, is.Done
		if running && is.Phase == runbook.Interrupted {
			st.State = "running"
		}
		if !is.Done.IsZero() {
			d := is.Done.Sub(is.Began).Seconds()
			st.Seconds = &d
		}
		out.Steps = append(out.Steps, st)
	}
	return out
}

// entryProgress is what a run's caller hears of an entry.
func entryProgress(p runbook.Plan, e runbook.Entry) control.Progress {
	if e.Action < 0 {
		return control.Progress{Step: strings.TrimSpace(fmt.Sprintf("run %s %s", e.Event, e.Detail))}
	}
	text := fmt.Sprintf("step %d of %d, %s: %s", e.Action+1, len(p.Actions), p.Actions[e.Action].Name(), e.Event)
	if e.Detail != "" {
		text += ": " + e.Detail
	}
	return control.Progress{Step: text}
}

// stepTimes are a drill's or a failover's parts, for a step's kept output.
func stepTimes(times []recovery.StepTime) string {
	var b strings.Builder
	for _, t := range times {
		fmt.Fprintf(&b, "%s %.3f s %s\n", t.Name, t.Seconds, t.Detail)
	}
	return b.String()
}
