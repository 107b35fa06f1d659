package e2e

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/novacron/afterimage/testbed/link"
	"github.com/novacron/afterimage/testbed/scale"
	"github.com/novacron/afterimage/testbed/stamp"
)

// stretchOfStamps is what one life of the source recorded of the load: from base on,
// each record is the next stamp.
type stretchOfStamps struct {
	epoch, base uint64
	first       uint64 // stamp that is record base+1
	count       uint64
}

// storm is two sites apart under a load of stamps, and what is known of them.
type storm struct {
	*apart
	t    *testing.T
	rng  *rand.Rand
	load *stamps
	done []stretchOfStamps
	now  stretchOfStamps
}

// fault goes wrong, and is over when it returns.
type fault struct {
	name string
	do   func(*storm)
}

// faults of a storm. What is under way is lost or comes late; the load goes on.
var faults = []fault{
	{"cut", func(s *storm) { s.path.Cut(); s.more(); s.path.Heal() }},
	{"drop toward the replica", func(s *storm) { s.path.CutToward(); s.more(); s.path.Heal() }},
	{"drop toward the source", func(s *storm) { s.path.CutBack(); s.more(); s.path.Heal() }},
	{"300 ms", func(s *storm) { s.under(link.Config{RTT: 300 * time.Millisecond}) }},
	{"5 % loss", func(s *storm) { s.under(link.Config{RTT: 10 * time.Millisecond, Loss: 0.05}) }},
	{"duplication", func(s *storm) { s.under(link.Config{RTT: 10 * time.Millisecond, Duplicate: 0.3}) }},
	{"reordering", func(s *storm) { s.under(link.Config{RTT: 20 * time.Millisecond, Reorder: 0.3}) }},
	{"address change", func(s *storm) { s.move() }},
	{"kill -9 of the replica", func(s *storm) { s.b.kill(); s.more(); s.b.start() }},
	{"kill -9 of the source", func(s *storm) { s.killSource() }},
	{"replica's disk full", func(s *storm) { s.fillDisk() }},
	{"replica's disk slow", func(s *storm) { normal := s.disk.slow(); s.more(); normal() }},
}

// more waits until the load has gone on for a while.
func (s *storm) more() {
	s.t.Helper()
	enough := s.load.last() + 40 + s.rng.Uint64N(100)
	s.a.until("the load goes on", func(context.Context) bool { return s.load.last() >= enough })
}

func (s *storm) under(c link.Config) {
	s.t.Helper()
	for _, c := range []link.Config{c, {}} {
		if err := s.path.Set(c); err != nil {
			s.t.Fatal(err)
		}
		s.more()
	}
}

// move gives the source's end another address, in the middle of everything.
func (s *storm) move() {
	s.t.Helper()
	if err := s.path.MoveNear(uint8(3 + s.rng.IntN(250))); err != nil {
		s.t.Fatal(err)
	}
	s.more()
}

// killSource kills the source in the middle of a write, and goes on in its next life.
func (s *storm) killSource() {
	s.t.Helper()
	s.more()
	s.a.kill()
	_ = s.load.end() // the write under way has no answer: that one is written again
	s.settle()
	s.a.startSynced()
	s.begin()
}

// bulkBytes is more than a journal takes before it looks again how much room there is.
const bulkBytes = 24 << 20

// fillDisk leaves the replica no room, and sends it more than it can take.
func (s *storm) fillDisk() {
	s.t.Helper()
	if err := s.load.end(); err != nil {
		s.t.Fatal(err)
	}
	s.settle()
	s.disk.fill()
	to, p := through(s.a.connect("bulk")), make([]byte, 1<<20)
	for off := int64(0); off < bulkBytes; off += int64(len(p)) {
		for i := range p {
			p[i] = byte(s.rng.Uint32())
		}
		if err := to.write(p, off); err != nil {
			s.t.Fatal(err)
		}
	}
	s.begin()
	s.a.until("the replica has no room", func(ctx context.Context) bool {
		g, err := s.a.api.Group(ctx, "g")
		return err == nil && len(g.Lags) == 1 && g.Lags[0].State == "refused" && g.Lags[0].Durable < g.Seq
	})
	s.more()
	s.disk.empty()
}

// begin has the load go on in this life of the source.
func (s *storm) begin() {
	s.t.Helper()
	g := s.a.group()
	s.now = stretchOfStamps{epoch: g.Epoch, base: g.Seq, first: s.load.last() + 1}
	s.load.to = through(s.a.connect("disk"))
	s.load.begin(context.Background())
}

// settle ends the stretch of the load that has just been stopped.
func (s *storm) settle() {
	s.now.count = s.load.last() + 1 - s.now.first
	if s.now.count > 0 {
		s.done = append(s.done, s.now)
	}
}

// check stops the load and holds both sites to each other and to the load.
func (s *storm) check(after string, points int) {
	s.t.Helper()
	if err := s.load.end(); err != nil {
		s.t.Fatalf("after %s: %v", after, err)
	}
	s.settle()
	want := s.now.base + s.now.count
	if ga := s.a.group(); ga.Seq != want {
		s.t.Fatalf("after %s: %d stamps after #%d, and the source is at #%d.%d", after, s.now.count, s.now.base, ga.Epoch, ga.Seq)
	}
	s.b.until("all has arrived after "+after, func(ctx context.Context) bool {
		gb, err := s.b.api.Group(ctx, "g")
		return err == nil && gb.Durable >= want && gb.Epoch == s.now.epoch
	})
	ga, gb := s.a.group(), s.b.group()
	if ga.Seq != gb.Seq || ga.EpochID != gb.EpochID || ga.Chain != gb.Chain || len(ga.Chain) != 64 || ga.Durable != gb.Durable {
		s.t.Fatalf("after %s: the source is at #%d.%d, durable #%d, chain %s; the replica at #%d.%d, durable #%d, chain %s",
			after, ga.Epoch, ga.Seq, ga.Durable, ga.Chain, gb.Epoch, gb.Seq, gb.Durable, gb.Chain)
	}
	if fmt.Sprint(ga.Lineage) != fmt.Sprint(gb.Lineage) {
		s.t.Fatalf("after %s: lineages %v and %v", after, ga.Lineage, gb.Lineage)
	}
	for range points {
		s.samePoint(after)
	}
	s.boundedMemory(after)
}

// samePoint compares the two sites, and the load, at a point drawn from all stretches.
func (s *storm) samePoint(after string) {
	s.t.Helper()
	x := s.done[s.rng.IntN(len(s.done))]
	n := 1 + s.rng.Uint64N(x.count)
	at := fmt.Sprintf("#%d.%d", x.epoch, x.base+n)
	there, _, err := s.b.view(at, "disk")
	if err != nil {
		s.t.Fatalf("after %s: %v", after, err)
	}
	here, _, err := s.a.view(at, "disk")
	if err != nil {
		s.t.Fatalf("after %s: %v", after, err)
	}
	if i := firstDifference(here["disk"], there["disk"]); i >= 0 {
		s.t.Fatalf("after %s: %s differs between the sites at byte %d", after, at, i)
	}
	last := x.first - 1 + n
	if r, err := stamp.Scan(bytes.NewReader(there["disk"]), 0, slots); err != nil || r.Max != last || !r.Whole(last) {
		s.t.Fatalf("after %s: %s at the replica, want all up to stamp %d: %s, %v", after, at, last, r, err)
	}
}

// boundedMemory holds both processes to far less than what has passed them could fill.
func (s *storm) boundedMemory(after string) {
	s.t.Helper()
	limit := int64(512 << 20)
	if scale.Race {
		limit *= 8
	}
	for _, d := range []*daemon{s.a, s.b} {
		if got := d.residentBytes(); got > limit {
			s.t.Errorf("after %s: %s holds %d MiB in memory", after, d.name, got>>20)
		}
	}
}

// residentBytes is the most that the process has had in memory so far.
func (d *daemon) residentBytes() int64 {
	d.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))
	if err != nil {
		d.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				d.t.Fatal(err)
			}
			return kib << 10
		}
	}
	d.t.Fatalf("no VmHWM of %s", d.name)
	return 0
}

// Promises 9, 10 and 16: whatever happens to the path, to the processes and to the
// replica's disk, in the middle of a load: every record is at the replica once, in
// order, with the same hash over the history, and points are what was written.
func TestPromise10NothingIsLostInAStorm(t *testing.T) {
	rng, seed := seeded(t)
	s := &storm{t: t, rng: rng, apart: newApart(t, []volume{{"disk", slots * stamp.Size}, {"bulk", bulkBytes}}, seed)}
	s.b.start()
	s.a.startSynced()
	s.load = &stamps{writer: rng.Uint64()}
	s.begin()
	s.more()
	points := 20
	if !scale.Sweeps() {
		points = 5
	}
	n := scale.Scale(60)
	var deck []fault
	for k := range n {
		if len(deck) == 0 {
			deck = append(deck, faults...)
			rng.Shuffle(len(deck), func(i, k int) { deck[i], deck[k] = deck[k], deck[i] })
		}
		f := deck[0]
		deck = deck[1:]
		began := time.Now()
		f.do(s)
		over := time.Now()
		s.check(f.name, points)
		t.Logf("%2d %-26s %6d stamps, fault %v, back and checked %v", k+1, f.name, s.load.last(), over.Sub(began).Round(time.Millisecond), time.Since(over).Round(time.Millisecond))
		s.begin()
	}
	if err := s.load.end(); err != nil {
		t.Fatal(err)
	}
	scale.Counted(t, "storm-faults", n, 60)
}
