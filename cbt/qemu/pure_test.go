package qemu

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/mode"
)

func TestJudgeTrustsOnlyWhatItKnows(t *testing.T) {
	v := cbt.VolumeID(cbt.NewID())
	a, b, stray := freshName(v, "b"), freshName(v, "b"), freshName(v, "t")
	mem := mode.Remembered{Node: "disk", Size: 1 << 20, Granularity: 65536, Bitmaps: []string{a, b}}
	sound := func(name string) bitmapInfo {
		return bitmapInfo{Name: name, Recording: true, Granularity: 65536}
	}
	type change func(*mode.Remembered, *bool, *nodeInfo)
	for name, tc := range map[string]struct {
		change change
		why    string // part of the reason; empty: trusted
		busy   bool
		remove int
	}{
		"sound":              {nil, "", false, 0},
		"with a stray one":   {func(_ *mode.Remembered, _ *bool, n *nodeInfo) { n.Bitmaps = append(n.Bitmaps, sound(stray)) }, "", false, 1},
		"with a foreign one": {func(_ *mode.Remembered, _ *bool, n *nodeInfo) { n.Bitmaps = append(n.Bitmaps, sound("theirs")) }, "", false, 0},
		"nothing known":      {func(_ *mode.Remembered, known *bool, _ *nodeInfo) { *known = false }, "remembered", false, 2},
		"nothing listed":     {func(m *mode.Remembered, _ *bool, _ *nodeInfo) { m.Bitmaps = nil }, "remembered", false, 2},
		"one is gone":        {func(_ *mode.Remembered, _ *bool, n *nodeInfo) { n.Bitmaps = n.Bitmaps[:1] }, "gone", false, 1},
		"another nonce":      {func(m *mode.Remembered, _ *bool, _ *nodeInfo) { m.Bitmaps = []string{a, freshName(v, "b")} }, "gone", false, 2},
		"inconsistent":       {func(_ *mode.Remembered, _ *bool, n *nodeInfo) { n.Bitmaps[1].Inconsistent = true }, "inconsistent", false, 2},
		"not recording":      {func(_ *mode.Remembered, _ *bool, n *nodeInfo) { n.Bitmaps[0].Recording = false }, "recording", false, 2},
		"busy":               {func(_ *mode.Remembered, _ *bool, n *nodeInfo) { n.Bitmaps[0].Busy = true }, "busy", true, 0},
		"coarser":            {func(_ *mode.Remembered, _ *bool, n *nodeInfo) { n.Bitmaps[0].Granularity = 1 << 20 }, "granularity", false, 2},
		"another node":       {func(m *mode.Remembered, _ *bool, _ *nodeInfo) { m.Node = "other" }, "node", false, 2},
		"another size":       {func(_ *mode.Remembered, _ *bool, n *nodeInfo) { n.Image.VirtualSize = 2 << 20 }, "bytes", false, 2},
		"snapshots": {func(_ *mode.Remembered, _ *bool, n *nodeInfo) {
			n.Image.Snapshots = append(n.Image.Snapshots, struct {
				ID string `json:"id"`
			}{"1"})
		}, "snapshots", false, 2},
	} {
		t.Run(name, func(t *testing.T) {
			m, known := mem, true
			n := nodeInfo{Name: "disk", Bitmaps: []bitmapInfo{sound(a), sound(b)}}
			n.Image.VirtualSize = 1 << 20
			if tc.change != nil {
				tc.change(&m, &known, &n)
			}
			got := judge(v, m, known, n)
			if got.Trusted != (tc.why == "") || got.Busy != tc.busy || !strings.Contains(got.Why, tc.why) || len(got.Remove) != tc.remove {
				t.Errorf("got %+v", got)
			}
			if got.Trusted && !slices.Equal(got.Keep, m.Bitmaps) {
				t.Errorf("keeps %v", got.Keep)
			}
			if slices.Contains(got.Remove, "theirs") {
				t.Error("removes what is not ours")
			}
		})
	}
}

func TestPiecesCoverEachByteOnce(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 300 {
		size := (1 + rng.Int64N(1<<19)) * 512
		var ss []stretch
		for at := int64(0); at < size+1<<20; {
			n := 512 * (1 + rng.Int64N(1<<17))
			if rng.IntN(2) == 0 {
				ss = append(ss, stretch{cbt.Extent{Offset: at, Length: n}, rng.IntN(2) == 0})
			}
			at += n
		}
		var want, got []cbt.Extent
		for _, s := range ss {
			if e := overlap(cbt.Extent{Length: size}, []cbt.Extent{s.Extent}); len(e) > 0 {
				want = append(want, e...)
			}
		}
		var sum int64
		for _, p := range pieces(ss, size) {
			if p.Length <= 0 || (!p.hole && p.Length > fillBytes) || p.Length > holeBytes {
				t.Fatalf("seed %d: piece %+v", seed, p)
			}
			got, sum = append(got, p.Extent), sum+p.Length
		}
		var due int64
		for _, e := range want {
			due += e.Length
		}
		if !slices.Equal(cbt.Union(got), cbt.Union(want)) || sum != due {
			t.Fatalf("seed %d: %d of %d bytes", seed, sum, due)
		}
	}
}

func TestDifferingNamesCells(t *testing.T) {
	live := make([]byte, 5*4096+512)
	head := slices.Clone(live)
	if d := differing(0, live, head); d != nil {
		t.Errorf("equal: %v", d)
	}
	live[1], live[4096], live[3*4096+100], live[5*4096] = 1, 1, 1, 1
	want := []cbt.Extent{{Offset: 0, Length: 8192}, {Offset: 3 * 4096, Length: 4096}, {Offset: 5 * 4096, Length: 512}}
	if d := differing(0, live, head); !slices.Equal(d, want) {
		t.Errorf("got %v", d)
	}
	// A piece that begins inside a cell ends its first one at the cell's end.
	want = []cbt.Extent{{Offset: 512, Length: 3584}}
	if d := differing(512, live[:4096], head[:4096]); !slices.Equal(d, want) {
		t.Errorf("got %v", d)
	}
}

// Zero and write requests of every alignment around a few sectors must change
// just their bytes.
func TestEdgesChangeOnlyTheRequest(t *testing.T) {
	const size = 4 * cbt.SectorBytes
	before := make([]byte, size)
	for i := range before {
		before[i] = byte(i%251) | 1
	}
	cases := 0
	for off := int64(0); off < size; off += 127 {
		for end := off + 1; end <= size; end += 63 {
			e := cbt.Extent{Offset: off, Length: end - off}
			whole := e.Round()
			var g edges
			if e.Offset != whole.Offset {
				g.first = slices.Clone(before[whole.Offset:][:cbt.SectorBytes])
			}
			if e.End() != whole.End() {
				g.last = slices.Clone(before[whole.End()-cbt.SectorBytes:][:cbt.SectorBytes])
			}
			want := slices.Clone(before)
			clear(want[off:end])
			got := slices.Clone(before)
			for _, ev := range g.zeros(cbt.VolumeID{}, e, whole) {
				if !ev.Extent.Aligned() || ev.Extent.Length == 0 {
					t.Fatalf("%v: event %v", e, ev.Extent)
				}
				clear(got[ev.Extent.Offset:ev.Extent.End()])
				copy(got[ev.Extent.Offset:], ev.Data)
			}
			if !bytes.Equal(got, want) {
				t.Fatalf("zero %v changed byte %d", e, slices.IndexFunc(got, func(byte) bool { return true }))
			}
			data := make([]byte, whole.Length)
			g.put(whole, e, data)
			if !bytes.Equal(data, want[whole.Offset:whole.End()]) {
				t.Fatalf("write %v", e)
			}
			cases++
		}
	}
	t.Logf("%d requests", cases)
}

func TestSplitKeepsParts(t *testing.T) {
	ev := cbt.Event{Kind: cbt.EventWrite, Extent: cbt.Extent{Offset: 512, Length: cbt.MaxWriteBytes + 1024}, Data: make([]byte, cbt.MaxWriteBytes+1024)}
	parts := split(ev)
	if len(parts) != 2 || parts[0].Extent != (cbt.Extent{Offset: 512, Length: cbt.MaxWriteBytes}) || parts[1].Extent != (cbt.Extent{Offset: 512 + cbt.MaxWriteBytes, Length: 1024}) || len(parts[1].Data) != 1024 {
		t.Errorf("%d parts, %v, %v", len(parts), parts[0].Extent, parts[1].Extent)
	}
}

func TestSequencerOrdersWhatShares(t *testing.T) {
	ctx, end := context.WithCancel(t.Context())
	var q sequencer
	enter := func(off, n int64, alone bool) <-chan *span {
		c := make(chan *span, 1)
		began := len(q.spans)
		go func() {
			if s, err := q.enter(ctx, cbt.Extent{Offset: off, Length: n}, alone); err == nil {
				c <- s
			}
			close(c)
		}()
		for {
			q.mu.Lock()
			n := len(q.spans)
			q.mu.Unlock()
			if n > began {
				return c
			}
		}
	}
	first := <-enter(0, 1024, false)
	<-enter(4096, 512, true) // elsewhere: at once
	waits := enter(512, 512, true)
	behind := enter(512, 1024, false)
	q.place(first)
	select {
	case <-waits:
		t.Fatal("completed from a head that does not show the first")
	case <-behind:
		t.Fatal("overtook the one that waits")
	default:
	}
	q.leave(first)
	second := <-waits
	select {
	case <-behind:
		t.Fatal("took its place before the one in front")
	default:
	}
	q.place(second)
	q.leave(<-behind)
	held := <-enter(1<<20, 512, true)
	gaveUp := enter(1<<20, 512, true)
	end()
	if s := <-gaveUp; s != nil {
		t.Fatal("entered although its context had ended")
	}
	q.leave(held)
	q.leave(second)
}

func TestGateHoldsUntilEveryGapHasItsPlace(t *testing.T) {
	var g Gate
	if err := g.pass(t.Context()); err != nil {
		t.Fatal(err)
	}
	g.hold()
	g.hold()
	ended, cancel := context.WithCancelCause(t.Context())
	why := errors.New("let go")
	cancel(why)
	if err := g.pass(ended); !errors.Is(err, why) {
		t.Errorf("passed a shut gate: %v", err)
	}
	passed := make(chan error, 1)
	go func() { passed <- g.pass(t.Context()) }()
	g.release()
	select {
	case <-passed:
		t.Fatal("passed with a gap due")
	default:
	}
	g.release()
	if err := <-passed; err != nil {
		t.Error(err)
	}
	g.hold()
	g.refuse(why)
	if err := g.pass(t.Context()); !errors.Is(err, why) {
		t.Errorf("the sink's failure was not told: %v", err)
	}
	g.release()
	if err := g.pass(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	good := Options{QMP: "q", Dir: "/tmp", Sink: nopSink{}, Memory: nopMemory{}, Incarnation: cbt.Incarnation(cbt.NewID()),
		Disks: []Disk{{Volume: cbt.Volume{ID: cbt.VolumeID(cbt.NewID()), Size: 512}, Node: "n"}}}
	if _, err := New(good); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Options){
		"no monitor":    func(o *Options) { o.QMP = "" },
		"no disks":      func(o *Options) { o.Disks = nil },
		"no sink":       func(o *Options) { o.Sink = nil },
		"no memory":     func(o *Options) { o.Memory = nil },
		"no life":       func(o *Options) { o.Incarnation = cbt.Incarnation{} },
		"granularity":   func(o *Options) { o.Granularity = 1000 },
		"twice":         func(o *Options) { o.Disks = append(slices.Clone(o.Disks), o.Disks[0]) },
		"half a sector": func(o *Options) { d := o.Disks[0]; d.Volume.Size = 700; o.Disks = []Disk{d} },
		"long path":     func(o *Options) { o.Dir = "/" + strings.Repeat("x", 100) },
	} {
		o := good
		spoil(&o)
		if _, err := New(o); !errors.Is(err, ErrOptions) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

type nopSink struct{ cbt.Sink }
type nopMemory struct{ cbt.Memory }

// After a snapshot the node that was the disk is a backing file, and read-only: nobody is
// to write to its file.
func TestAReadOnlyNodeIsNotWhatTheGuestWritesTo(t *testing.T) {
	if err := (nodeInfo{Name: "disk"}).written(); err != nil {
		t.Errorf("one that is written to: %v", err)
	}
	if err := (nodeInfo{Name: "disk", ReadOnly: true}).written(); !errors.Is(err, ErrNode) {
		t.Errorf("a read-only one: %v", err)
	}
}
