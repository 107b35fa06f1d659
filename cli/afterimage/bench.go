package main

import (
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/novacron/afterimage/bench"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
)

func (w *world) benchCommand() *cli.Command {
	return noun("bench", "measure, instead of believing a setting",
		verb("rpo", "measure the RPO under a load over an emulated link", "",
			"Two journals on this machine; a seeded load writes stamps to one, and an independent reader looks for the newest stamp at the other every 10 ms. Nothing is computed from our own acknowledgements.",
			[]string{"afterimage bench rpo", "afterimage bench rpo --for 1m --rtt 100ms --loss 0.01 --rate 20MiB -o json"},
			[]cli.Flag{
				&cli.DurationFlag{Name: "for", Value: 20 * time.Second, Usage: "`SPAN` of the run"},
				&cli.IntFlag{Name: "writes", Value: 50, Usage: "`NUMBER` of writes a second"},
				&cli.StringFlag{Name: "write-size", Value: "4KiB", Usage: "`SIZE` of each write"},
				&cli.DurationFlag{Name: "rtt", Value: 50 * time.Millisecond, Usage: "`SPAN` of the link's round trip"},
				&cli.Float64Flag{Name: "loss", Value: 0.001, Usage: "`PROBABILITY` that a datagram is lost"},
				&cli.StringFlag{Name: "rate", Value: "48MiB", Usage: "`SIZE` per second that the link carries; 0: no limit"},
				&cli.DurationFlag{Name: "cut", Usage: "`SPAN` for which the link is cut in the middle of the run"},
				&cli.Uint64Flag{Name: "seed", Usage: "`NUMBER` that load and link follow; 0: drawn and printed"},
				&cli.StringFlag{Name: "dir", Usage: "`DIRECTORY` for the two journals; default a temporary one"},
			}, w.benchRPO),
	)
}

func (w *world) benchRPO(c *cli.Context) error {
	size, err := config.ParseBytes(c.String("write-size"))
	if err != nil {
		return usage("--write-size: %v", err)
	}
	rate, err := config.ParseBytes(c.String("rate"))
	if err != nil {
		return usage("--rate: %v", err)
	}
	o := bench.RPOOptions{For: c.Duration("for"), Writes: c.Int("writes"), WriteBytes: int64(size), RTT: c.Duration("rtt"), Loss: c.Float64("loss"),
		LinkRate: int64(rate), Cut: c.Duration("cut"), Seed: c.Uint64("seed"), Dir: c.String("dir")}
	if o.Loss < 0 || o.Loss >= 1 {
		return usage("--loss %g is no probability below 1", o.Loss)
	}
	// What the flags call none is below zero there.
	if o.Loss == 0 {
		o.Loss = -1
	}
	if o.LinkRate == 0 {
		o.LinkRate = -1
	}
	p := w.printer(c)
	m := p.meter()
	o.Sampled = func(s bench.RPOSample) {
		m.show(control.Progress{Step: "measure", Done: int64(s.At / time.Millisecond), Total: int64(o.For / time.Millisecond), Unit: "ms"})
	}
	r, err := bench.RPO(c.Context, o)
	m.end()
	if err != nil {
		return err
	}
	return p.data(r, func() string { return rpoScreen(r) })
}

func rpoScreen(r bench.RPOResult) string {
	t := newTable("RPO", "P50", "P99", "MAX", "SAMPLES")
	t.row("measured", seconds(r.P50), seconds(r.P99), seconds(r.Max), fmt.Sprint(r.Samples))
	s := t.String() + fmt.Sprintf("\nload %d writes of %s in %s; link RTT %s, loss %g, %s/s; seed %d\n", r.Writes, size(r.WriteBytes), seconds(r.Seconds), seconds(r.RTT), r.Loss, size(r.LinkRate), r.Seed)
	s += fmt.Sprintf("reported p50 %s; samples in which less was reported than measured: %d\n", seconds(r.ReportedP50), r.ReportedBelow)
	if r.CutMax > 0 {
		s += fmt.Sprintf("during the cut at most %s; caught up %s after it\n", seconds(r.CutMax), seconds(r.CatchUp))
	}
	return s
}
