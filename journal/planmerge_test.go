package journal

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/testbed/scale"
)

// A volume that is rewritten ten times over, a point of each version kept until all
// but the middle are given up, is written less than once more by folding: the
// versions once, the base at the end.
func TestFoldingWritesLittle(t *testing.T) {
	t.Parallel()
	const versions = 10
	size := int64(8 << 20)
	if scale.Race {
		size = 2 << 20
	}
	r := Retention{Ladder: []Rung{{Every: 24 * time.Hour}}}
	f := newFoldingOf(t, vfs.NewMem(), r, faults{}, size, 64<<10)
	defer func() { f.j.close() }()
	rng := rand.New(rand.NewPCG(5, 5))
	data := make([]byte, 128<<10)
	for i := range data {
		data[i] = byte(rng.Uint32())
	}
	var payload int64
	write := func(off, n int64) {
		at := rng.Int64N((int64(len(data))-n)/512+1) * 512
		put(t, f.w, f.vols[0], off, data[at:at+n])
		payload += n
	}
	var written Maintained
	maintain := func() {
		t.Helper()
		if err := f.w.WaitDurable(soon(t)); err != nil {
			t.Fatal(err)
		}
		if err := f.j.waitFor(soon(t), func() bool { return f.j.indexed >= f.j.written }); err != nil {
			t.Fatal(err)
		}
		got, err := f.j.Maintain(soon(t), Maintenance{Retention: r, FoldBytes: size / 2, Now: f.clock.Now().Add(48 * time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
		written.Folded, written.Merged, written.Written = written.Folded+got.Folded, written.Merged+got.Merged, written.Written+got.Written
		written.Usage = got.Usage
		t.Logf("%.2f of the volume written to it, %.2f folded, %.2f merged, %.2f written, %d runs with %.2f", shareOf(payload, size), shareOf(got.Folded, size), shareOf(got.Merged, size), shareOf(got.Written, size), got.Runs, shareOf(got.RunBytes, size))
	}
	for off := int64(0); off < size; off += 128 << 10 {
		write(off, 128<<10)
	}
	var middle Position
	for v := 1; v <= versions; v++ {
		for payload < size+int64(v)*(versions-1)*size/versions {
			n := int64(512) << rng.IntN(9)
			unit := min(n, 4096)
			write(rng.Int64N((size-n)/unit+1)*unit, n)
		}
		at := Position{f.w.epoch.ID, put(t, f.w, f.vols[1], 0, data[:cbt.SectorBytes])}
		if v == versions/2 {
			middle = at
		}
		if _, err := f.j.Pin(soon(t), at.String(), Point{Position: at}, false); err != nil {
			t.Fatal(err)
		}
		maintain()
	}
	pins, err := f.j.Pins()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pins {
		if p.At != middle {
			if err := f.j.Unpin(p.Name); err != nil {
				t.Fatal(err)
			}
		}
	}
	maintain()
	if w := shareOf(written.Written, payload); w > 0.9 || written.Folded < 8*size || written.Runs > 3 {
		t.Errorf("%.2f of what came was written, %.2f folded, %d runs are left", w, shareOf(written.Folded, payload), written.Runs)
	}
	if used := shareOf(written.Used, size); used > 4 {
		t.Errorf("two images take %.2f of one", used)
	}
}

func shareOf(a, b int64) float64 { return float64(a) / float64(b) }

// Runs are merged where that frees half of them, where there are too many, and under
// pressure; else they are left alone.
func TestPlanMerge(t *testing.T) {
	same := func(n int, bytes, garbage int64) (out []manifest) {
		for range n {
			out = append(out, manifest{Bytes: bytes, Garbage: garbage})
		}
		return out
	}
	each := func(n, points int) (out []int) {
		for range n {
			out = append(out, points)
		}
		return out
	}
	for _, c := range []struct {
		name     string
		runs     []manifest
		points   []int
		pressed  bool
		from, to int
		ok       bool
	}{
		{"none", nil, nil, false, 0, 0, false},
		{"one alone", same(1, 100, 0), each(1, 0), true, 0, 0, false},
		{"one of which half is garbage", append(same(2, 100, 0), same(1, 100, 50)...), each(3, 1), false, 2, 2, true},
		{"a point of each is kept", same(20, 100, 0), each(20, 1), false, 0, 0, false},
		{"three of which nothing is kept", same(3, 100, 0), each(3, 0), false, 0, 0, false},
		{"many of which nothing is kept", same(10, 100, 0), each(10, 0), false, 0, 9, true},
		{"a base, little behind it", append(same(1, 1000, 0), same(3, 100, 0)...), each(4, 0), false, 0, 0, false},
		{"two under pressure", same(2, 100, 0), each(2, 0), true, 0, 1, true},
		{"too many", append(same(20, 1000, 0), same(29, 100, 0)...), each(49, 1), false, 20, 35, true},
	} {
		from, to, ok := planMerge(c.runs, c.points, c.pressed)
		if from != c.from || to != c.to || ok != c.ok {
			t.Errorf("%s: %d to %d, %v; want %d to %d, %v", c.name, from, to, ok, c.from, c.to, c.ok)
		}
	}
}
