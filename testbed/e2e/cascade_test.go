package e2e

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/testbed/link"
	"github.com/novacron/afterimage/testbed/scale"
	"github.com/novacron/afterimage/testbed/stamp"
	"github.com/novacron/afterimage/testbed/tunnel"
)

// cascade is a source, a replica that sends on what it receives, and one that has it from
// there alone, each in a namespace of its own.
type cascade struct {
	t       *testing.T
	rng     *rand.Rand
	a, b, c *daemon
	ab, bc  *tunnel.Tunnel
	load    *stamps
	base    uint64 // the record before the first stamp
}

func newCascade(t *testing.T, seed uint64, rng *rand.Rand) *cascade {
	t.Helper()
	s := &cascade{t: t, rng: rng, a: newDaemon(t, "a"), b: newDaemon(t, "b"), c: newDaemon(t, "c")}
	for _, d := range []*daemon{s.a, s.b, s.c} {
		d.space = space(t)
	}
	s.ab = lay(t, s.a.space, s.b.space, 1, link.Config{RTT: 10 * time.Millisecond, Seed: seed})
	s.bc = lay(t, s.b.space, s.c.space, 2, link.Config{RTT: 10 * time.Millisecond, Seed: seed + 1})
	toB, toC := fmt.Sprintf("%s:7700", s.ab.Far()), fmt.Sprintf("%s:7700", s.bc.Far())
	s.c.configure(fmt.Sprintf("site: c\ndata: %s\nlisten: %s\npeers:\n  - {name: b, pin: %q}\ngroups:\n  - name: g\n    peers: [b]\n", s.c.dir, toC, s.b.pin()))
	s.b.configure(fmt.Sprintf("site: b\ndata: %s\nlisten: %s\npeers:\n  - {name: a, pin: %q}\n  - {name: c, address: %q, pin: %q}\ngroups:\n  - name: g\n    peers: [a, c]\n    relay: [c]\n",
		s.b.dir, toB, s.a.pin(), toC, s.c.pin()))
	s.a.configure(fmt.Sprintf("site: a\ndata: %s\npeers:\n  - {name: b, address: %q, pin: %q}\ngroups:\n  - name: g\n    role: primary\n    peers: [b]\n%s",
		s.a.dir, toB, s.b.pin(), volumesOf(s.a, []volume{{"disk", slots * stamp.Size}})))
	return s
}

// newest is the newest stamp of the newest point at a site.
func (s *cascade) newest(d *daemon) uint64 {
	s.t.Helper()
	images, _, err := d.view("latest", "disk")
	if err != nil {
		s.t.Fatal(err)
	}
	r, err := stamp.Scan(bytes.NewReader(images["disk"]), 0, slots)
	if err != nil || !r.Whole(r.Max) {
		s.t.Fatalf("the newest point at %s is not whole: %s, %v", d.name, r, err)
	}
	return r.Max
}

// lag is what a site shows of a peer.
func (s *cascade) lag(d *daemon, peer string) (l control.Lag) {
	s.t.Helper()
	for _, x := range d.group().Lags {
		if x.Peer == peer {
			l = x
		}
	}
	return l
}

// truthful holds what is shown of c, at c itself and at the site between, and what is
// shown of that one, to what each lacks of what the source has answered.
func (s *cascade) truthful(when string) {
	s.t.Helper()
	type shown struct {
		where string
		rpo   *float64
	}
	asked := time.Now()
	for d, all := range map[*daemon][]shown{
		s.c: {{"c", s.c.group().RPOSeconds}, {"b", s.between(func() *float64 { return s.lag(s.b, "c").RPOSeconds })}},
		s.b: {{"b", s.between(func() *float64 { return s.b.group().RPOSeconds })}, {"a", s.lag(s.a, "b").RPOSeconds}},
	} {
		if !d.running() {
			continue
		}
		loss := s.load.loss(asked, s.newest(d)) // read after, so never more than it was
		for _, x := range all {
			if x.rpo != nil && *x.rpo < loss.Seconds()-0.001 {
				s.t.Errorf("%s: %s shows an RPO of %.3f s for %s, the loss would be %v", when, x.where, *x.rpo, d.name, loss)
			}
		}
	}
}

// between asks the site between, if it is there.
func (s *cascade) between(ask func() *float64) *float64 {
	if !s.b.running() {
		return nil
	}
	return ask()
}

// grows waits until c shows an RPO of two seconds, and looks at everybody's on the way.
func (s *cascade) grows(when string) {
	s.t.Helper()
	s.c.until(when+": the RPO grows", func(ctx context.Context) bool {
		s.truthful(when)
		g, err := s.c.api.Group(ctx, "g")
		return err == nil && g.RPOSeconds != nil && *g.RPOSeconds > 2
	})
}

// recovers waits until c shows a small RPO again, under load.
func (s *cascade) recovers(after string) {
	s.t.Helper()
	s.c.until("the RPO is small after "+after, func(ctx context.Context) bool {
		s.truthful(after)
		g, err := s.c.api.Group(ctx, "g")
		return err == nil && g.RPOSeconds != nil && *g.RPOSeconds < 2*calm().Seconds()
	})
}

// Promises 9 and 10: of three sites in a row the last one's RPO counts from what the
// first one answered, whichever of the ways between is cut, and whoever is killed; and
// it has, byte for byte, what the first one has.
func TestPromise9ACascadeTellsTheTruth(t *testing.T) {
	rng, seed := seeded(t)
	s := newCascade(t, seed, rng)
	s.c.start()
	s.b.start()
	s.a.startSynced()
	s.c.until("it has a point", func(context.Context) bool {
		_, _, err := s.c.view("latest", "disk")
		return err == nil
	})
	s.b.until("it has a point", func(context.Context) bool {
		_, _, err := s.b.view("latest", "disk")
		return err == nil
	})
	s.base = s.a.group().Seq
	s.load = &stamps{writer: rng.Uint64(), to: through(s.a.connect("disk"))}
	s.load.begin(context.Background())
	s.recovers("the start")

	s.ab.Cut() // what lies between is up, level and in touch with c: c's RPO grows all the same
	s.grows("the first way is cut")
	s.ab.Heal()
	s.recovers("the first way's return")
	s.bc.Cut()
	s.grows("the second way is cut")
	s.bc.Heal()
	s.recovers("the second way's return")
	s.b.kill()
	s.grows("the site between is dead")
	s.b.start()
	s.recovers("its return")

	if err := s.load.end(); err != nil {
		t.Fatal(err)
	}
	s.same()
}

// same holds the last site to the first: everything is there, and points are what was
// written at them.
func (s *cascade) same() {
	s.t.Helper()
	seq, last := s.a.group().Seq, s.load.last()
	if seq != s.base+last {
		s.t.Fatalf("%d stamps after #%d, and the source is at #%d", last, s.base, seq)
	}
	s.c.until("all has arrived", func(ctx context.Context) bool {
		g, err := s.c.api.Group(ctx, "g")
		return err == nil && g.Durable >= seq
	})
	ga, gc := s.a.group(), s.c.group()
	if ga.Seq != gc.Seq || ga.EpochID != gc.EpochID || ga.Chain != gc.Chain || len(ga.Chain) != 64 || fmt.Sprint(ga.Lineage) != fmt.Sprint(gc.Lineage) {
		s.t.Errorf("the source is at #%d, chain %s, the last site at #%d, chain %s", ga.Seq, ga.Chain, gc.Seq, gc.Chain)
	}
	n := scale.Scale(20)
	for range n {
		k := 1 + s.rng.Uint64N(last)
		at := fmt.Sprintf("#%d.%d", ga.Epoch, s.base+k)
		here, _, err := s.a.view(at, "disk")
		if err != nil {
			s.t.Fatal(err)
		}
		there, _, err := s.c.view(at, "disk")
		if err != nil {
			s.t.Fatal(err)
		}
		if i := firstDifference(here["disk"], there["disk"]); i >= 0 {
			s.t.Errorf("%s differs between the first and the last site at byte %d", at, i)
		}
		if r, err := stamp.Scan(bytes.NewReader(there["disk"]), 0, slots); err != nil || r.Max != k || !r.Whole(k) {
			s.t.Errorf("%s at the last site, want all up to stamp %d: %s, %v", at, k, r, err)
		}
	}
	scale.Counted(s.t, "cascade-points", n, 20)
	s.t.Logf("%d stamps, %d points", last, n)
}
