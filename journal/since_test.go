package journal

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/novacron/afterimage/cbt"
)

// Since counts what an independent log says, over segments, epochs and forks.
func TestSinceMatchesOracle(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	ctx := context.Background()
	va, vb := volume("a", 2<<20), volume("b", 1<<20)
	model := &oracle{sizes: map[cbt.VolumeID]int64{va.ID: va.Size, vb.ID: vb.Size}}
	j := start(t, "j", Options{FS: vfs.NewMem(), Create: newIdentity(), SegmentBytes: 1 << 20})
	defer j.close()
	load := func(w *Writer, n int) (last Position) {
		for range n {
			v := va.ID
			if rng.IntN(3) == 0 {
				v = vb.ID
			}
			last = Position{w.Epoch().ID, model.write(t, w, rng, v)}
		}
		return last
	}
	check := func(p Position, log []oracleWrite, records uint64) {
		t.Helper()
		got, err := j.Since(ctx, p)
		if err != nil {
			t.Fatal(err)
		}
		want := map[cbt.VolumeID]Change{}
		for _, o := range log {
			c := want[o.vol]
			c.Volume = o.vol
			c.Writes++
			c.Bytes += o.n
			want[o.vol] = c
		}
		if len(got.Volumes) != len(want) || got.Records != records {
			t.Fatalf("since %s: %+v, want %d records, %v", p, got, records, want)
		}
		for _, c := range got.Volumes {
			if c != want[c.Volume] {
				t.Fatalf("since %s: %+v, want %+v", p, c, want[c.Volume])
			}
		}
	}
	w := beginWith(t, j.Journal, va, vb)
	p := load(w, 150)
	before := len(model.log)
	head := load(w, 170)
	check(p, model.log[before:], uint64(head.Seq-p.Seq))
	check(head, nil, 0)
	// A fork at p: what it leaves behind does not count, what it adds does; and from
	// the branch left behind all that the new one has beyond p counts.
	forked, err := j.BeginEpoch(ctx, "b", p, 0)
	if err != nil {
		t.Fatal(err)
	}
	before = len(model.log)
	newHead := load(forked, 20)
	check(p, model.log[before:], uint64(newHead.Seq-p.Seq))
	check(head, model.log[before:], uint64(newHead.Seq-p.Seq))
	if _, err := j.Since(ctx, Position{EpochID(cbt.NewID()), 3}); err == nil {
		t.Error("an unknown position is counted from")
	}
}
