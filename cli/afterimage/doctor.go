package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/novacron/afterimage/site"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/fault"
)

func (w *world) doctorCommand() *cli.Command {
	return verb("doctor", "check this host, and the machines to be protected, before they are", "[GROUP]",
		"Nothing is changed and no machine's monitor is touched. Each finding that needs it has a line that says how to put it right. With a problem among them the exit code is 1.",
		[]string{"afterimage doctor", "afterimage doctor web -o json"}, nil, w.doctor)
}

func (w *world) doctor(c *cli.Context) error {
	cfg, err := config.Load(c.String("config"))
	if err != nil {
		return err
	}
	found, err := site.Examine(c.Context, cfg, c.Args().First())
	if err != nil {
		return err
	}
	problems := 0
	for _, f := range found {
		if f.Level == site.FindingProblem {
			problems++
		}
	}
	p := w.printer(c)
	if err := p.data(map[string]any{"problems": problems, "findings": found}, func() string { return p.findings(found) }); err != nil {
		return err
	}
	if problems > 0 {
		return fault.New(fault.HostUnfit, "examine "+cfg.Site, "%s", plural(uint64(problems), "problem"))
	}
	return nil
}

// findings is a line each, and one below it where something is to be done.
func (p *printer) findings(found []site.Finding) string {
	var b strings.Builder
	for _, f := range found {
		word, color := f.Level, green
		switch f.Level {
		case site.FindingWarning:
			color = yellow
		case site.FindingProblem:
			word, color = "PROBLEM", red
		}
		fmt.Fprintf(&b, "%s %s: %s\n", p.colored(color, word), f.Subject, f.What)
		if f.Fix != "" {
			fmt.Fprintf(&b, "   fix: %s\n", f.Fix)
		}
	}
	return b.String()
}
