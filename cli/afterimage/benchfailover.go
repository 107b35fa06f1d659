package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/novacron/afterimage/bench"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
)

func (w *world) benchFailoverVerb() *cli.Command {
	return verb("failover", "measure how long a failover takes", "",
		"A replica's journal is made and the daemon of its site started as a process, so that nothing was read before. From the order on the clock runs until QEMU says that the guest runs, and until its guest agent answers; beside that stands the same guest booted from a local file. Then several machines are failed over at once. Needs QEMU, and Debian's packages of the kernel and the guest agent, which are fetched once; takes some minutes and about 3 GiB.",
		[]string{"afterimage bench failover -o json", "afterimage bench failover --only reprotect -o json", "afterimage bench failover --records 10000 --machines 2 --rounds 1"},
		[]cli.Flag{
			&cli.StringFlag{Name: "dir", Usage: "`DIRECTORY` for the journals; default the temporary one"},
			&cli.IntFlag{Name: "records", Value: 1_000_000, Usage: "`NUMBER` of records of the one machine's journal"},
			&cli.IntFlag{Name: "machines", Value: 10, Usage: "`NUMBER` of machines that are failed over at once"},
			&cli.StringFlag{Name: "disk", Value: "20GiB", Usage: "`SIZE` of each machine's disk"},
			&cli.IntFlag{Name: "rounds", Value: 3, Usage: "`NUMBER` of failovers of one machine"},
			&cli.StringFlag{Name: "only", Usage: "`PART` that is measured, or several with commas: " + strings.Join(bench.FailoverParts, ", ")},
			&cli.BoolFlag{Name: "no-agent", Usage: "measure until the guests run only"},
		}, w.benchFailover)
}

func (w *world) benchFailover(c *cli.Context) error {
	disk, err := config.ParseBytes(c.String("disk"))
	if err != nil {
		return usage("--disk: %v", err)
	}
	if c.Int("records") < 1 || c.Int("machines") < 1 || c.Int("rounds") < 1 || disk < 2<<20 || disk%512 != 0 {
		return usage("--records, --machines and --rounds are 1 at least, --disk is 2MiB at least in whole sectors")
	}
	var only []string
	if text := c.String("only"); text != "" {
		only = strings.Split(text, ",")
	}
	for _, part := range only {
		if !slices.Contains(bench.FailoverParts, part) {
			return usage("--only %q: want %s", part, strings.Join(bench.FailoverParts, ", "))
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	p := w.printer(c)
	m := p.meter()
	r, err := bench.Failover(c.Context, bench.FailoverOptions{Dir: c.String("dir"), Records: c.Int("records"), Machines: c.Int("machines"), DiskBytes: int64(disk), Rounds: c.Int("rounds"), Only: only, NoAgent: c.Bool("no-agent"),
		Daemon: func(ctx context.Context, path string) *exec.Cmd {
			return exec.CommandContext(ctx, self, "daemon", "--config", path)
		},
		Progress: func(step string, n, of int) { m.show(control.Progress{Step: fmt.Sprintf("%s, %d of %d", step, n, of)}) }})
	m.end()
	if err != nil {
		return err
	}
	return p.data(r, func() string {
		o := r.Setting
		return figureTable(p, r.Names(), r.Figures, "", "") + fmt.Sprintf("\none machine: %d records, disk of %s; %d at once: %d records each; %s on %d CPUs, Linux %s, %s; the daemon was up after %s; %s over the wire for %s that differ; took %s\n",
			o.Records, size(o.DiskBytes), o.Machines, o.Each, o.Accel, o.CPUs, o.Kernel, o.Go, seconds(o.Reopening), size(o.Wire), size(o.Differ), seconds(o.Took))
	})
}
