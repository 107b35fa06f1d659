package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
)

func (w *world) groupCommand() *cli.Command {
	return noun("group", "the groups of volumes that are recovered together",
		verb("list", "list the groups", "", "", []string{"afterimage group list"}, nil, w.groupList),
		verb("show", "show a group with its volumes, peers and history", "NAME",
			"A group of another tenant than default is named TENANT/NAME where the name alone is not unique.",
			[]string{"afterimage group show web", "afterimage group show acme/db -o json"}, nil, w.groupShow),
		w.pauseVerb(), w.resumeVerb(), w.rewindVerb(), w.groupRejoinVerb(), w.moveVerb(), w.homeVerb(), w.maintainVerb(), w.recoverVerb(),
		w.limitVerb("group", "limit what is sent of a group, to all its peers together"),
		w.keyVerbs(), w.seedVerbs(),
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
		{"why", g.Detail}, {"conflict", g.Conflict}, {"dir", g.Dir},
		{"journal", p.usageText(g.Usage)}, {"history", historyText(g.Retention)}, {"upkeep", p.upkeepText(g)},
		{"answer", fmt.Sprintf("sync %s, stall budget %s", g.Sync, seconds(g.Stall))},
		{"role", fmt.Sprintf("%s (configured: %s)", g.Role, g.Configured)}, {"machine", machineText(g)},
		{"others", g.Others},
	} {
		if l[1] != "" {
			fmt.Fprintf(&b, "%-9s %s\n", l[0], l[1])
		}
	}
	b.WriteString(p.guestLines(g.Group))
	b.WriteString(p.noticesOf(g.Tenant+"/"+g.Name, g.Notices))
	if len(g.Volumes) > 0 {
		t := p.newTable("VOLUME", "SIZE", "KIND", "STATE", "EXPORT")
		for _, v := range g.Volumes {
			t.row(v.Name, size(v.Size), v.Kind, strings.TrimSpace(orDash(v.State)+" "+v.Cause), orDash(v.Export))
		}
		b.WriteString("\n" + t.String())
		b.WriteString(p.captureLines(g.Volumes))
	}
	if len(g.Lags) > 0 {
		t := p.newTable("PEER", "WAY", "STATE", "RPO", "BEHIND", "DURABLE", "MOVED", "ERROR")
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
			t.row(l.Peer, l.Direction, l.State, r, behind(l.BehindWrites, l.BehindBytes, true), durable, movedText(l), orDash(l.Error))
		}
		b.WriteString("\n" + t.String())
		for _, l := range g.Lags {
			if m := l.Recent; m != nil {
				fmt.Fprintf(&b, "RPO %s %s since %s: %s\n", l.Direction, l.Peer, p.when(m.Since), measured(*m))
			}
		}
	}
	if len(g.Holds) > 0 {
		t := p.newTable("HOLD", "STATE", "CURSOR", "LEVEL", "UNTIL", "BEHIND", "BOUND")
		t.tint = func(column int, cell string) string {
			if column == 1 && cell != control.HoldKept {
				return p.colored(red, cell)
			}
			return cell
		}
		for _, h := range g.Holds {
			bound := duration(h.For)
			if h.Bytes > 0 {
				bound += ", " + size(h.Bytes)
			}
			t.row(h.Peer, h.State, orDash(h.Cursor), p.when(h.Level), p.when(h.Until), size(h.Behind), bound)
		}
		b.WriteString("\n" + t.String())
	}
	if len(g.Pins) > 0 {
		b.WriteString("\n" + p.pinTable(g.Pins))
	}
	if m := g.Timing; m != nil {
		fmt.Fprintf(&b, "\na failover takes %s\n\n%s", measuredLine(*m), p.measuredTable(*m))
	}
	if len(g.Skipped) > 0 {
		b.WriteString("\n" + p.skippedTable(g.Skipped))
	}
	if len(g.Branches) > 0 {
		t := p.newTable("EPOCH", "SITE", "BEGUN", "RECORDS", "LINEAGE", "ID")
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

// movedText is what crossed the wire, and what that stood for where it was more.
func movedText(l control.Lag) string {
	if l.MovedFor > l.Moved+l.Moved/50 {
		return fmt.Sprintf("%s for %s", size(int64(l.Moved)), size(int64(l.MovedFor)))
	}
	return size(int64(l.Moved))
}

// captureLines say of each tapped disk how it is followed, since when, why it is
// not synced, and what the last resync cost.
func (p *printer) captureLines(volumes []control.Volume) string {
	var b strings.Builder
	for _, v := range volumes {
		if v.Capture == "" {
			continue
		}
		whose := v.Name
		if v.Machine != "" {
			whose += " of " + v.Machine
		}
		fmt.Fprintf(&b, "%s: captured %s, %s since %s", whose, v.Capture, v.State, p.when(v.Since))
		if v.Detail != "" {
			b.WriteString(": " + v.Detail)
		}
		b.WriteString(p.modeText(v))
		if a := v.Added; a != nil {
			fmt.Fprintf(&b, "; adds %s to half of %d writes, %s to 99 %%, %s at most", brief(a.P50), a.Writes, brief(a.P99), brief(a.Max))
		}
		if r := v.Resync; r != nil {
			what := "the bitmaps' delta"
			if r.Full {
				what = "the whole disk (" + r.Why + ")"
			}
			verb := "took"
			if r.Running {
				verb = "takes"
			}
			fmt.Fprintf(&b, "; resync %s %s, %s: read %s, journaled %s", verb, what, size(r.ToRead), size(r.Read), size(r.Journaled))
		}
		if x := v.Local; x != nil {
			fmt.Fprintf(&b, "; the machine's own in %s since %s, for which its guest stood still for %s", x.Image, p.when(x.Since), brief(x.Pause))
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// brief is a short time, to three digits or so.
func brief(s float64) string {
	d := time.Duration(s * float64(time.Second))
	for _, unit := range []time.Duration{time.Second, time.Millisecond, time.Microsecond} {
		if d >= unit {
			return d.Round(unit / 100).String()
		}
	}
	return d.String()
}

// modeText says how a disk's changes come in just now, since when and why, and what
// that means for points.
func (p *printer) modeText(v control.Volume) string {
	if v.Mode == "" {
		return ""
	}
	s := "; mode " + v.Mode + " since " + p.when(v.ModeSince)
	if v.ModeWhy != "" && v.ModeWhy != v.Detail {
		s += " (" + v.ModeWhy + ")"
	}
	s += ": " + v.Effect
	if c := v.Cycles; c != nil {
		s += fmt.Sprintf("; a cycle every %gs, %d points, %d refused", c.EverySeconds, c.Points, c.Refused)
		if c.LongestPause > 0 {
			s += fmt.Sprintf(", the machines stood still for %.0f ms at most", 1000*c.LongestPause)
		}
	}
	return s
}

// machineText is the machine that a failover starts here, and whether it runs; of several each.
func machineText(g control.GroupDetail) string {
	switch {
	case g.Machine == "":
		return ""
	case len(g.Seen) > 0:
		var each []string
		for _, m := range g.Seen {
			name := m.Name
			if m.Renamed != "" {
				name += " (libvirt calls it " + m.Renamed + ")"
			}
			each = append(each, machineText(control.GroupDetail{Machine: name, MachineState: m.State, MachinePID: m.PID}))
		}
		return g.MachineState + ": " + strings.Join(each, "; ")
	case g.MachinePID != 0:
		return fmt.Sprintf("%s, %s (process %d)", g.Machine, g.MachineState, g.MachinePID)
	}
	return g.Machine + ", " + orDash(g.MachineState)
}

// historyText is how a group's history is kept.
func historyText(r control.Retention) string {
	var parts []string
	for _, g := range r.History {
		if g.For == "ever" {
			parts = append(parts, fmt.Sprintf("every %s for ever", g.Every))
		} else {
			parts = append(parts, fmt.Sprintf("every %s for %s", g.Every, g.For))
		}
	}
	s := strings.Join(parts, ", then ")
	if r.Lock > 0 {
		s += "; lock " + duration(r.Lock)
	}
	if len(r.Warn) > 0 {
		var at []string
		for _, w := range r.Warn {
			at = append(at, fmt.Sprintf("%d%%", w))
		}
		s += "; warns at " + strings.Join(at, " and ") + " of the quota"
	}
	return s
}

// upkeepText is the maintenance: how often, what it did last, what comes next.
func (p *printer) upkeepText(g control.GroupDetail) string {
	r, m := g.Retention, g.Maintenance
	if r.Every == 0 {
		return ""
	}
	s := fmt.Sprintf("every %s, up to %s/s", duration(r.Every), size(r.Rate))
	switch {
	case m.Running:
		s += "; running"
	case m.Last == nil:
		s += "; not yet run"
	case m.Last.Folded+m.Last.Merged+m.Last.Freed == 0:
		s += "; last " + p.when(m.Last.Time) + ": nothing to do"
	default:
		s += fmt.Sprintf("; last %s: folded %s, merged %s, freed %s in %s", p.when(m.Last.Time), size(m.Last.Folded), size(m.Last.Merged), size(m.Last.Freed), seconds(m.Last.Seconds))
	}
	return s
}

// duration is a span that somebody set: as short as it can be said.
func duration(s float64) string {
	return config.Duration(s * float64(time.Second)).String()
}

// measured is what the RPO was over some time.
func measured(m control.Measured) string {
	if m.Unknown == m.Samples {
		return "unknown"
	}
	s := fmt.Sprintf("p50 %s, p99 %s, max %s", seconds(m.P50), seconds(m.P99), seconds(m.Max))
	if m.Unknown > 0 {
		s += fmt.Sprintf("; unknown in %d of %d measurements", m.Unknown, m.Samples)
	}
	return s
}
