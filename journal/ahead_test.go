package journal

import (
	"bytes"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// A stream gives every frame as it lies in its segment, small and large ones in turns, in
// one run and from any record on, also what became durable after it had read ahead.
func TestAStreamReadsAheadOfSmallFrames(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	j := start(t, "s", Options{FS: vfs.NewMem(), Create: newIdentity(), SegmentBytes: 1 << 20})
	defer j.close()
	v := volume("a", 4<<20)
	w := beginWith(t, j.Journal, v)
	s, err := j.Stream(soon(t), Position{})
	if err != nil {
		t.Fatal(err)
	}
	var got []shipped
	small := 0
	for range 60 {
		for n := rng.IntN(8); n >= 0; n-- {
			size := int64(512 << rng.IntN(6))
			if rng.IntN(4) == 0 {
				size = 256 << 10
			}
			put(t, w, v, rng.Int64N(v.Size-size)&^511, bytes.Repeat([]byte{byte(rng.Uint32() | 1)}, int(size)))
		}
		if err := w.WaitDurable(soon(t)); err != nil {
			t.Fatal(err)
		}
		for s.after != lastOf(j.Lineage()) {
			f, err := s.Next(soon(t))
			if err != nil {
				t.Fatal(err)
			}
			if _, limited := f.Reader.(*io.LimitedReader); !limited {
				small++
			}
			b, err := io.ReadAll(f.Reader)
			if err != nil || int64(len(b)) != f.Bytes {
				t.Fatalf("read frame: %d of %d bytes, %v", len(b), f.Bytes, err)
			}
			at, err := j.frameOf(soon(t), f.Last)
			if err != nil {
				t.Fatal(err)
			}
			want := make([]byte, f.Bytes)
			if err := j.segs.readAt(at.segment, want, at.offset); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(b, want) {
				t.Fatalf("frame to %s is not what lies in segment %d at %d", f.Last, at.segment, at.offset)
			}
			got = append(got, shipped{f.First, f.Last, b})
		}
	}
	if small == 0 {
		t.Fatal("no frame was read ahead")
	}
	for range 8 { // with the first frame small or large
		k := rng.IntN(len(got) - 1)
		rest := ship(t, j.Journal, got[k].last)
		if len(rest) != len(got)-k-1 {
			t.Fatalf("after frame %d of %d there are %d", k, len(got), len(rest))
		}
		for i, f := range rest {
			if want := got[k+1+i]; f.last != want.last || !bytes.Equal(f.bytes, want.bytes) {
				t.Fatalf("frame %d, from %d on, differs", k+1+i, k)
			}
		}
	}
}

// What is read ahead ends with what is durable: behind it a frame may be half written.
func TestAStreamReadsNothingThatIsNotDurable(t *testing.T) {
	j := start(t, "s", Options{FS: vfs.NewMem(), Create: newIdentity()})
	defer j.close()
	v := volume("a", 1<<20)
	w := beginWith(t, j.Journal, v)
	s, err := j.Stream(soon(t), Position{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		put(t, w, v, int64(i)*4096, bytes.Repeat([]byte{byte(i + 1)}, 4096))
		if err := w.WaitDurable(soon(t)); err != nil {
			t.Fatal(err)
		}
		for s.after != lastOf(j.Lineage()) {
			if _, err := s.Next(soon(t)); err != nil {
				t.Fatal(err)
			}
		}
		j.mu.Lock()
		d := j.durableLocked()
		j.mu.Unlock()
		if end := s.ahead.at.offset + int64(len(s.ahead.buf)); s.ahead.at.segment == d.Segment && end > d.Offset {
			t.Fatalf("read up to %d, durable up to %d", end, d.Offset)
		}
	}
	if s.ahead.buf == nil {
		t.Fatal("nothing was read ahead")
	}
}

// The index may lag behind what is durable of received frames. It never says that it goes
// further than it does: an opening would leave out what lies between.
func TestTheIndexSaysNoMoreThanItHolds(t *testing.T) {
	j := &Journal{chained: []frameEnd{{Bytes: 10}, {Bytes: 20}}}
	for at, want := range map[int64]int64{5: 5, 10: 10, 20: 10} {
		if got := j.durableUpTo(frameEnd{Bytes: at}).Bytes; got != want {
			t.Fatalf("indexed up to %d: durable up to %d, want %d", at, got, want)
		}
	}
}
