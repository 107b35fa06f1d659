package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/novacron/afterimage/site/control"
)

func (w *world) groupCommand() *cli.Command {
	return noun("group", "the groups of volumes that are recovered together",
		verb("list", "list the groups", "", "", []string{"afterimage group list"}, nil, w.groupList),
		verb("show", "show a group with its volumes, peers and history", "NAME",
			"A group of another tenant than default is named TENANT/NAME where the name alone is not unique.",
			[]string{"afterimage group show web", "afterimage group show acme/db -o json"}, nil, w.groupShow),
	)
}

func (w *world) groupList(c *cli.Context) error {
	_, api, err := w.site(c)
	if err != nil {
		return err
	}
	s, err := api.Status(c.Context)
	if err != nil {
		return err
	}
	p := w.printer(c)
	if s.Daemon != control.Running {
		p.note("daemon %s", s.Daemon)
	}
	return p.data(map[string]any{"daemon": s.Daemon, "groups": s.Groups}, func() string { return p.groupTable(s.Groups) })
}

func (w *world) groupShow(c *cli.Context) error {
	_, api, err := w.site(c)
	if err != nil {
		return err
	}
	g, err := api.Group(c.Context, c.Args().First())
	if err != nil {
		return err
	}
	p := w.printer(c)
	return p.data(g, func() string { return p.groupScreen(g) })
}

func (p *printer) groupScreen(g control.GroupDetail) string {
	var b strings.Builder
	if g.State == control.StateHalted {
		b.WriteString(p.alarm(g.Group) + "\n")
		g.Detail, g.Conflict = "", "" // said above
	}
	b.WriteString(p.groupTable([]control.Group{g.Group}))
	for _, l := range [][2]string{
		{"why", g.Detail}, {"conflict", g.Conflict}, {"journal", fmt.Sprintf("%s, %s%s", g.Dir, size(g.JournalBytes), quota(g.Quota))},
		{"answer", fmt.Sprintf("sync %s, stall budget %s", g.Sync, seconds(g.Stall))},
		{"role", fmt.Sprintf("%s (configured: %s)", g.Role, g.Configured)}, {"machine", machineText(g)},
	} {
		if l[1] != "" {
			fmt.Fprintf(&b, "%-9s %s\n", l[0], l[1])
		}
	}
	if len(g.Volumes) > 0 {
		t := newTable("VOLUME", "SIZE", "KIND", "STATE", "EXPORT")
		for _, v := range g.Volumes {
			t.row(v.Name, size(v.Size), v.Kind, strings.TrimSpace(orDash(v.State)+" "+v.Cause), orDash(v.Export))
		}
		b.WriteString("\n" + t.String())
	}
	if len(g.Lags) > 0 {
		t := newTable("PEER", "WAY", "STATE", "RPO", "BEHIND", "DURABLE", "MOVED", "ERROR")
		for _, l := range g.Lags {
			r := "unknown"
			if l.RPOSeconds != nil {
				r = seconds(*l.RPOSeconds)
			}
			durable := "-"
			if l.Durable > 0 {
				durable = fmt.Sprintf("#%d", l.Durable)
			}
			if g.State == control.StateHalted && l.State == "halted" {
				l.Error = "see above"
			}
			t.row(l.Peer, l.Direction, l.State, r, behind(l.BehindWrites, l.BehindBytes, true), durable, size(int64(l.Moved)), orDash(l.Error))
		}
		b.WriteString("\n" + t.String())
	}
	if len(g.Branches) > 0 {
		t := newTable("EPOCH", "SITE", "BEGUN", "RECORDS", "LINEAGE", "ID")
		for _, e := range g.Branches {
			in := "current"
			if !e.Current {
				in = "branch"
			}
			records := fmt.Sprintf("%d..%d", e.First, e.Last)
			if e.Last < e.First {
				records = "none"
			}
			t.row(fmt.Sprint(e.Epoch), e.Site, p.when(e.Begun), records, in, e.ID)
		}
		b.WriteString("\n" + t.String())
	}
	return b.String()
}

// machineText is the machine that a failover starts here, and whether it runs.
func machineText(g control.GroupDetail) string {
	switch {
	case g.Machine == "":
		return ""
	case g.MachinePID != 0:
		return fmt.Sprintf("%s, %s (process %d)", g.Machine, g.MachineState, g.MachinePID)
	}
	return g.Machine + ", " + orDash(g.MachineState)
}

func quota(n int64) string {
	if n == 0 {
		return ""
	}
	return " of " + size(n)
}
