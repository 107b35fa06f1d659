package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/novacron/afterimage/site"
	"github.com/novacron/afterimage/site/control"
)

func (w *world) pinVerb() *cli.Command {
	return verb("pin", "keep a point, whatever its age", "NAME",
		"A pin is of this site alone and keeps its point until point unpin, however old it grows. With --diff only the ability to tell what changed since the point is kept, which costs next to nothing.",
		[]string{"afterimage point pin web --name audit-2026 --at -5m", "afterimage point pin web --name last-backup --diff"},
		[]cli.Flag{
			&cli.StringFlag{Name: "name", Required: true, Usage: "`LABEL`: letters, digits, dots, dashes, underscores"},
			atFlag(),
			&cli.BoolFlag{Name: "diff", Usage: "keep what changed since the point, not the point"},
			&cli.StringFlag{Name: "note", Usage: "`TEXT` for people"},
		}, w.pointPin)
}

func (w *world) unpinVerb() *cli.Command {
	return verb("unpin", "let a pin go", "NAME",
		"The point stays as long as the ladder or something else keeps it; point list says what does.",
		[]string{"afterimage point unpin web --name audit-2026"},
		[]cli.Flag{&cli.StringFlag{Name: "name", Required: true, Usage: "`LABEL` of the pin"}}, w.pointUnpin)
}

func (w *world) pointPin(c *cli.Context) error {
	if err := site.CheckAt(c.String("at")); err != nil {
		return err
	}
	_, api, err := w.site(c)
	if err != nil {
		return err
	}
	q := control.PinRequest{Group: c.Args().First(), Name: c.String("name"), At: c.String("at"), Diff: c.Bool("diff"), Note: c.String("note")}
	pin, err := api.Pin(c.Context, q)
	if err != nil {
		return err
	}
	p := w.printer(c)
	p.resolved(q.Group, q.At, pin.Point)
	return p.data(pin, func() string {
		kept := "is kept"
		if pin.Diff {
			kept = "is what changes can be counted from"
		}
		return fmt.Sprintf("%s: point %s, %s, %s as %s\n", q.Group, seqName(pin.Point), p.when(pin.Point.Time), kept, pin.Name)
	})
}

func (w *world) pointUnpin(c *cli.Context) error {
	_, api, err := w.site(c)
	if err != nil {
		return err
	}
	q := control.UnpinRequest{Group: c.Args().First(), Name: c.String("name")}
	pin, err := api.Unpin(c.Context, q)
	if err != nil {
		return err
	}
	p := w.printer(c)
	return p.data(pin, func() string {
		return fmt.Sprintf("%s: pin %s let point %s of %s go\n", q.Group, pin.Name, seqName(pin.Point), p.when(pin.Point.Time))
	})
}

// pinTable lists pins.
func (p *printer) pinTable(pins []control.Pin) string {
	t := p.newTable("PIN", "POINT", "TIME", "KIND", "NOTE")
	for _, x := range pins {
		kind := "point"
		if x.Diff {
			kind = "diff"
		}
		t.row(x.Name, seqName(x.Point), p.when(x.Point.Time), kind, orDash(x.Note))
	}
	return t.String()
}
