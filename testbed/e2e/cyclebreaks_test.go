package e2e

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/testbed/scale"
)

// The same in bitmap capture, where nothing lies in the guest's way: its writes go on
// whatever breaks; no point is made that is not of one instant of all disks; what the
// first cycle behind the break reads is the delta where the bitmaps can be trusted. The
// breaks are those that meet cycles in another way than a tap; with AFTERIMAGE_LONG=1 it
// is the others too.
func TestPromise3BreaksOfADomainInCycles(t *testing.T) {
	x := newProtected(t, "{mode: bitmap, every: 100ms}", nil)
	rng, _ := seeded(t)
	x.start()
	x.awaitState(x.state)
	x.load()
	breaks := []domainBreak{
		{name: "kill -9 of the daemon", do: x.killed, cause: "opening"},
		{name: "SIGSTOP of the daemon", do: func() {
			x.signal(syscall.SIGSTOP)
			x.stamps(500) // nothing holds them up
			x.signal(syscall.SIGCONT)
			if !x.settledOrGone() {
				x.launch()
			}
		}, same: true},
		{name: "libvirtd killed and started", do: x.libvirtdKilled, cause: "tap-ended"},
		{name: "QEMU killed and started", full: "root data", quiet: true, do: x.qemuKilled},
	}
	if os.Getenv("AFTERIMAGE_LONG") == "1" {
		breaks = append(breaks,
			domainBreak{name: "disk hot-added", kept: true, do: x.hotAdd},
			domainBreak{name: "pause, external snapshot, commit, resume", cause: "detached", full: "root data vdc", do: x.snapshotAndCommit},
			domainBreak{name: "pause, resize, resume", cause: "detached", full: "root", do: x.resize},
			domainBreak{name: "disk hot-removed", kept: true, do: x.hotRemove})
	}
	var table bytes.Buffer
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "break\tlongest write stall\tlongest time between points\tended by\tread again\tjournaled\tof\tpoints judged")
	const judged = 20
	before := x.awaitCycles(time.Now(), judged)
	for _, b := range breaks {
		was := before[len(before)-1].Last
		x.stalls.take()
		b.do()
		x.awaitState(x.state)
		if b.quiet {
			x.load()
		}
		after := x.awaitCycles(time.Now(), judged)
		stall := x.stalls.take()
		x.quiet()
		x.awaitCycles(time.Now(), 1)
		x.newestIsDisk(b.name)
		ended := x.endedBy(b, was, after[0].First)
		x.judgeCycles(rng, before, judged)
		x.judgeCycles(rng, after, judged)
		read, journaled, of := x.cost(b, true)
		fmt.Fprintf(w, "%s\t%v\t%v\t%s\t%d KiB\t%d KiB\t%d KiB\t%d\n", b.name, stall.Round(time.Millisecond),
			x.longestBetween(was, after[0].First), ended, read>>10, journaled>>10, of>>10, 2*judged)
		x.load()
		before = x.awaitCycles(time.Now(), judged)
	}
	w.Flush()
	t.Logf("what breaks cost, in bitmap cycles, at a guest that writes without pause:\n%s", &table)
	scale.Counted(t, "cycle-breaks", len(breaks), 4)
}

// awaitCycles waits for n closed cycles whose instants are after a time, and returns
// what there is of them.
func (x *protected) awaitCycles(after time.Time, n int) (closed []control.Span) {
	x.t.Helper()
	x.until(fmt.Sprintf("%d cycles are closed", n), func(ctx context.Context) bool {
		ps, err := x.api.Points(ctx, control.PointsQuery{Group: "g"})
		closed = slices.DeleteFunc(ps.Spans, func(s control.Span) bool { return s.Open || !s.First.Time.After(after) })
		return err == nil && len(closed) >= n
	})
	return closed
}

// judgeCycles reads n of these points and judges each.
func (x *protected) judgeCycles(rng *rand.Rand, closed []control.Span, n int) {
	x.t.Helper()
	j := judgement{protected: x}
	for _, i := range rng.Perm(len(closed))[:n] {
		j.point(closed[i].Last.Epoch, closed[i].Last.Seq)
	}
}

// endedBy is what the journal tells of the time between two points, which has to be
// what broke.
func (x *protected) endedBy(b domainBreak, from, to control.Point) string {
	x.t.Helper()
	ps, err := x.api.Points(x.t.Context(), control.PointsQuery{Group: "g"})
	if err != nil {
		x.t.Fatal(err)
	}
	var causes []string
	if to.Epoch > from.Epoch {
		causes = append(causes, "opening")
	}
	for _, g := range ps.Gaps {
		at := control.Point{Epoch: g.Epoch, Seq: g.Seq}
		if order(from, at) < 0 && order(at, to) < 0 && g.Cause != "between-cycles" && !slices.Contains(causes, g.Cause) {
			causes = append(causes, g.Cause)
		}
	}
	if b.cause != "" && !slices.Contains(causes, b.cause) {
		x.t.Errorf("%s: the points ended by %q", b.name, causes)
	}
	return strings.Join(causes, ", ")
}

// longestBetween is the longest time between two points that follow one another, from
// one to another.
func (x *protected) longestBetween(from, to control.Point) (longest time.Duration) {
	x.t.Helper()
	ps, err := x.api.Points(x.t.Context(), control.PointsQuery{Group: "g"})
	if err != nil {
		x.t.Fatal(err)
	}
	last := from
	for _, s := range ps.Spans {
		if order(from, s.First) < 0 && order(s.First, to) <= 0 {
			longest = max(longest, s.First.Time.Sub(last.Time))
			last = s.Last
		}
	}
	return longest.Round(time.Millisecond)
}

func order(a, b control.Point) int {
	return cmp.Or(cmp.Compare(a.Epoch, b.Epoch), cmp.Compare(a.Seq, b.Seq))
}
