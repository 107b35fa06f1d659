package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/novacron/afterimage/site"
	"github.com/novacron/afterimage/site/control"
)

func (w *world) diffVerb() *cli.Command {
	return verb("diff", "list the extents that changed between two points", "NAME",
		"No extent that differs is missing. One may be named that does not: a block that was written with what it held, and within thinned history one that changed between two points of which one is gone. Either may lie in a branch that was left, or be a diff pin by its name. Works without the daemon.",
		[]string{"afterimage view diff web --from name:before-patch --to latest", "afterimage view diff web --from '#2.900' --to '#3.1200' --volume root -o json"},
		[]cli.Flag{
			&cli.StringFlag{Name: "from", Required: true, Usage: "`MOMENT`: latest, -5m or -7d, an RFC 3339 time, name:X, before:X, #SEQ or #EPOCH.SEQ"},
			&cli.StringFlag{Name: "to", Value: "latest", Usage: "`MOMENT`, as --from"},
			&cli.StringFlag{Name: "volume", Usage: "`NAME` of the volume; default all of the group"},
		}, w.viewDiff)
}

func (w *world) viewDiff(c *cli.Context) error {
	for _, name := range []string{"from", "to"} {
		if err := site.CheckAt(c.String(name)); err != nil {
			return err
		}
	}
	_, api, err := w.site(c)
	if err != nil {
		return err
	}
	r, err := api.Changes(c.Context, control.ChangesRequest{Group: c.Args().First(), From: c.String("from"), To: c.String("to"), Volume: c.String("volume")})
	if err != nil {
		return err
	}
	p := w.printer(c)
	p.resolved(r.Group, c.String("from"), r.From)
	p.resolved(r.Group, c.String("to"), r.To)
	return p.data(r, func() string { return p.changesScreen(r) })
}

func (p *printer) changesScreen(r control.Changes) string {
	var b strings.Builder
	t := p.newTable("VOLUME", "OFFSET", "LENGTH")
	n := 0
	for _, v := range r.Volumes {
		for _, e := range v.Extents {
			t.row(v.Volume, fmt.Sprint(e.Offset), fmt.Sprint(e.Length))
			n++
		}
	}
	if n > 0 {
		b.WriteString(t.String() + "\n")
	}
	for _, v := range r.Volumes {
		fmt.Fprintf(&b, "%s: %s of %s in %s\n", v.Volume, size(v.Bytes), size(v.Size), plural(uint64(len(v.Extents)), "extent"))
	}
	if r.Thinned {
		b.WriteString("history between the points was thinned: more may be named than differs\n")
	}
	return b.String()
}
