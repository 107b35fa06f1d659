package main

import (
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/novacron/afterimage/bench"
	"github.com/novacron/afterimage/site/control"
)

func (w *world) benchCaptureVerb() *cli.Command {
	return verb("capture", "measure what the tap adds to a guest's writes", "",
		"fio writes at random through qemu-storage-daemon to a disk without a mirror (none), to one whose mirror throws everything away (floor), and to ones that are tapped into a journal, whose answers survive the death of the process (ours; the targets are for it) or of the machine (power); they take turns. Then to one that is followed by bitmap cycles every second, in turn with none. What the mirror itself costs, floor beside none, is QEMU's and is printed too. Needs fio, nbdkit and qemu-storage-daemon; takes about three minutes.",
		[]string{"afterimage bench capture", "afterimage bench capture --rounds 3 --seconds 1 -o json"},
		[]cli.Flag{
			&cli.StringFlag{Name: "dir", Usage: "`DIRECTORY` for disks and journal; default the temporary one"},
			&cli.IntFlag{Name: "seconds", Value: 2, Usage: "`NUMBER` of seconds of each round"},
			&cli.IntFlag{Name: "rounds", Value: 5, Usage: "`NUMBER` of rounds"},
		}, w.benchCapture)
}

func (w *world) benchCapture(c *cli.Context) error {
	if c.Int("seconds") < 1 || c.Int("rounds") < 1 {
		return usage("--seconds and --rounds are 1 at least")
	}
	p := w.printer(c)
	m := p.meter()
	r, err := bench.Capture(c.Context, bench.CaptureOptions{Dir: c.String("dir"), Span: time.Duration(c.Int("seconds")) * time.Second, Rounds: c.Int("rounds"),
		Progress: func(step string, n, of int) { m.show(control.Progress{Step: fmt.Sprintf("%s, %d of %d", step, n, of)}) }})
	m.end()
	if err != nil {
		return err
	}
	return p.data(r, func() string { return captureScreen(p, r) })
}

// captureScreen is the figures with their targets beside.
func captureScreen(p *printer, r bench.CaptureResult) string {
	o := r.Setting
	return figureTable(p, r.Names(), r.Figures, "ABOVE", "BELOW") + fmt.Sprintf("\nABOVE and BELOW are the two sides of a ratio; latencies are mean/p99\nfloor: %s\n%d rounds of %s on %d CPUs, Linux %s, %s, %s, %s; took %s\n",
		o.Floor, o.Rounds, seconds(o.Seconds), o.CPUs, o.Kernel, o.Tools["fio"], o.Tools["nbdkit"], o.Tools["qemu-storage-daemon"], seconds(o.Took))
}
