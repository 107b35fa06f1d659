package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

func decisionFlags(more ...cli.Flag) []cli.Flag {
	return append(more, &cli.BoolFlag{Name: "dry-run", Usage: "say what it means and change nothing"}, &cli.BoolFlag{Name: "yes", Usage: "go on without asking"})
}

func (w *world) failoverCommitCommand() *cli.Command {
	return verb("commit", "keep what was failed over", "NAME",
		"Run it at the site that was failed over to. Its history is the group's from then on; what the old primary wrote beyond the fork is a branch when it comes back.",
		[]string{"afterimage failover commit web", "afterimage failover commit web --yes"}, decisionFlags(), w.deciding(control.VerbCommit))
}

func (w *world) failoverRollbackCommand() *cli.Command {
	return verb("rollback", "take a failover back: the old primary goes on", "NAME",
		"Run it at the site that was failed over to. Its machine is ended, what was written since the failover is left as a branch, which is kept and can be mounted, and this site is a replica again. --dry-run shows how much that is.",
		[]string{"afterimage failover rollback web --dry-run", "afterimage failover rollback web --yes"}, decisionFlags(), w.deciding(control.VerbRollback))
}

func (w *world) failoverReprotectCommand() *cli.Command {
	return verb("reprotect", "have the old primary follow the new one", "NAME",
		"Run it at the new primary, once the failover is committed. Peers that went another way leave what they wrote since the fork as a branch, which they keep, and are sent only what differs since. One that does not answer does so when it is back. A machine that runs there is never stopped: shut it down first.",
		[]string{"afterimage failover reprotect web --dry-run", "afterimage failover reprotect web --yes"}, decisionFlags(), w.deciding(control.VerbReprotect))
}

func (w *world) failoverResolveCommand() *cli.Command {
	return verb("resolve", "keep one of two histories after a split brain", "NAME",
		"Run it at either site. Shows both histories and where they part; the one that is not kept stays at its site as a branch and can be mounted.",
		[]string{"afterimage failover resolve web --keep a --dry-run", "afterimage failover resolve web --keep a --yes"},
		decisionFlags(&cli.StringFlag{Name: "keep", Usage: "`SITE` whose history goes on", Required: true}), w.deciding(control.VerbResolve))
}

func (w *world) groupRejoinVerb() *cli.Command {
	return verb("rejoin", "have a replica go on that has thinned where the histories part", "NAME",
		"Run it at the replica. One that holds records which the primary's history left, and has thinned the record where that was, can take nothing any more; status shows why. Its history is set aside under a name of its own, NAME@1, and can be read; the group begins again with the newest point that both hold, read here, and is sent only what differs since.",
		[]string{"afterimage group rejoin web --dry-run", "afterimage group rejoin web --yes"}, decisionFlags(), w.deciding(control.VerbRejoin))
}

// deciding is the action of a verb that decides what a failover came to.
func (w *world) deciding(verb string) cli.ActionFunc {
	return func(c *cli.Context) error {
		_, api, err := w.site(c)
		if err != nil {
			return err
		}
		p := w.printer(c)
		q := control.DecisionRequest{Verb: verb, Group: c.Args().First(), Keep: c.String("keep"), Operator: operator()}
		d, err := api.PlanDecision(c.Context, q)
		if err != nil {
			return err
		}
		if c.Bool("dry-run") {
			return p.data(d, func() string { return p.decisionScreen(d) })
		}
		if len(d.Refused) > 0 {
			return fault.New(fault.RoleForbids, verb+" "+d.Group, "%s", strings.Join(d.Refused, "; ")).With(d)
		}
		p.note("%s", p.decisionScreen(d))
		if err := p.confirm(c.Bool("yes"), d.Group, verb); err != nil {
			return err
		}
		q.Expect = d.Digest
		m := p.meter()
		done, err := api.Decide(c.Context, q, m.show)
		m.end()
		if err != nil {
			return err
		}
		return p.data(done, func() string { return p.decided(done) })
	}
}

func (p *printer) decisionScreen(d control.Decision) string {
	var b strings.Builder
	line := func(label, format string, args ...any) {
		fmt.Fprintf(&b, "%-9s %s\n", label, fmt.Sprintf(format, args...))
	}
	line("group", "%s, %s here in epoch %d", d.Group, d.Role, d.Epoch)
	if d.Fork != nil {
		line("fork", "%s, %s", seqName(*d.Fork), p.when(d.Fork.Time))
	}
	if d.Loss != nil {
		line("given up", "%s", lossText(*d.Loss))
	}
	if d.Branch != nil {
		line("branch", "#%d.%d to #%d.%d, kept", d.Branch.Epoch, d.Branch.First, d.Branch.Epoch, d.Branch.Last)
	}
	if len(d.Sides) > 0 {
		t := p.newTable("SITE", "ROLE", "HEAD", "BEYOND THE FORK", "KEPT", "HISTORY")
		for _, s := range d.Sides {
			t.row(s.Site, s.Role, s.Head, plural(s.Beyond, "record"), yesNo(s.Kept), epochsText(s.History))
		}
		b.WriteString("\n" + t.String())
	}
	p.steps(&b, d.Steps, d.Warnings)
	for _, s := range d.Refused {
		fmt.Fprintf(&b, "refused: %s\n", s)
	}
	return b.String()
}

// epochsText is the newest epochs of a history on one line.
func epochsText(history []control.Branch) string {
	const shown = 3
	var parts []string
	for _, e := range history[max(0, len(history)-shown):] {
		parts = append(parts, fmt.Sprintf("%d (%s) %d..%d", e.Epoch, e.Site, e.First, e.Last))
	}
	return strings.Join(parts, ", ")
}

func (p *printer) decided(d control.Decision) string {
	var b strings.Builder
	switch d.Verb {
	case control.VerbCommit:
		fmt.Fprintf(&b, "the failover of %s is committed; this site is its primary\n", d.Group)
	case control.VerbRollback:
		fmt.Fprintf(&b, "the failover of %s is rolled back; this site is a replica again\n", d.Group)
	default:
		fmt.Fprintf(&b, "%s: %s done; this site is %s\n", d.Group, d.Verb, d.Role)
	}
	if d.Branch != nil {
		fmt.Fprintf(&b, "what was written since is kept: view serve %s --at '#%d.%d'\n", d.Group, d.Branch.Epoch, d.Branch.Last)
	}
	if d.Aside != "" {
		fmt.Fprintf(&b, "what was here is kept: point list %s\n", d.Aside)
	}
	for _, s := range d.Following {
		fmt.Fprintf(&b, "%s follows\n", s)
	}
	for _, s := range d.Away {
		fmt.Fprintf(&b, "%s does not answer, and follows when it is back\n", s)
	}
	reported(&b, d.Report)
	return b.String()
}
