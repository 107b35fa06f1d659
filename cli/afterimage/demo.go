package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"github.com/novacron/afterimage/cli/demo"
	"github.com/novacron/afterimage/site/fault"
)

func (w *world) demoCommand() *cli.Command {
	return verb("demo", "show and prove it all on this machine, in about a minute", "",
		"Two sites over loopback, a disk under load, an attack, a look back, a dead primary, a failover; every claim is proven from the outside. Needs no root and nothing installed, but for --qemu. Exit 16 when a claim did not hold.",
		[]string{"afterimage demo", "afterimage demo --qemu", "afterimage demo -o json"},
		[]cli.Flag{
			&cli.BoolFlag{Name: "qemu", Usage: "a real guest's disk instead of one that Afterimage serves"},
			&cli.StringFlag{Name: "dir", Usage: "`DIRECTORY` for everything; default a new temporary one"},
		}, w.demo)
}

func (w *world) demo(c *cli.Context) error {
	p := w.printer(c)
	self, err := os.Executable()
	if err != nil {
		return fault.Wrap(fault.Unexpected, "find this program", err)
	}
	o := demo.Options{Executable: self, QEMU: c.Bool("qemu"), Progress: io.Discard}
	if dir := c.String("dir"); dir != "" {
		if o.Dir, err = filepath.Abs(dir); err != nil {
			return fault.Wrap(fault.FileTrouble, "find "+dir, err)
		}
		for _, site := range []string{"a", "b"} { // an earlier demo's histories are none to begin with
			if _, err := os.Lstat(filepath.Join(o.Dir, site)); err == nil {
				return fault.New(fault.FileExists, "run the demo in "+dir, "it has a demo's site %s already", site).Advise("Name another directory, or remove what the earlier demo left there.")
			}
		}
	}
	if !p.json {
		o.Progress = w.stderr
	}
	r, err := demo.Run(c.Context, o)
	if err != nil && !errors.Is(err, demo.ErrNotVerified) {
		return err
	}
	if perr := p.data(r, func() string { return demoScreen(p, r) }); perr != nil {
		return perr
	}
	if err != nil {
		return fault.Wrap(fault.ClaimsBroken, "run the demo", err)
	}
	return nil
}

func demoScreen(p *printer, r demo.Result) string {
	t := p.newTable("MEASURED", "")
	t.row("RPO p50, p99, max", fmt.Sprintf("%s, %s, %s", seconds(r.RPOP50), seconds(r.RPOP99), seconds(r.RPOMax)))
	t.row("RTO", seconds(r.RTO))
	t.row("writes", fmt.Sprint(r.Writes))
	t.row("lost writes", fmt.Sprintf("%d; reported before the failover: %d", r.Lost, r.ReportedLoss))
	t.row("claims verified", yesNo(r.Verified))
	t.row("report", r.Report)
	t.row("plot", r.Plot)
	return t.String()
}
