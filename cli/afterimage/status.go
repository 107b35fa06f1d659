package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

func (w *world) statusCommand() *cli.Command {
	return verb("status", "show the site, its groups and peers on one screen", "",
		"Works with the daemon down: it reads the journals then and says \"daemon not running\". Exit 15 while a group is halted because both sides wrote, 16 while one is halted because history is missing.",
		[]string{"afterimage status", "afterimage status -w", "afterimage status -o json"},
		[]cli.Flag{
			&cli.BoolFlag{Name: "watch", Aliases: []string{"w"}, Usage: "show it again and again; on a terminal in place, elsewhere one below the other, with -o json as lines"},
			&cli.DurationFlag{Name: "every", Value: time.Second, Usage: "`SPAN` between two looks of --watch"},
		}, w.status)
}

func (w *world) status(c *cli.Context) error {
	_, api, err := w.site(c)
	if err != nil {
		return err
	}
	p := w.printer(c)
	if !c.Bool("watch") {
		s, err := api.Status(c.Context)
		if err != nil {
			return err
		}
		if err := p.data(s, func() string { return p.statusScreen(s) }); err != nil {
			return err
		}
		return haltedGroups(s)
	}
	if c.Duration("every") < 50*time.Millisecond {
		return usage("--every %s is too short; 50ms is the least", c.Duration("every"))
	}
	return p.watch(c.Context, api, c.Duration("every"))
}

// haltedGroups is the error of a status that shows halted groups: a script that
// looks at exit codes alone must not take it for good news. A split brain comes first.
func haltedGroups(s control.Status) error {
	code := fault.HistoryLost
	var halted []string
	for _, g := range s.Groups {
		if g.State != control.StateHalted {
			continue
		}
		halted = append(halted, g.Tenant+"/"+g.Name)
		if g.Halt != control.HaltHistoryLost {
			code = fault.PeerDiverged
		}
	}
	if len(halted) == 0 {
		return nil
	}
	return fault.New(code, "look at site "+s.Site, "halted: %s", strings.Join(halted, ", "))
}

// watch shows the status until ctx ends; that is no error.
func (p *printer) watch(ctx context.Context, api control.API, every time.Duration) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for n := 0; ; n++ {
		s, err := api.Status(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		case p.json:
			if err := json.NewEncoder(p.stdout).Encode(s); err != nil {
				return err
			}
		case p.stdoutTTY:
			fprintf(p.stdout, "\x1b[H\x1b[2J%s", p.statusScreen(s))
		default:
			if n > 0 {
				fprintf(p.stdout, "\n")
			}
			fprintf(p.stdout, "%s", p.statusScreen(s))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (p *printer) statusScreen(s control.Status) string {
	var b strings.Builder
	fmt.Fprintf(&b, "site %s, %s, daemon %s", s.Site, p.when(s.Time), s.Daemon)
	if s.PID != 0 {
		fmt.Fprintf(&b, " (pid %d, since %s)", s.PID, p.when(s.Since))
	}
	b.WriteString("\n\n")
	if site := p.noticesOf("site "+s.Site, s.Notices); site != "" {
		b.WriteString(site + "\n")
	}
	b.WriteString(p.groupTable(s.Groups))
	for _, g := range s.Groups {
		if g.State == control.StateHalted {
			b.WriteString("\n" + p.alarm(g))
		} else if g.Detail != "" {
			fmt.Fprintf(&b, "%s/%s: %s\n", g.Tenant, g.Name, g.Detail)
		}
		b.WriteString(p.guestLines(g))
		b.WriteString(p.noticesOf(g.Tenant+"/"+g.Name, g.Notices))
	}
	b.WriteString(p.drillLines(s.Groups))
	if len(s.Peers) > 0 {
		b.WriteString("\n" + p.peerTable(s.Peers))
	}
	return b.String()
}

// drillLines tell of each group's next scheduled drill.
func (p *printer) drillLines(groups []control.Group) string {
	var b strings.Builder
	for _, g := range groups {
		if !g.NextDrill.IsZero() {
			fmt.Fprintf(&b, "next drill of %s/%s: %s\n", g.Tenant, g.Name, p.when(g.NextDrill))
		}
	}
	return b.String()
}

// guestLines say of each of several machines how it is followed.
func (p *printer) guestLines(g control.Group) string {
	var b strings.Builder
	for _, m := range g.Machines {
		fmt.Fprintf(&b, "%s/%s: machine %s, mode %s", g.Tenant, g.Name, m.Name, m.Mode)
		if !m.Since.IsZero() {
			b.WriteString(" since " + p.when(m.Since))
		}
		if m.Why != "" {
			b.WriteString(" (" + m.Why + ")")
		}
		if m.Effect != "" {
			b.WriteString(": " + m.Effect)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// noticesOf are what somebody should know of a group or a site, one line each, the
// gravest first.
func (p *printer) noticesOf(what string, notices []control.Notice) string {
	var alarms, warnings strings.Builder
	for _, n := range notices {
		at, word, color := &warnings, "warning", yellow
		if n.Level == control.Alarm {
			at, word, color = &alarms, "ALARM", red
		}
		text := n.Text
		if n.Hint != "" {
			text += ". " + n.Hint
		}
		if n.Code != "" {
			text += " (" + n.Code + ")"
		}
		fmt.Fprintf(at, "%s %s: %s\n", p.colored(color, word), what, text)
	}
	return alarms.String() + warnings.String()
}

// alarm says loudly that a group is halted, and why.
func (p *printer) alarm(g control.Group) string {
	ref := g.Tenant + "/" + g.Name
	banner, then := "SPLIT BRAIN", "Nothing is sent, taken or merged. Both histories are kept: compare them with group show "+ref+" at both sites, decide which one goes on, and run failover resolve "+ref+" --keep SITE."
	if g.Halt == control.HaltHistoryLost {
		banner, then = "HISTORY LOST", "Nothing is sent or taken. Records that were durable are missing at one side: see group show "+ref+" at both sites, check the disk there, and delete nothing. group recover "+ref+" --accept-loss then takes them back from a peer; explain E0405 has more."
	}
	return p.colored(red, banner+": "+ref+" is halted") + "\n" +
		"  " + strings.NewReplacer(": here ", ":\n    here  ", "; there ", "\n    there ", "; replicate ", "\n  replicate ").Replace(g.Detail) + "\n" +
		"  " + then + "\n"
}

func (p *printer) groupTable(groups []control.Group) string {
	if len(groups) == 0 {
		return "no groups\n"
	}
	t := p.newTable("GROUP", "ROLE", "STATE", "RPO", "BEHIND", "WINDOW", "LAST POINT", "HEAD")
	t.tint = func(column int, cell string) string {
		if column != 2 {
			return cell
		}
		return p.colored(stateColor(cell), cell)
	}
	for _, g := range groups {
		t.row(g.Tenant+"/"+g.Name, g.Role, g.State, rpo(g), behind(g.BehindWrites, g.BehindBytes, len(g.Lags) > 0),
			window(g), p.when(g.LastPoint), headName(g.Epoch, g.Seq))
	}
	return t.String()
}

func stateColor(state string) string {
	switch state {
	case control.StateSynced, control.StateReceiving, "connected", "streaming":
		return green
	case control.StateFailed, control.StateHalted, control.StateGap, control.StatePaused:
		return red
	}
	return yellow
}

// rpo is the measured one, and the objective with a mark when it is missed.
func rpo(g control.Group) string {
	s := "-"
	if g.RPOSeconds != nil {
		s = seconds(*g.RPOSeconds)
	} else if len(g.Lags) > 0 || g.Role == "replica" || g.RPOTarget > 0 {
		s = "unknown"
	}
	if g.RPOTarget > 0 {
		s += "/" + objective(g.RPOTarget)
		if g.RPOSeconds == nil || *g.RPOSeconds > g.RPOTarget {
			s += "!"
		}
	}
	return s
}

// objective is a span that somebody set: without decimals that say nothing.
func objective(s float64) string {
	if whole, ok := strings.CutSuffix(seconds(s), ".00s"); ok {
		return whole + "s"
	}
	return seconds(s)
}

// headName is the name of a newest record; there is none before the first epoch.
func headName(epoch, seq uint64) string {
	if epoch == 0 {
		return "-"
	}
	return fmt.Sprintf("#%d.%d", epoch, seq)
}

func behind(writes uint64, bytes int64, measured bool) string {
	if !measured {
		return "-"
	}
	return fmt.Sprintf("%s, %s", plural(writes, "record"), size(bytes))
}

func window(g control.Group) string {
	if g.LastPoint.IsZero() {
		return "-"
	}
	return seconds(g.WindowSeconds)
}
