package e2e

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/testbed/link"
	"github.com/novacron/afterimage/testbed/scale"
	"github.com/novacron/afterimage/testbed/stamp"
)

const (
	slots     = 256 // the load's stamps go round and round
	heartbeat = 250 * time.Millisecond
)

// allowance is for a machine that has other things to do: many, where the race
// detector is at work.
func allowance() time.Duration {
	if scale.Race {
		return 2 * time.Second
	}
	return 150 * time.Millisecond
}

// calm is what a group's RPO comes to be below under load, and still what it does
// while nobody writes: a heartbeat and its answer, and one of each that came late.
func calm() time.Duration { return 4*heartbeat + 4*allowance() }

const still = 4*heartbeat + 600*time.Millisecond

// idleFor is longer than still, so that an RPO that grows in it does not stay below.
const idleFor = still + 400*time.Millisecond

// stamps is a load of numbered stamps, one after the other: each is one record, so
// stamp k is record base+k.
type stamps struct {
	base   uint64
	writer uint64
	to     target
	stop   context.CancelFunc
	done   chan error

	mu       sync.Mutex  // guards answered
	answered []time.Time // of stamp k at k-1
}

// begin goes on after the last stamp, at 200 a second.
func (s *stamps) begin(ctx context.Context) {
	ctx, s.stop = context.WithCancel(ctx)
	s.done = make(chan error, 1)
	go func() { s.done <- s.run(ctx) }()
}

func (s *stamps) run(ctx context.Context) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	p := make([]byte, stamp.Size)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		k := s.last() + 1
		stamp.Stamp{Number: k, Writer: s.writer, Time: time.Now()}.Encode(p)
		if err := s.to.write(p, stamp.Offset(k, slots)); err != nil {
			return fmt.Errorf("write stamp %d: %w", k, err)
		}
		s.mu.Lock()
		s.answered = append(s.answered, time.Now())
		s.mu.Unlock()
	}
}

func (s *stamps) end() error {
	s.stop()
	return <-s.done
}

// last is the number of the last answered stamp.
func (s *stamps) last() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return uint64(len(s.answered))
}

// loss is how old, at a moment, the oldest answered stamp was that comes after
// stamp k: what would have been lost with the source at that moment, were k the last
// one elsewhere.
func (s *stamps) loss(at time.Time, k uint64) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if k >= uint64(len(s.answered)) {
		return 0
	}
	return max(at.Sub(s.answered[k]), 0)
}

// shown is what `status -o json` said at one end.
type shown struct {
	asked    time.Time // by our clock, before
	answered time.Time // and after
	rpo      time.Duration
	known    bool
}

// ends is a pair under a load of stamps, with what it has shown.
type ends struct {
	*pair
	t    *testing.T
	load *stamps
}

func (e *ends) status(d *daemon) shown {
	e.t.Helper()
	s := shown{asked: time.Now()}
	var st control.Status
	if err := d.cli(&st, "status"); err != nil {
		e.t.Fatal(err)
	}
	if len(st.Groups) != 1 {
		e.t.Fatalf("status of %s: %+v", d.name, st)
	}
	s.answered = time.Now()
	if r := st.Groups[0].RPOSeconds; r != nil {
		s.rpo, s.known = time.Duration(*r*float64(time.Second)), true
	}
	if !d.running() && (s.known || st.Daemon != control.NotRunning) {
		e.t.Errorf("the daemon of %s is dead, and status says %q, RPO known: %v", d.name, st.Daemon, s.known)
	}
	return s
}

// newestAtPeer is the newest stamp of the newest point at the peer, whose daemon may
// be dead: a reader that knows how to read a disk and what a stamp looks like.
func (e *ends) newestAtPeer() uint64 {
	e.t.Helper()
	images, err := e.b.restore("latest")
	if err != nil {
		e.t.Fatal(err)
	}
	r, err := stamp.Scan(bytes.NewReader(images["disk"]), 0, slots)
	if err != nil {
		e.t.Fatal(err)
	}
	if !r.Whole(r.Max) {
		e.t.Fatalf("the newest point at the peer is not whole: %s", r)
	}
	return r.Max
}

// watch samples both ends for d, and some times at least, and holds what they show to the truth: an RPO is
// never less than what would have been lost.
func (e *ends) watch(when string, d time.Duration) (a, b []shown) {
	e.t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	var least time.Duration
	for end := time.Now().Add(d); time.Now().Before(end) || len(a) < 6; <-tick.C {
		atA, atB := e.status(e.a), e.status(e.b)
		arrived := e.newestAtPeer() // read after, so never less than it was
		for _, x := range []struct {
			site string
			shown
		}{{"a", atA}, {"b", atB}} {
			truth := e.load.loss(x.asked, arrived)
			least = max(least, truth)
			if x.known && x.rpo < truth-time.Millisecond {
				e.t.Errorf("%s: %s shows an RPO of %v, the loss would be %v", when, x.site, x.rpo, truth)
			}
		}
		a, b = append(a, atA), append(b, atB)
	}
	e.t.Logf("%s: at a %s, at b %s, true loss up to %v", when, spread(a), spread(b), least.Round(time.Millisecond))
	return a, b
}

func spread(s []shown) string {
	known := slices.DeleteFunc(slices.Clone(s), func(x shown) bool { return !x.known })
	if len(known) == 0 {
		return fmt.Sprintf("unknown (%d samples)", len(s))
	}
	slices.SortFunc(known, func(a, b shown) int { return int(a.rpo - b.rpo) })
	return fmt.Sprintf("%v…%v (%d samples, %d unknown)", known[0].rpo.Round(time.Millisecond), known[len(known)-1].rpo.Round(time.Millisecond), len(s), len(s)-len(known))
}

// grows holds samples to an RPO that grows as time goes by, once what was under way
// has ended.
func (e *ends) grows(when, where string, s []shown) {
	e.t.Helper()
	begun := s[0].asked
	s = slices.DeleteFunc(slices.Clone(s), func(x shown) bool { return x.asked.Sub(begun) < 500*time.Millisecond })
	if len(s) < 3 {
		e.t.Fatalf("%s, %s: %d samples", when, where, len(s))
	}
	const drift = 20 * time.Millisecond // of clocks that are compared with a margin
	for i, x := range s[1:] {
		// Each was taken at some moment between the question and the answer.
		least, most, grown := x.asked.Sub(s[0].answered), x.answered.Sub(s[0].asked), x.rpo-s[0].rpo
		if !x.known || grown < least-drift || grown > most+drift {
			e.t.Errorf("%s, %s: in %v to %v the RPO has grown by %v (known: %v, sample %d)", when, where, least, most, grown, x.known, i+1)
		}
	}
}

// idles wants an RPO at both ends that does not grow while nobody writes.
func (e *ends) idles(when string) {
	e.t.Helper()
	e.watch(when, idleFor)
	for _, d := range []*daemon{e.a, e.b} {
		d.until(when+": the RPO is an idle group's", func(context.Context) bool {
			s := e.status(d)
			return s.known && s.rpo < still
		})
	}
}

func (e *ends) conditions(c link.Config) {
	e.t.Helper()
	if err := e.link.Set(c); err != nil {
		e.t.Fatal(err)
	}
}

// lags watches both ends until their RPO is no longer an idle group's.
func (e *ends) lags(when string) {
	e.t.Helper()
	e.watch(when, 3*time.Second)
	for _, d := range []*daemon{e.a, e.b} {
		d.until(when+": the RPO is no idle group's", func(context.Context) bool {
			s := e.status(d)
			return s.known && s.rpo >= 2*heartbeat
		})
	}
}

// recovers waits until both ends show a small RPO again, under load.
func (e *ends) recovers(after string) {
	e.t.Helper()
	for _, d := range []*daemon{e.a, e.b} {
		d.until("the RPO is small again after "+after, func(context.Context) bool {
			s := e.status(d)
			return s.known && s.rpo < calm()
		})
	}
}

// Promises 9 and 10: kill -9 of the receiving site and a cut of the link, both in the
// middle of a load: it goes on where it was, every record is there once, and the RPO
// shown is never less than the truth.
func TestPromise10OutagesLoseNothingAndRPOTellsTheTruth(t *testing.T) {
	rng, seed := seeded(t)
	e := &ends{t: t, pair: newPair(t, []volume{{"disk", slots * stamp.Size}}, seed)}
	e.b.start()
	e.a.startSynced()
	e.load = &stamps{base: e.a.group().Seq, writer: rng.Uint64(), to: through(e.a.connect("disk"))}
	cut, down, kills := 3*time.Second, 1500*time.Millisecond, 1
	if scale.Sweeps() {
		cut, kills = 8*time.Second, 5 // the connection itself is given up after 5 s
	}
	e.recovers("the start")
	e.idles("idle")
	e.load.begin(t.Context())
	e.watch("under load", 2*time.Second)

	// Heartbeats and acknowledgements come through, but not every write does.
	e.conditions(link.Config{BytesPerSecond: 300 << 10})
	e.lags("the link is too slow for the load")
	e.conditions(link.Config{})
	e.recovers("the slow link")

	e.link.Cut()
	a, b := e.watch("the link is cut", cut)
	e.grows("the link is cut", "at a", a)
	e.grows("the link is cut", "at b", b)
	e.link.Heal()
	e.watch("the link is back", time.Second)
	e.recovers("the link's return")

	for range kills {
		e.b.kill()
		a, _ = e.watch("the receiver is dead", down)
		e.grows("the receiver is dead", "at a", a)
		e.b.start()
		e.watch("the receiver is back", time.Second)
		e.recovers("the receiver's return")
	}
	if err := e.load.end(); err != nil {
		t.Fatal(err)
	}
	e.idles("idle again")
	e.checkOnce(rng)
}

// checkOnce holds the peer to the same records: as many as there were writes, and the
// same disk at the same seq.
func (e *ends) checkOnce(rng *rand.Rand) {
	e.t.Helper()
	e.awaitArrival()
	last := e.load.last()
	ga, gb := e.a.group(), e.b.group()
	if want := e.load.base + last; ga.Seq != want || gb.Seq != want || gb.EpochID != ga.EpochID {
		e.t.Fatalf("%d stamps after #%d: the source is at #%d.%d, the peer at #%d.%d", last, e.load.base, ga.Epoch, ga.Seq, gb.Epoch, gb.Seq)
	}
	seqs := []uint64{ga.Seq}
	for range 10 {
		seqs = append(seqs, e.load.base+rng.Uint64N(last))
	}
	for _, seq := range seqs {
		at := fmt.Sprintf("#%d.%d", ga.Epoch, seq)
		there, _, err := e.b.view(at)
		if err != nil {
			e.t.Fatal(err)
		}
		here, _, err := e.a.view(at)
		if err != nil {
			e.t.Fatal(err)
		}
		if i := firstDifference(here["disk"], there["disk"]); i >= 0 {
			e.t.Errorf("%s differs between the sites at byte %d", at, i)
		}
		r, err := stamp.Scan(bytes.NewReader(there["disk"]), 0, slots)
		if n := seq - e.load.base; err != nil || r.Max != n || !r.Whole(n) {
			e.t.Errorf("%s at the peer, want all up to stamp %d: %s, %v", at, n, r, err)
		}
	}
	e.t.Logf("%d stamps, each there once", last)
}
