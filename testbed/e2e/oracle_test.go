package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/nbd"
	"github.com/novacron/afterimage/testbed/scale"
)

// stretch is a part of the oracle's log that was written while nothing else made
// records: each of its writes is one record, from base+1 on.
type stretch struct {
	base     uint64 // the newest record before it
	epoch    uint64
	from, to int    // the writes of the log
	areas    []area // nil: one write at a time; else one at a time in each of these
}

// moment is a point that the oracle knows: after n writes of a stretch.
type moment struct {
	stretch
	n int
}

func (m moment) seq() uint64 { return m.base + uint64(m.n) }

// scribe is a recorder of a site's volumes.
type scribe struct {
	*recorder
	t       *testing.T
	volumes []volume
	done    []stretch
}

func newScribe(t *testing.T, vs []volume) *scribe {
	s := &scribe{recorder: &recorder{}, t: t, volumes: vs}
	for _, v := range vs {
		s.sizes = append(s.sizes, v.size)
	}
	return s
}

// through is a connection as the oracle sees it. A write that was begun is waited for.
func through(c *nbd.Client) target {
	ctx := context.Background()
	return target{
		write: func(p []byte, off int64) error { return c.WriteAt(ctx, p, off, false) },
		clear: func(off, n int64) error { return c.Zero(ctx, cbt.Extent{Offset: off, Length: n}, false, false) },
	}
}

// trimming clears by trims as well: what an embedded volume has trimmed reads as
// zeros. QEMU promises nothing of the kind.
func trimming(c *nbd.Client) target {
	to := through(c)
	zero := to.clear
	to.clear = func(off, n int64) error {
		if off/512%2 == 0 {
			return c.Trim(context.Background(), cbt.Extent{Offset: off, Length: n}, false)
		}
		return zero(off, n)
	}
	return to
}

// whole is each volume as one area.
func (s *scribe) whole() []area {
	var out []area
	for i, v := range s.volumes {
		out = append(out, area{i, 0, v.size})
	}
	return out
}

// split is each volume in n areas.
func (s *scribe) split(n int64) []area {
	var out []area
	for i, v := range s.volumes {
		for k := range n {
			out = append(out, area{i, k * (v.size / n), v.size / n})
		}
	}
	return out
}

// stretchOf runs f as a stretch at d, and holds d to the number of records.
func (s *scribe) stretchOf(d *daemon, areas []area, f func() error) {
	s.t.Helper()
	before := d.group()
	x := stretch{base: before.Seq, epoch: before.Epoch, from: len(s.log), areas: areas}
	if err := f(); err != nil {
		s.t.Fatal(err)
	}
	x.to = len(s.log)
	if after := d.group(); after.Seq != x.base+uint64(x.to-x.from) {
		s.t.Fatalf("%d answered writes made records #%d to #%d", x.to-x.from, x.base+1, after.Seq)
	}
	s.done = append(s.done, x)
}

// oneByOne writes n times, anywhere, one write after the other.
func (s *scribe) oneByOne(d *daemon, rng *rand.Rand, n int) {
	s.t.Helper()
	var ts []target
	for _, v := range s.volumes {
		ts = append(ts, trimming(d.connect(v.name)))
	}
	areas := s.whole()
	s.stretchOf(d, nil, func() error {
		for range n {
			a := areas[rng.IntN(len(areas))]
			if err := s.issue(ts[a.volume], draw(rng, a)); err != nil {
				return err
			}
		}
		return nil
	})
}

// sideBySide writes n times in each of several areas of every volume at once.
func (s *scribe) sideBySide(d *daemon, rng *rand.Rand, n int) {
	s.t.Helper()
	areas := s.split(3)
	s.stretchOf(d, areas, func() error {
		var g errgroup.Group
		for _, a := range areas {
			to, own := trimming(d.connect(s.volumes[a.volume].name)), rand.New(rand.NewPCG(rng.Uint64(), 0))
			g.Go(func() error {
				for range n {
					if err := s.issue(to, draw(own, a)); err != nil {
						return err
					}
				}
				return nil
			})
		}
		return g.Wait()
	})
}

// moments draws n different moments.
func (s *scribe) moments(rng *rand.Rand, n int) []moment {
	var all []moment
	for _, x := range s.done {
		for k := range x.to - x.from + 1 {
			all = append(all, moment{x, k})
		}
	}
	rng.Shuffle(len(all), func(i, k int) { all[i], all[k] = all[k], all[i] })
	return all[:min(n, len(all))]
}

// judge compares the volumes at a moment with the oracle's.
func (s *scribe) judge(m moment, got map[string][]byte) error {
	if len(got) != len(s.volumes) {
		return fmt.Errorf("%d volumes, want %d", len(got), len(s.volumes))
	}
	for _, v := range s.volumes {
		if int64(len(got[v.name])) != v.size {
			return fmt.Errorf("volume %s has %d bytes, want %d", v.name, len(got[v.name]), v.size)
		}
	}
	if m.areas != nil {
		return s.judgeCut(m, got)
	}
	for i, want := range s.replay(s.log[:m.from+m.n]) {
		if at := firstDifference(want, got[s.volumes[i].name]); at >= 0 {
			return fmt.Errorf("volume %s differs from the replay of %d writes at byte %d", s.volumes[i].name, m.from+m.n, at)
		}
	}
	return nil
}

// judgeCut judges a moment of a stretch with several writes under way: each area
// holds its writes up to some number, the numbers add up to the moment's, and no
// write is missing that was answered before one that is there began.
func (s *scribe) judgeCut(m moment, got map[string][]byte) error {
	base := s.replay(s.log[:m.from])
	low, high := 0, 0
	var least, most [][]*note // by area: what is surely there, what may be there
	for _, a := range m.areas {
		writes := of(s.log[m.from:m.to], a)
		seen := prefixes(base, writes, 0, a, got[s.volumes[a.volume].name][a.off:a.off+a.length])
		if len(seen) == 0 {
			return fmt.Errorf("bytes %d+%d of volume %s are after no number of its writes", a.off, a.length, s.volumes[a.volume].name)
		}
		low, high = low+seen[0], high+seen[len(seen)-1]
		least, most = append(least, writes[:seen[0]]), append(most, writes[:seen[len(seen)-1]])
	}
	if m.n < low || m.n > high {
		return fmt.Errorf("it holds %d to %d of the stretch's writes, want %d", low, high, m.n)
	}
	for _, there := range least {
		if len(there) == 0 {
			continue
		}
		last := there[len(there)-1]
		for k, a := range m.areas {
			for _, w := range of(s.log[m.from:m.to], a)[len(most[k]):] {
				if w.ended != 0 && w.ended < last.began {
					return fmt.Errorf("a write that began at tick %d is there, one that was answered at %d is not", last.began, w.ended)
				}
			}
		}
	}
	return nil
}

// verify restores moments at d and judges them; every other one by the command
// line into files, the rest through a view.
func (s *scribe) verify(d *daemon, where string, ms []moment) {
	s.t.Helper()
	for i, m := range ms {
		at := fmt.Sprintf("#%d.%d", m.epoch, m.seq())
		var got map[string][]byte
		var err error
		if i%2 == 0 {
			got, err = d.restore(at)
		} else {
			got, _, err = d.view(at)
		}
		if err == nil {
			err = s.judge(m, got)
		}
		if err != nil {
			s.t.Fatalf("%s: point %s: %v", where, at, err)
		}
	}
}

// Promise 4: every point restores byte-identical to an independent model of what
// was written: at the source before and after a restart, and at the replica.
func TestPromise4PointsAreWhatWasWritten(t *testing.T) {
	rng, seed := seeded(t)
	vs := []volume{{"root", 1536 << 10}, {"data", 3 << 20}}
	p := newPair(t, vs, seed)
	p.b.start()
	p.a.startSynced()
	s := newScribe(t, vs)
	n := scale.Scale(200)
	s.oneByOne(p.a, rng, max(n*2, 40))
	s.sideBySide(p.a, rng, max(n/2, 10))
	s.oneByOne(p.a, rng, max(n, 40))
	before := s.moments(rng, n-n/4)
	s.verify(p.a, "before the restart", before)
	p.a.stop()
	p.a.startSynced()
	s.oneByOne(p.a, rng, max(n, 40))
	known := map[string]bool{}
	for _, m := range before {
		known[fmt.Sprint(m.epoch, m.seq())] = true
	}
	after := s.moments(rng, n-len(before))
	for _, m := range after {
		known[fmt.Sprint(m.epoch, m.seq())] = true
	}
	for len(known) < n { // some were drawn a second time
		m := s.moments(rng, 1)[0]
		if key := fmt.Sprint(m.epoch, m.seq()); !known[key] {
			known[key], after = true, append(after, m)
		}
	}
	s.verify(p.a, "after the restart, of its own life and the one before", after)
	s.verify(p.a, "after the restart", before[:len(before)/3])
	p.awaitArrival()
	s.verify(p.b, "at the replica", s.moments(rng, max(n/4, 4)))
	p.b.stop()
	p.b.start()
	s.verify(p.b, "at the replica after a restart", s.moments(rng, max(n/20, 2)))
	scale.Counted(t, "oracle-points", len(known), 200)
}
