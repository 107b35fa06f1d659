package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/novacron/afterimage/site"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
)

func (w *world) pointCommand() *cli.Command {
	return noun("point", "the moments that can be restored",
		verb("list", "list the points and why they are kept, gaps with their causes, marks and pins", "NAME",
			"A line is a range in which every record is a point, the points of one rung of the ladder, or a point that is kept for a reason of its own: a pin, an open view, the lock, a peer's cursor, a failover that is not committed. With --at it also says which point that moment is. -o json lists each point.",
			[]string{"afterimage point list web", "afterimage point list web --at -5m", "afterimage point list web --from -7d --to -24h --all", "afterimage point list web --branches"},
			[]cli.Flag{
				&cli.StringFlag{Name: "at", Usage: "`MOMENT` to resolve: latest, latest-app, -5m or -7d, an RFC 3339 time, name:X, before:X, #SEQ or #EPOCH.SEQ"},
				&cli.StringFlag{Name: "from", Usage: "`TIME` of the oldest: -7d, or an RFC 3339 time"},
				&cli.StringFlag{Name: "to", Usage: "`TIME` of the newest: -24h, or an RFC 3339 time"},
				&cli.BoolFlag{Name: "all", Usage: "a line for each point of a rung"},
				&cli.BoolFlag{Name: "branches", Usage: "also what a rewind, a rollback or a failover gave up: each can be served and mounted by the point that is named"},
			}, w.pointList),
		verb("mark", "label the newest point", "NAME",
			"The mark is part of the history and reaches every peer. With --app the guest agent freezes the file systems of a tapped machine meanwhile, and the programs of \"quiesce:\" run before and after; if that fails there is no mark. Where this site serves the disks itself, --app is your word. Only the primary can set one. With --pin its point stays at every site however old it grows; else it goes as the ladder says.",
			[]string{"afterimage point mark web --name before-patch", "afterimage point mark web --name nightly --app --pin"},
			[]cli.Flag{
				&cli.StringFlag{Name: "name", Required: true, Usage: "`LABEL`: letters, digits, dots, dashes, underscores"},
				&cli.BoolFlag{Name: "app", Usage: "with the applications quiet: latest-app finds it"},
				&cli.BoolFlag{Name: "pin", Usage: "keep its point, whatever its age"},
				&cli.StringFlag{Name: "note", Usage: "`TEXT` for people"},
			}, w.pointMark),
		w.pinVerb(), w.unpinVerb(), w.bisectVerb(),
	)
}

func (w *world) pointList(c *cli.Context) error {
	if at := c.String("at"); at != "" {
		if err := site.CheckAt(at); err != nil {
			return err
		}
	}
	from, err := w.timeFlag(c, "from")
	if err != nil {
		return err
	}
	to, err := w.timeFlag(c, "to")
	if err != nil {
		return err
	}
	_, api, err := w.site(c)
	if err != nil {
		return err
	}
	ps, err := api.Points(c.Context, control.PointsQuery{Group: c.Args().First(), At: c.String("at"), From: from, To: to, Branches: c.Bool("branches")})
	if err != nil {
		return err
	}
	p := w.printer(c)
	if ps.Resolved != nil {
		p.resolved(ps.Group, c.String("at"), *ps.Resolved)
	}
	return p.data(ps, func() string { return p.pointScreen(ps, c.Bool("all")) })
}

// timeFlag is a bound of a list: a span back from now, or a time.
func (w *world) timeFlag(c *cli.Context, name string) (time.Time, error) {
	s := c.String(name)
	if s == "" {
		return time.Time{}, nil
	}
	if back, ok := strings.CutPrefix(s, "-"); ok {
		var d config.Duration
		if err := d.UnmarshalText([]byte(back)); err != nil {
			return time.Time{}, usage("--%s %s: %v", name, s, err)
		}
		return w.now().Add(-time.Duration(d)), nil
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return t, usage("--%s %q is neither a span back from now, such as -7d, nor an RFC 3339 time", name, s)
	}
	return t, nil
}

func (p *printer) pointScreen(ps control.Points, all bool) string {
	var b strings.Builder
	b.WriteString(p.keptTable(ps, all))
	if len(ps.Abandoned) > 0 {
		t := p.newTable("BRANCH", "SITE", "BEGUN", "RECORDS", "NEWEST POINT", "SERVED BY")
		for _, a := range ps.Abandoned {
			newest, by := "none is kept", "-"
			if a.Newest != nil {
				newest, by = p.when(a.Newest.Time), fmt.Sprintf("view serve %s --at '%s'", ps.Group, a.At)
			}
			t.row(fmt.Sprint(a.Epoch), a.Site, p.when(a.Begun), fmt.Sprintf("%d..%d", a.First, a.Last), newest, by)
		}
		b.WriteString("\n" + t.String())
	}
	if len(ps.Gaps) > 0 {
		t := p.newTable("GAP", "SINCE", "VOLUME", "CAUSE", "DETAIL")
		for _, g := range ps.Gaps {
			t.row(fmt.Sprintf("#%d.%d", g.Epoch, g.Seq), p.when(g.Time), orDash(g.Volume), g.Cause, orDash(g.Detail))
		}
		b.WriteString("\n" + t.String())
	}
	if len(ps.Skipped) > 0 {
		b.WriteString("\n" + p.skippedTable(ps.Skipped))
	}
	if len(ps.Marks) > 0 {
		t := p.newTable("MARK", "POINT", "TIME", "KIND", "NOTE")
		for _, pt := range ps.Marks {
			for _, m := range pt.Marks {
				t.row(m.Name, seqName(pt), p.when(pt.Time), markKind(m), orDash(m.Note))
			}
		}
		b.WriteString("\n" + t.String())
	}
	if len(ps.Suspect) > 0 {
		t := p.newTable("SUSPECT", "SINCE", "UNTIL", "NOISE", "USUALLY", "LAST POINT BEFORE")
		for _, s := range ps.Suspect {
			clean := "-"
			if s.Clean != nil {
				clean = seqName(*s.Clean) + " (" + s.Pin + ")"
			}
			t.row(s.Volume, p.when(s.Since), p.when(s.Until), fmt.Sprintf("%.0f%%", 100*s.Ratio), fmt.Sprintf("%.0f%%", 100*s.Usual), clean)
		}
		b.WriteString("\n" + t.String() + p.suspectRanges(ps.Suspect, all))
	}
	if len(ps.Pins) > 0 {
		b.WriteString("\n" + p.pinTable(ps.Pins))
	}
	return b.String()
}

// rangesShown of a suspicion are listed without --all.
const rangesShown = 8

// suspectRanges is where noise was written, by the samples.
func (p *printer) suspectRanges(suspect []control.Suspicion, all bool) string {
	t := p.newTable("SUSPECT RANGE", "FROM BYTE", "BYTES", "SINCE")
	shown, more, widened := 0, 0, false
	for _, s := range suspect {
		widened = widened || s.Widened
		for i, e := range s.Extents {
			if !all && i == rangesShown {
				more += len(s.Extents) - i
				break
			}
			t.row(s.Volume, fmt.Sprintf("+%d", e.Offset), fmt.Sprintf("+%d", e.Length), p.when(s.Since))
			shown++
		}
	}
	if shown == 0 {
		return ""
	}
	out := "\n" + t.String()
	if more > 0 {
		out += fmt.Sprintf("%s more; --all lists each.\n", plural(uint64(more), "range"))
	}
	if widened {
		out += "There were more than are kept: those that lay nearest to each other became one.\n"
	}
	return out
}

// skippedTable is what is no point here because a catch-up left it out.
func (p *printer) skippedTable(all []control.Skipped) string {
	t := p.newTable("SKIPPED", "UP TO", "CAUGHT UP", "FROM", "POINTS LEFT THERE")
	for _, s := range all {
		left := "-"
		if s.Left != nil {
			left = fmt.Sprint(*s.Left)
		}
		t.row(fmt.Sprintf("#%d .. #%d", s.After+1, s.To.Seq-1), p.when(s.To.Time), p.when(s.At), orDash(s.Peer), left)
	}
	return t.String()
}

func markKind(m control.Mark) string {
	var ks []string
	if m.App {
		ks = append(ks, "app")
	}
	if m.Pin {
		ks = append(ks, "pin")
	}
	return orDash(strings.Join(ks, ","))
}

func (w *world) pointMark(c *cli.Context) error {
	_, api, err := w.site(c)
	if err != nil {
		return err
	}
	q := control.MarkRequest{Group: c.Args().First(), Name: c.String("name"), App: c.Bool("app"), Pin: c.Bool("pin"), Note: c.String("note")}
	pt, err := api.Mark(c.Context, q)
	if err != nil {
		return err
	}
	p := w.printer(c)
	return p.data(pt, func() string {
		return fmt.Sprintf("%s: %s is point %s, %s\n", q.Group, q.Name, seqName(pt), p.when(pt.Time))
	})
}
