package journal

import (
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/testbed/scale"
)

// Where nothing was folded, what is listed is what the records between two points
// wrote, over forks and back: no sector that differs is missing, and none is named that
// no record touched.
func TestDiffIsExactWhereNothingWasFolded(t *testing.T) {
	t.Parallel()
	rng := newSeed(t)
	const size = 128 << 10
	v := volume("v", size)
	r := start(t, "j", Options{FS: vfs.NewMem(), Create: newIdentity(), SegmentBytes: 256 << 10})
	defer r.close()
	w := beginWith(t, r.Journal, v)
	type event struct {
		at     Position
		extent cbt.Extent
	}
	var events []event // of all branches
	pairs := 0
	want := scale.Scale(1000)
	for pairs < want {
		if len(events) > 3 && rng.IntN(12) == 0 { // back to somewhere, and on from there
			var err error
			if w, err = r.BeginEpoch(soon(t), "here", events[rng.IntN(len(events))].at, 0); err != nil {
				t.Fatal(err)
			}
			mustRecord(t, w, syncedOf(v))
		}
		for range 1 + rng.IntN(8) {
			off := rng.Int64N(size/512) * 512
			e := cbt.Extent{Offset: off, Length: min(size-off, 512*(1+rng.Int64N(200)))}
			ev := cbt.Event{Kind: cbt.EventWrite, Volume: v.ID, Extent: e, Data: noise(rng, int(e.Length))}
			if rng.IntN(5) == 0 {
				ev.Kind, ev.Data = cbt.EventTrim, nil
			}
			events = append(events, event{Position{w.Epoch().ID, mustRecord(t, w, ev)}, e})
		}
		for range 10 {
			p, q := events[rng.IntN(len(events))].at, events[rng.IntN(len(events))].at
			if err := func() error {
				got, err := r.Diff(soon(t), p, q)
				if err != nil {
					return err
				}
				whole, err := r.Unthinned(p, q)
				if err != nil || !whole {
					return fmt.Errorf("nothing was folded, and it is not whole: %v", err)
				}
				lp, err := r.lineageAt(p)
				if err != nil {
					return err
				}
				lq, err := r.lineageAt(q)
				if err != nil {
					return err
				}
				common := lastCommon(lp, lq).Seq
				var touched []cbt.Extent
				for _, x := range events {
					if (lp.Holds(x.at) || lq.Holds(x.at)) && x.at.Seq > common {
						touched = append(touched, x.extent)
					}
				}
				touched = cbt.Union(touched)
				for _, e := range got[v.ID] {
					if more := cbt.Subtract(e, touched); len(more) > 0 {
						return fmt.Errorf("nothing touched %v of %v", more, e)
					}
				}
				a, err := readAs(t, r.Journal, p, v)
				if err != nil {
					return err
				}
				b, err := readAs(t, r.Journal, q, v)
				if err != nil {
					return err
				}
				return listsAll(got[v.ID], a, b)
			}(); err != nil {
				t.Fatalf("from %s to %s: %v", p, q, err)
			}
			pairs++
		}
	}
	scale.Counted(t, "diff-exact-pairs", pairs, 1000)
}
