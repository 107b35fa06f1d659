package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/novacron/afterimage/site"
	"github.com/novacron/afterimage/site/control"
)

// failoverTestCommand is a failover's rehearsal, which asks nothing: it changes nothing.
func (w *world) failoverTestCommand() *cli.Command {
	return verb("test", "rehearse a failover and take it away again", "NAME",
		"The group's machine is started at this site as of the moment given, over scratch disks and with network cards that lead nowhere; its health is waited for, and then everything of it is removed. Replication, the group's history and its RPO are not touched. The report tells the time it took; what could not be removed is named, exit 3.",
		[]string{"afterimage failover test web", "afterimage failover test web --at name:before-patch -o json"},
		[]cli.Flag{atFlag()}, w.failoverTest)
}

func (w *world) failoverTest(c *cli.Context) error {
	q := control.DrillRequest{Group: c.Args().First(), At: c.String("at"), Operator: operator()}
	if err := site.CheckAt(q.At); err != nil {
		return err
	}
	_, api, err := w.site(c)
	if err != nil {
		return err
	}
	p := w.printer(c)
	m := p.meter()
	done, err := api.TestFailover(c.Context, q, m.show)
	m.end()
	if err != nil {
		return err
	}
	p.resolved(done.Group, done.At, done.Point)
	return p.data(done, func() string {
		var b strings.Builder
		fmt.Fprintf(&b, "machine %s ran from point %s and is gone again\nRTO: %s\n", done.Machine, seqName(done.Point), seconds(done.RTOSeconds))
		if done.Health != "" {
			fmt.Fprintf(&b, "health: %s\n", done.Health)
		} else {
			b.WriteString("health: not looked at, for the group's machine: has no health:; the RTO ends with its start\n")
		}
		if done.Report != "" {
			fmt.Fprintf(&b, "report: %s\n", done.Report)
		}
		return b.String()
	})
}
