package journal

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal/journaltest"
	"github.com/novacron/afterimage/testbed/scale"
)

// Whatever was folded and thinned, forked and resized, what differs between two
// records, and what was changed on the way from one to the other, is listed: with
// points that are kept, points that are gone, and recent ones.
func TestDiffLeavesNothingOut(t *testing.T) {
	t.Parallel()
	rng := newSeed(t)
	n := scale.Scale(400)
	kinds := map[string]int{}
	for range n {
		if err := diffHistory(t, rng, faults{}, kinds); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d histories, %v", n, kinds)
	for _, k := range []string{"kept", "gone", "recent", "forked"} {
		if kinds[k] == 0 {
			t.Errorf("no point was %s: %v", k, kinds)
		}
	}
}

// diffListsAll is a few histories of TestDiffLeavesNothingOut, always the same.
func diffListsAll(t *testing.T, plant faults) error {
	rng := rand.New(rand.NewPCG(3, 1))
	for range 6 {
		if err := diffHistory(t, rng, plant, map[string]int{}); err != nil {
			return err
		}
	}
	return nil
}

// On a branch that was left, and of which nothing is kept behind a record, there is
// no telling what led to it.
func TestDiffRefusesWhatIsGone(t *testing.T) {
	f := newFoldingOf(t, vfs.NewMem(), Retention{Ladder: []Rung{{0, time.Minute}, {time.Hour, 2 * time.Hour}}}, faults{}, 512<<10, 64<<10)
	defer func() { f.j.close() }()
	fork := f.put(0, 1, 8192)
	abandoned := f.put(0, 2, 8192)
	if err := f.settle(); err != nil {
		t.Fatal(err)
	}
	w, err := f.j.BeginEpoch(soon(t), "b", fork, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.w = w
	mustRecord(t, w, syncedOf(f.vols[0]))
	mustRecord(t, w, syncedOf(f.vols[1]))
	trunk := f.put(4096, 3, 4096)
	f.clock.step(3 * time.Hour)
	if err := f.age(); err != nil {
		t.Fatal(err)
	}
	if _, folded, kept := f.j.keptPoint(abandoned); !folded || kept {
		t.Fatalf("%s is folded: %v, kept: %v", abandoned, folded, kept)
	}
	var e *ReclaimedError
	if d, err := f.j.Diff(soon(t), abandoned, trunk); !errors.As(err, &e) || e.At != abandoned {
		t.Errorf("what is gone differs in %v, %v", d, err)
	}
	d, err := f.j.Diff(soon(t), fork, trunk)
	if err := errors.Join(err, listsAll(d[f.vols[0].ID], make([]byte, 8192), append(make([]byte, 4096), bytes.Repeat([]byte{3}, 4096)...))); err != nil {
		t.Error(err)
	}
}

// diffHistory makes a history and compares pairs of its records with the model.
func diffHistory(t *testing.T, rng *rand.Rand, plant faults, kinds map[string]int) (err error) {
	shape := journaltest.Shape{Sizes: []int64{256<<10 + 512, 64 << 10}, MaxWrite: 64 << 10, Ladders: len(ladders)}
	d, err := newDriver(t, Options{FS: vfs.NewMem(), Create: newIdentity(), SegmentBytes: 48 << 10, faults: plant}, shape.Sizes)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.end()) }()
	author := journaltest.NewAuthor(rng, shape)
	images := make(journaltest.Images)
	for range 3 {
		if err := d.run(rng, author.Script(40+rng.IntN(60))); err != nil {
			return err
		}
		for range 12 {
			p, q := d.moments[rng.IntN(len(d.moments))], d.moments[rng.IntN(len(d.moments))]
			if err := d.checkDiff(p, q, kinds, images); err != nil {
				return fmt.Errorf("from %s to %s: %w", p.at, q.at, err)
			}
		}
	}
	return nil
}

// checkDiff compares one answer with the states on the way between two moments.
func (d *driver) checkDiff(p, q moment, kinds map[string]int, images journaltest.Images) error {
	for _, m := range []moment{p, q} {
		switch _, folded, kept := d.j.keptPoint(m.at); {
		case kept:
			kinds["kept"]++
		case folded:
			kinds["gone"]++
		default:
			kinds["recent"]++
		}
	}
	got, err := d.j.Diff(soon(d.t), p.at, q.at)
	if errors.Is(err, ErrReclaimed) {
		_, a, ak := d.j.keptPoint(p.at)
		_, b, bk := d.j.keptPoint(q.at)
		if (!a || ak) && (!b || bk) {
			return fmt.Errorf("both are there, and it refuses: %w", err)
		}
		kinds["refused"]++
		return nil
	}
	if err != nil {
		return err
	}
	lp, err := d.j.lineageAt(p.at)
	if err != nil {
		return err
	}
	lq, err := d.j.lineageAt(q.at)
	if err != nil {
		return err
	}
	common := lastCommon(lp, lq)
	if common != p.at && common != q.at {
		kinds["forked"]++
	}
	states := []*journaltest.State{p.state}
	for _, l := range []Lineage{lp, lq} {
		var way []*journaltest.State
		for _, m := range d.moments {
			if l.Holds(m.at) && m.at.Seq >= common.Seq {
				way = append(way, m.state)
			}
		}
		if len(states) == 1 {
			slices.Reverse(way)
		}
		states = append(states, way...)
	}
	states = append(states, q.state)
	for i, v := range d.vols {
		first, last := images.Of(p.state, i), images.Of(q.state, i)
		if err := listsAll(got[v.ID], first, last); err != nil {
			return fmt.Errorf("volume %d: %w", i, err)
		}
		was := first
		for k := 1; k < len(states); k++ {
			if states[k] == states[k-1] {
				continue
			}
			is := images.Of(states[k], i)
			n := min(len(is), len(was), max(len(first), len(last)))
			if err := listsAll(got[v.ID], was[:n], is[:n]); err != nil {
				return fmt.Errorf("volume %d, on the way: %w", i, err)
			}
			was = is
		}
	}
	return nil
}

// listsAll wants every sector in which a and b differ in es.
func listsAll(es []cbt.Extent, a, b []byte) error {
	for off := 0; off < max(len(a), len(b)); off += cbt.SectorBytes {
		end := off + cbt.SectorBytes
		if end <= min(len(a), len(b)) && bytes.Equal(a[off:end], b[off:end]) {
			continue
		}
		in := slices.ContainsFunc(es, func(e cbt.Extent) bool { return e.Offset <= int64(off) && int64(end) <= e.End() })
		if !in {
			return fmt.Errorf("the sector at %d changed and is not listed in %v", off, es)
		}
	}
	return nil
}
