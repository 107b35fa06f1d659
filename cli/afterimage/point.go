package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/novacron/afterimage/site"
	"github.com/novacron/afterimage/site/control"
)

func (w *world) pointCommand() *cli.Command {
	return noun("point", "the moments that can be restored",
		verb("list", "list spans of points, gaps with their causes, and marks", "NAME",
			"With --at it also says which point that moment is.",
			[]string{"afterimage point list web", "afterimage point list web --at -5m"},
			[]cli.Flag{&cli.StringFlag{Name: "at", Usage: "`MOMENT` to resolve: latest, latest-app, -5m, an RFC 3339 time, name:X, before:X, #SEQ or #EPOCH.SEQ"}}, w.pointList),
		verb("mark", "label the newest point", "NAME",
			"The mark is part of the history and reaches every peer. Only the primary can set one.",
			[]string{"afterimage point mark web --name before-patch", "afterimage point mark web --name nightly --app --pin"},
			[]cli.Flag{
				&cli.StringFlag{Name: "name", Required: true, Usage: "`LABEL`: letters, digits, dots, dashes, underscores"},
				&cli.BoolFlag{Name: "app", Usage: "the applications were quiesced: latest-app finds it"},
				&cli.BoolFlag{Name: "pin", Usage: "retention must keep it"},
				&cli.StringFlag{Name: "note", Usage: "`TEXT` for people"},
			}, w.pointMark),
	)
}

func (w *world) pointList(c *cli.Context) error {
	if at := c.String("at"); at != "" {
		if err := site.CheckAt(at); err != nil {
			return err
		}
	}
	_, api, err := w.site(c)
	if err != nil {
		return err
	}
	ps, err := api.Points(c.Context, control.PointsQuery{Group: c.Args().First(), At: c.String("at")})
	if err != nil {
		return err
	}
	p := w.printer(c)
	if ps.Resolved != nil {
		p.resolved(ps.Group, c.String("at"), *ps.Resolved)
	}
	return p.data(ps, func() string { return p.pointScreen(ps) })
}

func (p *printer) pointScreen(ps control.Points) string {
	var b strings.Builder
	if len(ps.Spans) == 0 {
		b.WriteString("no points\n")
	} else {
		t := newTable("FIRST", "TIME", "LAST", "TIME", "POINTS", "ENDED")
		for i, s := range ps.Spans {
			ended := orDash(s.Ended)
			switch {
			case s.Open:
				ended = "still growing"
			case s.Ended == "" && i < len(ps.Spans)-1: // no gap: the next one covers others
				ended = "the volumes change"
			}
			t.row(seqName(s.First), p.when(s.First.Time), seqName(s.Last), p.when(s.Last.Time), fmt.Sprint(s.Last.Seq-s.First.Seq+1), ended)
		}
		b.WriteString(t.String())
	}
	if len(ps.Gaps) > 0 {
		t := newTable("GAP", "SINCE", "VOLUME", "CAUSE", "DETAIL")
		for _, g := range ps.Gaps {
			t.row(fmt.Sprintf("#%d.%d", g.Epoch, g.Seq), p.when(g.Time), orDash(g.Volume), g.Cause, orDash(g.Detail))
		}
		b.WriteString("\n" + t.String())
	}
	if len(ps.Marks) > 0 {
		t := newTable("MARK", "POINT", "TIME", "KIND", "NOTE")
		for _, pt := range ps.Marks {
			for _, m := range pt.Marks {
				t.row(m.Name, seqName(pt), p.when(pt.Time), markKind(m), orDash(m.Note))
			}
		}
		b.WriteString("\n" + t.String())
	}
	return b.String()
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
