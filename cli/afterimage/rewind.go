package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/novacron/afterimage/site"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

func (w *world) rewindVerb() *cli.Command {
	return verb("rewind", "roll a group back in place, to a point of its own history", "NAME",
		"Run it where the group is primary. Its machine is turned off as a power cut would, a domain that is tapped as well as one that this site started; a plain QEMU is ended through its monitor and stays off, for nobody told how to start it. What differs from the point is written to the group's own disks, the machine's files or block devices, and read back; a new epoch begins there, and the machine is started again. What came after stays as a branch, pinned: the plan says which --at leads back to it. --dry-run stops at the plan. A terminal asks for the group's name, a script needs --yes. A rewind that is interrupted is finished when the daemon starts again.",
		[]string{"afterimage group rewind web --at before:attack --dry-run", "afterimage group rewind web --at -5m --yes", "afterimage group rewind web --at '#3.1200' --yes"},
		[]cli.Flag{
			&cli.StringFlag{Name: "at", Required: true, Usage: "`MOMENT` to go back to: -5m or -7d, an RFC 3339 time, name:X, before:X, #SEQ or #EPOCH.SEQ"},
			&cli.BoolFlag{Name: "dry-run", Usage: "print the plan and change nothing"},
			&cli.BoolFlag{Name: "yes", Usage: "go on without asking"},
			&cli.BoolFlag{Name: "force", Usage: "go on although a check refuses"},
			&cli.BoolFlag{Name: "no-machine", Usage: "leave the machine off afterwards"},
		}, w.groupRewind)
}

func (w *world) groupRewind(c *cli.Context) error {
	if err := site.CheckAt(c.String("at")); err != nil {
		return err
	}
	_, api, err := w.site(c)
	if err != nil {
		return err
	}
	p := w.printer(c)
	q := control.RewindRequest{Group: c.Args().First(), At: c.String("at"), Force: c.Bool("force"), NoMachine: c.Bool("no-machine"), Operator: operator()}
	plan, err := api.PlanRewind(c.Context, q)
	if err != nil {
		return err
	}
	p.resolved(plan.Group, plan.At, plan.Point)
	if c.Bool("dry-run") {
		return p.data(plan, func() string { return p.rewindScreen(plan) })
	}
	if len(plan.Refused) > 0 && !q.Force {
		return fault.New(fault.RewindRefused, "rewind "+plan.Group, "%s", strings.Join(plan.Refused, "; ")).With(plan)
	}
	p.note("%s", p.rewindScreen(plan))
	if err := p.confirm(c.Bool("yes"), plan.Group, "rewind"); err != nil {
		return err
	}
	q.Expect, q.At = plan.Digest, seqName(plan.Point) // -5m means another moment by now
	m := p.meter()
	done, err := api.Rewind(c.Context, q, m.show)
	m.end()
	if err != nil {
		return err
	}
	return p.data(done, func() string { return p.rewound(done) })
}

func (p *printer) rewindScreen(plan control.RewindPlan) string {
	var b strings.Builder
	line := func(label, format string, args ...any) {
		fmt.Fprintf(&b, "%-9s %s\n", label, fmt.Sprintf(format, args...))
	}
	line("group", "%s", plan.Group)
	line("point", "%s, %s (%s)", seqName(plan.Point), p.when(plan.Point.Time), plan.At)
	line("epoch", "%d begins there", plan.Epoch)
	line("given up", "%s, %s, %s as of now; the guest writes on until it is stopped", seconds(plan.Seconds), plural(plan.Writes, "write"), size(plan.Bytes))
	if plan.Undo != "" {
		line("undo", "--at '%s'", plan.Undo)
	}
	if plan.Machine != "" {
		line("machine", "%s", plan.Machine)
	}
	if len(plan.Volumes) > 0 {
		t := p.newTable("VOLUME", "MAY DIFFER", "WRITES GIVEN UP", "BYTES")
		for _, v := range plan.Volumes {
			t.row(v.Volume, size(v.Differ), fmt.Sprint(v.Writes), size(v.Bytes))
		}
		b.WriteString("\n" + t.String())
	}
	b.WriteString("\n")
	for i, s := range plan.Steps {
		fmt.Fprintf(&b, "%d. %s\n", i+1, s)
	}
	for _, s := range plan.Warnings {
		fmt.Fprintf(&b, "warning: %s\n", s)
	}
	for _, s := range plan.Refused {
		fmt.Fprintf(&b, "refused: %s (--force overrides)\n", s)
	}
	return b.String()
}

func (p *printer) rewound(r control.Rewound) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s is back at point %s, %s, in epoch %d, after %s\n", r.Group, seqName(r.Point), p.when(r.Point.Time), r.Epoch, seconds(r.SecondsTaken))
	fmt.Fprintf(&b, "given up: %s, %s, %s\n", seconds(r.Seconds), plural(r.Writes, "write"), size(r.Bytes))
	if r.Undo != "" {
		fmt.Fprintf(&b, "undo: afterimage group rewind %s --at '%s'", r.Group, r.Undo)
		if r.Pin != "" {
			fmt.Fprintf(&b, " (pinned as %s)", r.Pin)
		}
		b.WriteString("\n")
	}
	switch {
	case r.Started:
		fmt.Fprintf(&b, "machine %s runs again\n", r.Machine)
	case r.Machine != "" && r.StaysOff:
		fmt.Fprintf(&b, "machine %s is off: start it again yourself\n", r.Machine)
	case r.Machine != "":
		fmt.Fprintf(&b, "machine %s is off\n", r.Machine)
	}
	return b.String()
}
