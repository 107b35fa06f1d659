package main

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"unicode"

	"github.com/urfave/cli/v2"

	"github.com/novacron/afterimage/recovery/runbook"
	"github.com/novacron/afterimage/site"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

func (w *world) runbookCommand() *cli.Command {
	mode := func() cli.Flag {
		return &cli.StringFlag{Name: "mode", Value: "test", Usage: "`MODE`: test, planned, unplanned or failback"}
	}
	return noun("runbook", "bring several machines up in order",
		verb("check", "judge a runbook's file", "FILE",
			"Nothing but the file and this site's configuration is looked at. Every fault is shown with line, column and a hint.",
			[]string{"afterimage runbook check shop.yml"}, nil, w.runbookCheck),
		verb("plan", "show what a run would do, and how long it takes", "FILE",
			"The expected time is that of earlier runs and drills. With --mode unplanned each group's loss is shown. No other site is asked.",
			[]string{"afterimage runbook plan shop.yml", "afterimage runbook plan shop.yml --mode unplanned --at -5m"}, []cli.Flag{mode(), atFlag()}, w.runbookPlan),
		verb("run", "carry a runbook out", "FILE",
			"The plan is durable before its first step, and each step is looked at before and after it is done: after any interruption runbook resume goes on. --mode test starts isolated machines over scratch disks and takes them away again. A terminal asks for the runbook's name, a script needs --yes; a drill asks nothing.",
			[]string{"afterimage runbook run shop.yml", "afterimage runbook run shop.yml --mode unplanned --yes"},
			[]cli.Flag{mode(), atFlag(),
				&cli.BoolFlag{Name: "yes", Usage: "go on without asking"},
				&cli.BoolFlag{Name: "force", Usage: "go on although a check refuses"},
				&cli.BoolFlag{Name: "dry-run", Usage: "print the plan and change nothing"}}, w.runbookRun),
		verb("resume", "go on with a run", "RUN",
			"Begins with the step that failed or was interrupted. --step and --answer say what the run waits for: yes or no to a prompt, done or again to a step of which nobody can tell whether it happened, skip to one that failed.",
			[]string{"afterimage runbook resume shop-test-20261122-120000", "afterimage runbook resume shop-test-20261122-120000 --step 4 --answer yes"},
			[]cli.Flag{
				&cli.IntFlag{Name: "step", Usage: "`NUMBER` of the step that --answer is to", DefaultText: "none"},
				&cli.StringFlag{Name: "answer", Usage: "`WORD`: yes, no, done, again or skip"}}, w.runbookResume),
		verb("abort", "end a run", "RUN",
			"What was done stands, but for a drill, which is taken down.",
			[]string{"afterimage runbook abort shop-test-20261122-120000 --yes"},
			[]cli.Flag{
				&cli.StringFlag{Name: "reason", Usage: "`TEXT` for the record"},
				&cli.BoolFlag{Name: "yes", Usage: "go on without asking"}}, w.runbookAbort),
		verb("sample", "print a runbook with every kind of step, each with what it means", "",
			"Programs are run that this site's runbooks: {programs: [...]} names, and no others.",
			[]string{"afterimage runbook sample"}, nil,
			func(c *cli.Context) error { return w.sample(c, runbook.Sample) }),
		verb("list", "list runs", "", "", []string{"afterimage runbook list"}, nil, w.runbookList),
		verb("show", "show a run, step by step", "RUN", "", []string{"afterimage runbook show shop-test-20261122-120000"}, nil, w.runbookShow),
	)
}

// runbookRequest reads the file here, as who runs the command may.
func runbookRequest(c *cli.Context) (control.RunbookRequest, error) {
	q := control.RunbookRequest{File: c.Args().First(), Mode: c.String("mode"), At: c.String("at"), Force: c.Bool("force"), Operator: operator()}
	if q.At != "" {
		if err := site.CheckAt(q.At); err != nil {
			return q, err
		}
	}
	var err error
	if q.Text, err = os.ReadFile(q.File); err != nil {
		return q, fault.Wrap(fault.FileTrouble, "read runbook "+q.File, err)
	}
	return q, nil
}

func (w *world) runbookCheck(c *cli.Context) error {
	q, err := runbookRequest(c)
	if err != nil {
		return err
	}
	_, api, err := w.site(c)
	if err != nil {
		return err
	}
	plan, err := api.CheckRunbook(c.Context, q)
	if err != nil {
		return err
	}
	p := w.printer(c)
	return p.data(plan, func() string {
		return fmt.Sprintf("%s: runbook %s is in order; groups: %s\n", q.File, plan.Runbook, strings.Join(plan.Groups, ", "))
	})
}

func (w *world) runbookPlan(c *cli.Context) error {
	q, err := runbookRequest(c)
	if err != nil {
		return err
	}
	_, api, err := w.site(c)
	if err != nil {
		return err
	}
	plan, err := api.PlanRunbook(c.Context, q)
	if err != nil {
		return err
	}
	p := w.printer(c)
	return p.data(plan, func() string { return p.runbookScreen(plan) })
}

func (w *world) runbookRun(c *cli.Context) error {
	q, err := runbookRequest(c)
	if err != nil {
		return err
	}
	_, api, err := w.site(c)
	if err != nil {
		return err
	}
	plan, err := api.PlanRunbook(c.Context, q)
	if err != nil {
		return err
	}
	p := w.printer(c)
	if c.Bool("dry-run") {
		return p.data(plan, func() string { return p.runbookScreen(plan) })
	}
	if len(plan.Refused) > 0 && !q.Force {
		return fault.New(fault.NotFenced, "run runbook "+q.File, "%s", strings.Join(plan.Refused, "; ")).With(plan)
	}
	p.note("%s", p.runbookScreen(plan))
	if err := p.confirmNamed(c.Bool("yes") || q.Mode == "test", "runbook", plan.Runbook, "run the runbook"); err != nil {
		return err
	}
	q.Expect, q.Points = plan.Digest, plan.Points
	m := p.meter()
	run, err := api.RunRunbook(c.Context, q, m.show)
	m.end()
	if err != nil {
		return err
	}
	return p.data(run, func() string { return p.runScreen(run) })
}

func (w *world) runbookResume(c *cli.Context) error {
	q := control.RunRequest{Run: c.Args().First(), Step: c.Int("step"), Answer: c.String("answer"), Operator: operator()}
	if (q.Step == 0) != (q.Answer == "") {
		return usage("--step and --answer belong together")
	}
	_, api, err := w.site(c)
	if err != nil {
		return err
	}
	p := w.printer(c)
	m := p.meter()
	run, err := api.ResumeRun(c.Context, q, m.show)
	m.end()
	if err != nil {
		return err
	}
	return p.data(run, func() string { return p.runScreen(run) })
}

func (w *world) runbookAbort(c *cli.Context) error {
	q := control.RunRequest{Run: c.Args().First(), Reason: c.String("reason"), Operator: operator()}
	_, api, err := w.site(c)
	if err != nil {
		return err
	}
	p := w.printer(c)
	if err := p.confirmNamed(c.Bool("yes"), "run", q.Run, "abort the run"); err != nil {
		return err
	}
	m := p.meter()
	run, err := api.AbortRun(c.Context, q, m.show)
	m.end()
	if err != nil && run.State != "aborted" {
		return err
	}
	return p.data(run, func() string { return p.runScreen(run) })
}

func (w *world) runbookList(c *cli.Context) error {
	_, api, err := w.site(c)
	if err != nil {
		return err
	}
	runs, err := api.Runs(c.Context)
	if err != nil {
		return err
	}
	p := w.printer(c)
	return p.data(map[string]any{"runs": runs}, func() string {
		if len(runs) == 0 {
			return "no runs\n"
		}
		t := p.newTable("RUN", "MODE", "STATE", "BEGUN", "RTO", "OPERATOR")
		for _, r := range runs {
			t.row(r.Run, r.Mode, r.State, p.when(r.Begun), orUnknown(r.RTO), orDash(r.Operator))
		}
		return t.String()
	})
}

func (w *world) runbookShow(c *cli.Context) error {
	_, api, err := w.site(c)
	if err != nil {
		return err
	}
	run, err := api.RunDetail(c.Context, c.Args().First())
	if err != nil {
		return err
	}
	p := w.printer(c)
	return p.data(run, func() string { return p.runScreen(run) + outputs(run.Steps) })
}

func orUnknown(s *float64) string {
	if s == nil {
		return "-"
	}
	return seconds(*s)
}

func (p *printer) runbookScreen(plan control.RunbookPlan) string {
	var b strings.Builder
	b.WriteString(plan.Text)
	for _, group := range slices.Sorted(maps.Keys(plan.Points)) {
		if len(plan.Failover) == 0 {
			fmt.Fprintf(&b, "\n%s at point %s\n", group, plan.Points[group])
		}
	}
	for _, f := range plan.Failover {
		fmt.Fprintf(&b, "\n%s at point %s, %s\n  loss: %s\n", f.Group, seqName(f.Point), p.when(f.Point.Time), lossText(f.Loss))
	}
	for _, h := range plan.Handover {
		fmt.Fprintf(&b, "\n%s from %s to %s, %s behind now\n  loss: none\n", h.Group, h.From, h.To, plural(h.Behind, "record"))
	}
	for _, s := range plan.Warnings {
		if !strings.Contains(plan.Text, s) {
			fmt.Fprintf(&b, "warning: %s\n", s)
		}
	}
	for _, s := range plan.Refused {
		if len(plan.Handover) == 0 {
			s += " (--force overrides)"
		}
		fmt.Fprintf(&b, "refused: %s\n", s)
	}
	return b.String()
}

func (p *printer) runScreen(r control.RunbookRun) string {
	var b strings.Builder
	fmt.Fprintf(&b, "run %s: %s\n", r.Run, r.State)
	if r.Why != "" {
		fmt.Fprintf(&b, "why: %s\n", r.Why)
	}
	fmt.Fprintf(&b, "begun %s by %s", p.when(r.Begun), orDash(r.Operator))
	if !r.Ended.IsZero() {
		fmt.Fprintf(&b, ", ended %s", p.when(r.Ended))
	}
	b.WriteString("\n")
	if r.RTO != nil {
		fmt.Fprintf(&b, "RTO: %s\n", seconds(*r.RTO))
	}
	t := p.newTable("#", "BOOT GROUP", "STEP", "STATE", "TOOK", "DETAIL")
	for _, s := range r.Steps {
		t.row(fmt.Sprint(s.Step), orDash(s.Boot), s.Name, s.State, orUnknown(s.Seconds), orDash(s.Detail))
	}
	b.WriteString("\n" + t.String())
	reported(&b, r.Report)
	return b.String()
}

// outputs is what the steps of a run printed, one after the other. A guest or a
// program wrote it: what would drive a terminal is left out.
func outputs(steps []control.RunbookStep) string {
	var b strings.Builder
	for _, s := range steps {
		text := strings.TrimRight(s.Output, "\n")
		if text == "" {
			continue
		}
		fmt.Fprintf(&b, "\noutput of step %d, %s:\n", s.Step, s.Name)
		for line := range strings.Lines(text) {
			line = strings.Map(func(r rune) rune {
				if r != '\t' && !unicode.IsPrint(r) {
					return -1
				}
				return r
			}, line)
			fmt.Fprintf(&b, "  %s\n", line)
		}
	}
	return b.String()
}
