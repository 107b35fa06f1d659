package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/novacron/afterimage/bench"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

func (w *world) benchReplicateVerb() *cli.Command {
	return verb("replicate", "measure replication beside TCP and the bare libraries", "",
		"Two sites as processes in two network namespaces, and between them a link of IP packets with a rate, a delay and a loss; TCP + TLS 1.3 takes turns with ours on the same link. Where no link limits them, over the loopback, ours stands beside the libraries' own copy into nothing. What counts is durable at the other side, chained and indexed. Needs root for all but the loopback figures (--only loopback); takes about eight minutes and 4 GiB, --quick one minute.",
		[]string{"afterimage bench replicate", "afterimage bench replicate --quick -o json", "afterimage bench replicate --only goodput --seconds 20", "afterimage bench replicate --only loopback"},
		[]cli.Flag{
			&cli.StringFlag{Name: "dir", Usage: "`DIRECTORY` for the journals; default a temporary one"},
			&cli.IntFlag{Name: "seconds", Value: 10, Usage: "`NUMBER` of seconds of each side of a round"},
			&cli.IntFlag{Name: "rounds", Value: 3, Usage: "`NUMBER` of rounds"},
			&cli.DurationFlag{Name: "rtt", Value: 50 * time.Millisecond, Usage: "`SPAN` of the link's round trip"},
			&cli.StringFlag{Name: "rate", Value: "25000000B", Usage: "`SIZE` per second that the link carries, headers included"},
			&cli.StringFlag{Name: "only", Usage: "`PATTERN`: measure only figures with this in their name"},
			&cli.BoolFlag{Name: "quick", Usage: "one short round of each, whatever --seconds and --rounds say: it shows that all works, and little else"},
			&cli.Uint64Flag{Name: "seed", Usage: "`NUMBER` that load and link follow; 0: drawn and printed"},
		}, w.benchReplicate)
}

// benchEnd is the process at one end of a measured path.
func (w *world) benchEnd() *cli.Command {
	cmd := verb("end", "be one end of a measured path", "",
		"afterimage bench replicate and bench rpo start it by themselves; it is not for people.",
		[]string{"afterimage bench end --help"}, nil,
		func(c *cli.Context) error { return bench.EndChild(os.Stdin, os.Stdout) })
	cmd.Hidden = true
	return cmd
}

// endProgram starts this program again as an end.
func endProgram() (func(context.Context) *exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) *exec.Cmd { return exec.CommandContext(ctx, self, "bench", "end") }, nil
}

func (w *world) benchReplicate(c *cli.Context) error {
	rate, err := config.ParseBytes(c.String("rate"))
	if err != nil {
		return usage("--rate: %v", err)
	}
	if c.Int("seconds") < 1 || c.Int("rounds") < 1 {
		return usage("--seconds and --rounds are 1 at least")
	}
	if only := c.String("only"); len(bench.ReplicateFiguresWith(only)) == 0 {
		return usage("--only %q is in the name of no figure; they are %s", only, strings.Join(bench.ReplicateFiguresWith(""), ", "))
	}
	end, err := endProgram()
	if err != nil {
		return err
	}
	p := w.printer(c)
	m := p.meter()
	r, err := bench.Replicate(c.Context, bench.ReplicateOptions{
		Dir: c.String("dir"), Span: time.Duration(c.Int("seconds")) * time.Second, Rounds: c.Int("rounds"), RTT: c.Duration("rtt"), LinkRate: int64(rate),
		Only: c.String("only"), Quick: c.Bool("quick"), Seed: c.Uint64("seed"), End: end,
		Progress: func(step string, n, of int) {
			if of > 0 {
				step = fmt.Sprintf("%s, %d of %d", step, n, of)
			}
			m.show(control.Progress{Step: step})
		},
	})
	m.end()
	if errors.Is(err, bench.ErrPrivilege) {
		return fault.Wrap(fault.HostUnfit, "lay a link between two network namespaces", err).Advise("run it as root, or measure what needs no link: --only loopback")
	}
	if err != nil {
		return err
	}
	return p.data(r, func() string { return replicateScreen(p, r) })
}

// replicateScreen is the figures with their targets beside.
func replicateScreen(p *printer, r bench.ReplicateResult) string {
	o := r.Setting
	return figureTable(p, r.Names(), r.Figures, "OURS", "BESIDE") + fmt.Sprintf("\n%d of %d figures missed; range: of the rounds\nlink %s/s, RTT %s, queue %s; %s a side after %s; TCP's congestion control: %s\n%d CPUs, Linux %s, %s, seed %d; took %s\n",
		len(r.MissedNames()), len(r.Names()), size(o.LinkRate), seconds(o.RTT), size(o.QueueBytes), seconds(o.Seconds), seconds(o.WarmUp), o.Congestion, o.CPUs, o.Kernel, o.Go, o.Seed, seconds(o.Took))
}
