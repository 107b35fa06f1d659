package main

import (
	"fmt"
	"io"
	"os"
	"os/user"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/novacron/afterimage/site"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

func (w *world) failoverCommand() *cli.Command {
	return noun("failover", "bring a group up at another site, undo it, and go home",
		w.failoverPlannedCommand(),
		verb("unplanned", "make this site the group's primary after the old one died", "NAME",
			"Run it at the replica's site. Every peer that answers is asked where its history ends; what one holds beyond this site is fetched first. The plan shows that and the loss in seconds, writes and bytes; --dry-run stops there. A terminal asks for the group's name, a script needs --yes. --force overrides checks that refuse, and is recorded: unreachable is not the same as off. When the machine did not start, or died, the same command again starts it and promotes nothing again.",
			[]string{"afterimage failover unplanned web --dry-run", "afterimage failover unplanned web --at latest --yes"},
			[]cli.Flag{
				atFlag(),
				&cli.BoolFlag{Name: "dry-run", Usage: "print the plan and change nothing"},
				&cli.BoolFlag{Name: "yes", Usage: "go on without asking"},
				&cli.BoolFlag{Name: "force", Usage: "go on although a check refuses"},
				&cli.StringFlag{Name: "fence", Usage: "one more `CHANNEL` of the fence, for this time: statement:FILE, with what the old site signed when it stood down"},
				&cli.StringFlag{Name: "statement", Usage: "`FILE`, as --fence statement:FILE"},
				&cli.StringFlag{Name: "tail", Usage: "`SITE` whose tail is fetched first, where several exclude each other"},
				&cli.BoolFlag{Name: "without-tail", Usage: "go on with what is here, though a peer that answers holds more"},
				spanFlag("tail-within", "10m", "`SPAN` in which a peer's tail has to arrive"),
				&cli.StringFlag{Name: "commit-policy", Usage: "`WHAT` becomes of it if nobody commits or rolls back: none, commit or rollback"},
				spanFlag("commit-after", "1h", "`SPAN` after which the commit policy decides"),
				&cli.BoolFlag{Name: "no-machine", Usage: "promote the history and serve its disks, but start no machine"},
			}, w.failoverUnplanned),
		w.failoverCommitCommand(), w.failoverRollbackCommand(), w.failoverReprotectCommand(), w.failoverResolveCommand(), w.failoverStandDownCommand(),
		w.failoverTestCommand(),
	)
}

func (w *world) failoverUnplanned(c *cli.Context) error {
	if err := site.CheckAt(c.String("at")); err != nil {
		return err
	}
	policy, after, err := policyFlags(c)
	if err != nil {
		return err
	}
	within, err := spanOf(c, "tail-within")
	if err != nil {
		return err
	}
	_, api, err := w.site(c)
	if err != nil {
		return err
	}
	p := w.printer(c)
	q := control.FailoverRequest{Group: c.Args().First(), At: c.String("at"), Force: c.Bool("force"), NoMachine: c.Bool("no-machine"), Operator: operator()}
	q.Policy, q.PolicySeconds = policy, after.Seconds()
	q.Tail, q.WithoutTail, q.TailSeconds = c.String("tail"), c.Bool("without-tail"), within.Seconds()
	if q.Tail != "" && q.WithoutTail {
		return usage("--tail and --without-tail exclude each other")
	}
	if q.Statement, err = statementOf(c.String("fence"), c.String("statement")); err != nil {
		return err
	}
	plan, err := api.PlanFailover(c.Context, q)
	if err != nil {
		return err
	}
	p.resolved(plan.Group, plan.At, plan.Point)
	if c.Bool("dry-run") {
		return p.data(plan, func() string { return p.planScreen(plan) })
	}
	if len(plan.Refused) > 0 && !q.Force {
		return refused(plan)
	}
	p.note("%s", p.planScreen(plan))
	if err := p.confirm(c.Bool("yes"), plan.Group, "fail over"); err != nil {
		return err
	}
	q.Expect = plan.Digest
	m := p.meter()
	done, err := api.Failover(c.Context, q, m.show)
	m.end()
	if err != nil {
		return err
	}
	return p.data(done, func() string { return p.failedOver(done) })
}

// policyFlags are what becomes of a failover that nobody decides on, and when.
func policyFlags(c *cli.Context) (policy string, after time.Duration, err error) {
	switch policy = c.String("commit-policy"); policy {
	case "", "none":
		if c.IsSet("commit-after") {
			return "", 0, usage("--commit-after says when --commit-policy commit or rollback decides, and neither is given")
		}
		return policy, 0, nil
	case "commit", "rollback":
		after, err = spanOf(c, "commit-after")
		return policy, after, err
	}
	return "", 0, usage("--commit-policy %q is none of none, commit, rollback", policy)
}

// refused is the error of a plan that only --force carries out.
func refused(plan control.Plan) error {
	code := fault.NotFenced
	for _, e := range plan.Peers {
		if e.Reachable && e.Primary {
			code = fault.PrimaryAlive
		}
	}
	return fault.New(code, "fail over "+plan.Group, "%s", strings.Join(plan.Refused, "; ")).With(plan)
}

func (p *printer) planScreen(plan control.Plan) string {
	var b strings.Builder
	line := func(label, format string, args ...any) {
		fmt.Fprintf(&b, "%-9s %s\n", label, fmt.Sprintf(format, args...))
	}
	line("group", "%s", plan.Group)
	line("point", "%s, %s (%s)", seqName(plan.Point), p.when(plan.Point.Time), plan.At)
	if plan.Resumes {
		line("epoch", "%d reigns here already; only the machine is missing", plan.Epoch)
	} else {
		line("epoch", "%d begins there", plan.Epoch)
	}
	fence := plan.Fence
	if len(plan.Fencing) > 0 && !plan.Resumes {
		fence = "the first step is to prove it, by " + strings.Join(plan.Fencing, "; ")
	} else if fence == "unknown" {
		fence += ": nobody proved that the old primary is off"
	}
	line("fence", "%s", fence)
	line("loss", "%s", lossText(plan.Loss))
	if n := plan.Loss.NeverArrived; n.Records > 0 {
		line("", "of it never arrived: %s, %s, %s", seconds(n.Seconds), plural(n.Records, "record"), size(n.Bytes))
	}
	if t := plan.Tail; t != nil {
		line("tail", "%s that %s holds beyond this site, up to #%d.%d, %s: fetched first", plural(t.Records, "record"), t.Peer, t.Epoch, t.Seq, size(t.Bytes))
	}
	if plan.Machine != "" {
		line("machine", "%s", plan.Machine)
	}
	if plan.Timing != nil {
		line("expected", "%s", measuredLine(*plan.Timing))
	} else if plan.Expected != nil {
		line("expected", "%s, by drills and failovers at this site", seconds(*plan.Expected))
	}
	if len(plan.Loss.Volumes) > 0 {
		t := p.newTable("VOLUME", "WRITES GIVEN UP", "BYTES")
		for _, v := range plan.Loss.Volumes {
			t.row(v.Volume, fmt.Sprint(v.Writes), size(v.Bytes))
		}
		b.WriteString("\n" + t.String())
	}
	if len(plan.Peers) > 0 {
		t := p.newTable("PEER", "ANSWERS", "HEAD", "TIME")
		for _, e := range plan.Peers {
			head := "-"
			if e.Seq > 0 { // of one that does not answer: as last heard
				head = fmt.Sprintf("#%d.%d", e.Epoch, e.Seq)
			}
			t.row(e.Name, answersText(e), head, p.when(e.Time))
		}
		b.WriteString("\n" + t.String())
	}
	b.WriteString("\n")
	for i, s := range plan.Steps {
		fmt.Fprintf(&b, "%d. %s\n", i+1, s)
	}
	if plan.Timing != nil && len(plan.Timing.Steps) > 0 {
		b.WriteString("\n" + p.measuredTable(*plan.Timing) + "\n")
	}
	for _, s := range plan.Warnings {
		fmt.Fprintf(&b, "warning: %s\n", s)
	}
	for _, s := range plan.Refused {
		fmt.Fprintf(&b, "refused: %s (--force overrides)\n", s)
	}
	return b.String()
}

// lossText never says "none" of what is only not known.
func lossText(l control.Loss) string {
	if !l.Known {
		return "unknown: the source's head was never heard"
	}
	s := fmt.Sprintf("%s, %s, %s", seconds(l.Seconds), plural(l.Writes, "write"), size(l.Bytes))
	if l.Unheard > 0 {
		s += fmt.Sprintf("; besides whatever was written in the %s since the source was last heard", seconds(l.Unheard))
	}
	return s
}

func (p *printer) failedOver(d control.FailedOver) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s runs here in epoch %d from point %s; role uncommitted\n", d.Group, d.Epoch, seqName(d.Point))
	if d.Resumes {
		fmt.Fprintf(&b, "it was promoted before and only its machine was started, in %s\nloss, as told then: %s\n", seconds(d.RTOSeconds), lossText(d.Loss))
	} else {
		fmt.Fprintf(&b, "loss: %s\nRTO: %s\n", lossText(d.Loss), seconds(d.RTOSeconds))
	}
	for _, m := range d.Machines {
		fmt.Fprintf(&b, "machine %s is running, process %d", m.Name, m.PID)
		if m.QMP != "" {
			fmt.Fprintf(&b, ", QMP %s", m.QMP)
		}
		b.WriteString("\n")
	}
	if d.Started && len(d.Machines) == 0 {
		fmt.Fprintf(&b, "machine %s is running, QMP %s\n", d.Machine, d.QMP)
	}
	if len(d.Exports) > 0 {
		t := p.newTable("VOLUME", "EXPORT")
		for _, e := range d.Exports {
			t.row(e.Volume, e.URI)
		}
		b.WriteString("\n" + t.String())
	}
	reported(&b, d.Report)
	if d.Proof != nil {
		fmt.Fprintf(&b, "\nfence: %s: %s\n", d.Proof.Result, d.Proof.Why)
	}
	if d.Unfenced {
		b.WriteString("\nNobody proved that the old primary is off. Keep it off.\n")
	}
	return b.String()
}

// reported says where the evidence of what was done lies.
func reported(b *strings.Builder, file string) {
	if file != "" {
		fmt.Fprintf(b, "\nreport: %s\n", file)
	}
}

// statementOf is the text that --fence or --statement names.
func statementOf(channel, file string) (string, error) {
	path, ok := strings.CutPrefix(channel, "statement:")
	switch {
	case channel == "":
		return statementIn(file)
	case !ok || path == "":
		return "", usage("--fence %s: want statement:FILE; other channels are fence: of the group", channel)
	case file != "" && file != path:
		return "", usage("--fence and --statement name two files")
	}
	return statementIn(path)
}

// statementIn is the text of a statement's file; no file, no statement.
func statementIn(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	f, err := os.Open(path)
	if err != nil {
		return "", usage("--statement: %v", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 64<<10))
	if err != nil {
		return "", usage("--statement: %v", err)
	}
	return string(b), nil
}

// answersText says whether a peer answers, and how its history stands to the one here.
func answersText(e control.PlanPeer) string {
	s := yesNo(e.Reachable)
	if e.Relation != "" {
		s += ", " + strings.TrimPrefix(e.Relation, "peer ")
	}
	return s
}

func yesNo(v bool) string {
	if v {
		return "yes"
	}
	return "no"
}

// operator is who runs the command, for the record.
func operator() string {
	u, err := user.Current()
	if err != nil {
		return "unknown"
	}
	return u.Username
}
