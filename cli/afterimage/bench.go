package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/novacron/afterimage/bench"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
)

func (w *world) benchCommand() *cli.Command {
	return noun("bench", "measure, instead of believing a setting",
		verb("rpo", "measure the RPO under a load over an emulated link", "",
			"Two sites as processes on this machine; a seeded load writes stamps at one, and an independent reader looks for the newest stamp at the other every 10 ms. Nothing is computed from our own acknowledgements. Then the link is cut, and the load goes on until the other site has caught up. As root the link carries IP packets between two network namespaces, else datagrams over the loopback.",
			[]string{"afterimage bench rpo", "afterimage bench rpo --for 1m --cut 0s --rtt 100ms --loss 0.01 --rate 20MiB -o json"},
			[]cli.Flag{
				&cli.DurationFlag{Name: "for", Value: 30 * time.Second, Usage: "`SPAN` that is measured before the cut"},
				&cli.IntFlag{Name: "writes", Value: 2000, Usage: "`NUMBER` of writes a second"},
				&cli.StringFlag{Name: "write-size", Value: "5KiB", Usage: "`SIZE` of each write"},
				&cli.DurationFlag{Name: "rtt", Value: 50 * time.Millisecond, Usage: "`SPAN` of the link's round trip"},
				&cli.Float64Flag{Name: "loss", Value: 0.001, Usage: "`PROBABILITY` that a datagram is lost"},
				&cli.StringFlag{Name: "rate", Value: "50000000B", Usage: "`SIZE` per second that the link carries; 0: no limit"},
				&cli.DurationFlag{Name: "cut", Value: time.Minute, Usage: "`SPAN` for which the link is cut then; 0: it is not"},
				&cli.Uint64Flag{Name: "seed", Usage: "`NUMBER` that load and link follow; 0: drawn and printed"},
				&cli.StringFlag{Name: "dir", Usage: "`DIRECTORY` for the two journals; default a temporary one"},
			}, w.benchRPO),
		verb("journal", "measure the journal beside the raw device", "",
			"Ingest, reads as of a point, whole images, the opening after a kill -9; each beside its baseline on the same disk in the same run, in turns. Every write survives the loss of power before it is answered. Takes about 20 minutes and 15 GiB; --quick two minutes and 2 GiB.",
			[]string{"afterimage bench journal", "afterimage bench journal --quick -o json", "afterimage bench journal --only ingest_4k --seconds 60 --dir /srv"},
			[]cli.Flag{
				&cli.StringFlag{Name: "dir", Usage: "`DIRECTORY` on the disk to measure; default the working directory"},
				&cli.IntFlag{Name: "seconds", Value: 30, Usage: "`NUMBER` of seconds for each size of writes, and for each depth of reads"},
				&cli.StringFlag{Name: "image", Value: "1GiB", Usage: "`SIZE` of the volume that is read and materialised; it is written ten times"},
				&cli.StringFlag{Name: "only", Usage: "`PATTERN`: measure only figures with this in their name"},
				&cli.BoolFlag{Name: "quick", Usage: "a few short rounds on small files, whatever --seconds and --image say: it shows that all works, and little else"},
				&cli.Uint64Flag{Name: "seed", Usage: "`NUMBER` that the load follows; 0: drawn and printed"},
			}, w.benchJournal),
		w.benchReplicateVerb(), w.benchCaptureVerb(), w.benchFailoverVerb(), w.benchChild(), w.benchEnd(),
	)
}

// benchChild is the process that bench journal kills while it writes.
func (w *world) benchChild() *cli.Command {
	cmd := verb("journal-child", "write to a journal until killed", "",
		"afterimage bench journal starts it by itself; it is not for people.",
		[]string{"afterimage bench journal-child --help"},
		[]cli.Flag{&cli.StringFlag{Name: "dir", Required: true, Usage: "`DIRECTORY` for the journal"}},
		func(c *cli.Context) error { return bench.JournalChild(c.Context, c.String("dir"), w.stdout) })
	cmd.Hidden = true
	return cmd
}

func (w *world) benchJournal(c *cli.Context) error {
	image, err := config.ParseBytes(c.String("image"))
	if err != nil {
		return usage("--image: %v", err)
	}
	if c.Int("seconds") < 1 {
		return usage("--seconds %d is less than 1", c.Int("seconds"))
	}
	if image < 16<<20 || image%(1<<20) != 0 {
		return usage("--image %s is no multiple of 1MiB from 16MiB", c.String("image"))
	}
	if only := c.String("only"); len(bench.FiguresWith(only)) == 0 {
		return usage("--only %q is in the name of no figure; they are %s, most of them also with _sealed behind", only, strings.Join(bench.FiguresWith(""), ", "))
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	o := bench.JournalOptions{
		Dir: c.String("dir"), Span: time.Duration(c.Int("seconds")) * time.Second, ImageBytes: int64(image), Only: c.String("only"), Seed: c.Uint64("seed"), Quick: c.Bool("quick"),
		Child: func(ctx context.Context, dir string) *exec.Cmd {
			return exec.CommandContext(ctx, self, "bench", "journal-child", "--dir", dir)
		},
	}
	p := w.printer(c)
	m := p.meter()
	o.Progress = func(step string, n, of int) { m.show(control.Progress{Step: fmt.Sprintf("%s, %d of %d", step, n, of)}) }
	r, err := bench.Journal(c.Context, o)
	m.end()
	if err != nil {
		return err
	}
	if r.Setting.InMemory {
		p.note("%s lies in memory: the figures say nothing about a disk", r.Setting.Dir)
	}
	return p.data(r, func() string { return journalScreen(p, r) })
}

// journalScreen is the figures with their targets beside, and what is missed.
func journalScreen(p *printer, r bench.JournalResult) string {
	s := figureTable(p, r.Names(), r.Figures, "OURS", "BASELINE") + fmt.Sprintf("\n%d of %d figures missed; range: of the rounds\n", len(r.MissedNames()), len(r.Names()))
	o := r.Setting
	s += fmt.Sprintf("%s on %d CPUs, Linux %s, %s; written bytes: %s; page cache dropped by %s; O_DIRECT %v\n", o.Dir, o.CPUs, o.Kernel, o.Go, o.WrittenBy, o.CacheBy, o.Direct)
	s += fmt.Sprintf("%s a size, image of %s written %d times, seed %d; took %s\n", seconds(o.Seconds), size(o.ImageBytes), o.Versions, o.Seed, seconds(o.Took))
	return s
}

// figureTable is figures beside their targets, and the two sides of each.
func figureTable(p *printer, names []string, figures map[string]bench.Figure, ours, baseline string) string {
	t := p.newTable("FIGURE", "VALUE", "RANGE", "TARGET", "", ours, baseline)
	t.tint = func(column int, cell string) string {
		if column == 4 && cell != "" {
			return p.colored(map[bool]string{true: red, false: green}[strings.HasPrefix(cell, "MISSED")], cell)
		}
		return cell
	}
	for _, n := range names {
		f := figures[n]
		target, verdict := "-", ""
		if f.Target != nil {
			target, verdict = fmt.Sprintf("%s %g", f.Want, *f.Target), "met"
		}
		if f.Missed() {
			verdict = "MISSED"
		}
		t.row(n, figureText(f.Value), figureText(f.Low)+" to "+figureText(f.High), target, verdict, rateText(f.Ours), rateText(f.Baseline))
	}
	return t.String()
}

func figureText(v float64) string { return fmt.Sprintf("%.3g", v) }

// rateText is bytes and operations a second, and latencies, as far as there are any.
func rateText(r *bench.Rate) string {
	if r == nil {
		return "-"
	}
	var parts []string
	if r.MBPerSecond > 0 {
		parts = append(parts, fmt.Sprintf("%.0f MB/s", r.MBPerSecond))
	}
	if r.PerSecond > 1 {
		parts = append(parts, fmt.Sprintf("%.0f/s", r.PerSecond))
	}
	if r.P50 > 0 {
		parts = append(parts, fmt.Sprintf("%.0f/%.0f us", r.P50, r.P99))
	}
	return strings.Join(parts, ", ")
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
	if o.End, err = endProgram(); err != nil {
		return err
	}
	p := w.printer(c)
	m := p.meter()
	o.Sampled = func(s bench.RPOSample) {
		step := "measure"
		if s.At > o.For {
			step = "catch up"
		}
		if s.Cut {
			step = "cut"
		}
		if step != "measure" {
			m.show(control.Progress{Step: step})
			return
		}
		m.show(control.Progress{Step: step, Done: int64(s.At / time.Millisecond), Total: int64(o.For / time.Millisecond), Unit: "ms"})
	}
	r, err := bench.RPO(c.Context, o)
	m.end()
	if err != nil {
		return err
	}
	return p.data(r, func() string { return rpoScreen(p, r) })
}

func rpoScreen(p *printer, r bench.RPOResult) string {
	t := p.newTable("RPO", "P50", "P99", "MAX", "SAMPLES")
	t.row("measured", seconds(r.P50), seconds(r.P99), seconds(r.Max), fmt.Sprint(r.Samples))
	s := t.String() + "\n"
	t = p.newTable("FIGURE", "VALUE", "TARGET", "")
	for _, x := range r.Targets() {
		t.row(x.Name, figureText(x.Value), fmt.Sprintf("%s %g", x.Want, x.Target), map[bool]string{true: "met", false: "MISSED"}[x.Met])
	}
	s += t.String() + fmt.Sprintf("\nload %d writes of %s in %s; link of %s, RTT %s, loss %g, %s/s; seed %d\n", r.Writes, size(r.WriteBytes), seconds(r.Seconds), r.Between, seconds(r.RTT), r.Loss, size(r.LinkRate), r.Seed)
	s += fmt.Sprintf("reported p50 %s; samples in which less was reported than measured: %d\n", seconds(r.ReportedP50), r.ReportedBelow)
	if r.CaughtUp != nil && *r.CaughtUp {
		s += fmt.Sprintf("cut: RPO of at most %s; something arrived %s after it, all %s after it, and was shown so %s later\n", seconds(r.CutMax), seconds(r.Reconnect), seconds(r.CatchUp), seconds(r.ShownBack))
	}
	return s
}
