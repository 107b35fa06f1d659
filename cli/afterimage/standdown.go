package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

func (w *world) failoverStandDownCommand() *cli.Command {
	return verb("stand-down", "give the group up at the old site, and sign that it is off", "NAME",
		"Run it at the primary's site, when its peers do not reach it but you do. The machine has to be off, and is seen off; the role is given up, durably; then this site signs where its history ends and that it will not start the group. Carry that to the site that takes over: failover unplanned --fence statement:FILE. It counts as one channel of the fence; a second one has to confirm it. This site is a replica of whoever is failed over to.",
		[]string{"afterimage failover stand-down web --dry-run", "afterimage failover stand-down web --yes --out web.statement"},
		decisionFlags(&cli.StringFlag{Name: "out", Usage: "new `FILE` for the statement; default: it is printed"}), w.failoverStandDown)
}

func (w *world) failoverStandDown(c *cli.Context) error {
	_, api, err := w.site(c)
	if err != nil {
		return err
	}
	p := w.printer(c)
	q := control.DecisionRequest{Verb: control.VerbStandDown, Group: c.Args().First(), Operator: operator()}
	d, err := api.PlanDecision(c.Context, q)
	if err != nil {
		return err
	}
	if c.Bool("dry-run") {
		return p.data(d, func() string { return p.decisionScreen(d) })
	}
	if len(d.Refused) > 0 {
		return fault.New(fault.RoleForbids, "stand down from "+d.Group, "%s", strings.Join(d.Refused, "; ")).With(d)
	}
	out := c.String("out")
	if out != "" { // before the role is given up, not after it
		if _, err := os.Lstat(out); err == nil {
			return fault.New(fault.FileExists, "write the statement", "%s is there already", out)
		}
	}
	p.note("%s", p.decisionScreen(d))
	if err := p.confirm(c.Bool("yes"), d.Group, "stand down"); err != nil {
		return err
	}
	q.Expect = d.Digest
	m := p.meter()
	done, err := api.Decide(c.Context, q, m.show)
	m.end()
	if err != nil {
		return err
	}
	if out != "" {
		if err := writeNew(out, done.Statement+"\n"); err != nil {
			p.note("%s\n", done.Statement) // it is not lost
			return fault.Wrap(fault.FileTrouble, "write the statement", err)
		}
	}
	if done.Report != "" { // beside the statement, which is the data
		p.note("report: %s", done.Report)
	}
	return p.data(done, func() string {
		if out != "" {
			return fmt.Sprintf("%s is given up here; the statement is in %s\n", done.Group, out)
		}
		return done.Statement + "\n"
	})
}

// writeNew makes a file that was not there.
func writeNew(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if done := f.Close(); err == nil {
		err = done
	}
	return err
}
