package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

func (w *world) failoverPlannedCommand() *cli.Command {
	return verb("planned", "hand a group over to another site without any loss", "NAME",
		"Run it at the primary's site or at the one that takes over; both must be up. No write is taken any more, the peer receives all, both sites name the record at which their histories end, the old primary gives its role up, durably, and then the new one begins. The old site follows the new one at once. The group's machine has to be off, or --shutdown asks its guest to switch itself off first; where the handover does not come about it is started again. At the other side it is started from the history; a domain that comes home is started as it is defined there, once its own disks hold the newest record. Interrupted anywhere, it is finished or taken back: there are never two primaries.",
		[]string{"afterimage failover planned web --dry-run", "afterimage failover planned web --to b --shutdown --yes"},
		[]cli.Flag{
			&cli.StringFlag{Name: "to", Usage: "`SITE` that takes over; needed where the group has several peers"},
			&cli.StringFlag{Name: "quiesce", Usage: "freeze the guest's file systems and mark the last point: `WHAT` is app"},
			&cli.BoolFlag{Name: "shutdown", Usage: "ask the guest of the machine that runs to switch itself off first"},
			spanFlag("patience", "1m", "`SPAN` that the peer may take to hold all"),
			&cli.BoolFlag{Name: "no-machine", Usage: "promote the history and serve its disks, but start no machine"},
			&cli.BoolFlag{Name: "dry-run", Usage: "print the plan and change nothing"},
			&cli.BoolFlag{Name: "yes", Usage: "go on without asking"},
		}, w.failoverPlanned)
}

func (w *world) failoverPlanned(c *cli.Context) error {
	if q := c.String("quiesce"); q != "" && q != "app" {
		return fault.New(fault.Usage, "read --quiesce", "%q is not app", q)
	}
	patience, err := spanOf(c, "patience")
	if err != nil {
		return err
	}
	_, api, err := w.site(c)
	if err != nil {
		return err
	}
	p := w.printer(c)
	q := control.HandoverRequest{Group: c.Args().First(), To: c.String("to"), Quiesce: c.String("quiesce"), Shutdown: c.Bool("shutdown"), Patience: patience.Seconds(),
		NoMachine: c.Bool("no-machine"), Operator: operator()}
	plan, err := api.PlanHandover(c.Context, q)
	if err != nil {
		return err
	}
	if c.Bool("dry-run") {
		return p.data(plan, func() string { return p.handoverScreen(plan) })
	}
	if len(plan.Refused) > 0 {
		return fault.New(fault.HandoverTrouble, "hand over "+plan.Group, "%s", strings.Join(plan.Refused, "; ")).With(plan)
	}
	p.note("%s", p.handoverScreen(plan))
	if err := p.confirm(c.Bool("yes"), plan.Group, "hand over"); err != nil {
		return err
	}
	q.Expect = plan.Digest
	m := p.meter()
	done, err := api.Handover(c.Context, q, m.show)
	m.end()
	if err != nil {
		return err
	}
	return p.data(done, func() string { return p.handedOver(done) })
}

func (p *printer) handoverScreen(plan control.HandoverPlan) string {
	var b strings.Builder
	line := func(label, format string, args ...any) {
		fmt.Fprintf(&b, "%-9s %s\n", label, fmt.Sprintf(format, args...))
	}
	line("group", "%s", plan.Group)
	line("from", "%s, at record %s, %s", plan.From, seqName(plan.Head), p.when(plan.Head.Time))
	line("to", "%s, %s behind now, %s", plan.To, plural(plan.Behind, "record"), size(plan.Pending))
	line("loss", "none: %s", "it begins when all is there")
	if plan.Expected != nil {
		line("expected", "%s, by drills and failovers at this site", seconds(*plan.Expected))
	}
	p.steps(&b, plan.Steps, plan.Warnings)
	for _, s := range plan.Refused {
		fmt.Fprintf(&b, "refused: %s\n", s)
	}
	return b.String()
}

// steps writes numbered steps and warnings after a blank line.
func (p *printer) steps(b *strings.Builder, steps, warnings []string) {
	b.WriteString("\n")
	for i, s := range steps {
		fmt.Fprintf(b, "%d. %s\n", i+1, s)
	}
	for _, s := range warnings {
		fmt.Fprintf(b, "warning: %s\n", s)
	}
}

func (p *printer) handedOver(d control.HandedOver) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s is primary at %s, in epoch %d; %s follows it\n", d.Group, d.To, d.Epoch, d.From)
	if d.Chain != "" {
		fmt.Fprintf(&b, "loss: none; both histories ended at record %s, chain %s\n", seqName(d.Last), d.Chain)
	}
	if d.PauseSeconds > 0 {
		fmt.Fprintf(&b, "no write was taken for %s\n", seconds(d.PauseSeconds))
	}
	reported(&b, d.Report)
	return b.String()
}
