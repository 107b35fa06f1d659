package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/novacron/afterimage/site/fault"
)

func (w *world) explainCommand() *cli.Command {
	return verb("explain", "say what an error code means and what to do", "[CODE]",
		"Without a code it lists all of them.",
		[]string{"afterimage explain AI-E0302", "afterimage explain"}, nil, w.explain)
}

func (w *world) explain(c *cli.Context) error {
	p := w.printer(c)
	if c.NArg() == 0 {
		t := p.newTable("CODE", "EXIT", "MEANING")
		for _, e := range fault.Table() {
			t.row(string(e.Code), fmt.Sprint(e.Exit), e.Title)
		}
		return p.data(map[string]any{"codes": fault.Table()}, t.String)
	}
	e, ok := fault.Lookup(fault.Code(c.Args().First()))
	if !ok {
		return fault.New(fault.NoSuchCode, "explain "+c.Args().First(), "no code of that name is known")
	}
	return p.data(e, func() string {
		return fmt.Sprintf("%s: %s (exit %d)\n\nHow one gets here\n  %s\n\nWhat to do\n  %s\n", e.Code, e.Title, e.Exit, e.Cause, e.Do)
	})
}
