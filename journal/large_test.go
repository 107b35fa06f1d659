package journal

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/testbed/scale"
)

// stamped is a write of a sector that holds its number, or a huge zero.
type stamped struct {
	offset, length int64
	number         uint64 // 0 for a zero
}

const largeVolume = int64(1) << 40

// scatter records n writes and a few huge zeros all over a volume of 1 TiB, many to
// a frame.
func scatter(t *testing.T, w *Writer, v cbt.Volume, rng *rand.Rand, log []stamped, n int) []stamped {
	t.Helper()
	var last cbt.Pending
	for i := range n {
		s := stamped{offset: rng.Int64N(largeVolume/4096)*4096 + int64(i%8)*512, length: 512, number: uint64(len(log) + 1)}
		ev := cbt.Event{Kind: cbt.EventWrite, Volume: v.ID, Data: make([]byte, 512)}
		if i%500 == 499 {
			s.length, s.number = (1+rng.Int64N(largeVolume/4/512))*512, 0
			s.length = min(s.length, largeVolume-s.offset)
			ev = cbt.Event{Kind: cbt.EventZero, Volume: v.ID}
		} else {
			binary.LittleEndian.PutUint64(ev.Data, s.number)
		}
		ev.Extent = cbt.Extent{Offset: s.offset, Length: s.length}
		p, err := w.Record(soon(t), ev)
		if err != nil {
			t.Fatal(err)
		}
		last, log = p, append(log, s)
	}
	if err := last.Wait(soon(t)); err != nil {
		t.Fatal(err)
	}
	return log
}

func heapAfterGC() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// The index is that of a volume of 1 TiB: memory and what an opening reads again
// do not grow with the history, and reads find their sector under huge zeros.
func TestLargeVolume(t *testing.T) {
	rng := newSeed(t)
	n := max(scale.Scale(100000), 5000) // enough for several segments
	o := Options{Create: newIdentity(), SegmentBytes: 256 << 10}
	dir := t.TempDir()
	v := volume("a", largeVolume)
	var log []stamped
	var open [2]int64
	for half := range 2 {
		j := start(t, dir, o)
		w := beginWith(t, j.Journal, v)
		first := j.Head().Seq
		log = scatter(t, w, v, rng, log, n)
		if got := j.Head().Seq; got != first+Seq(n) {
			t.Fatalf("the head is %d, want %d", got, first+Seq(n))
		}
		if err := w.WaitDurable(soon(t)); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(j.waitFor(soon(t), func() bool { return j.indexed == j.written }), j.db.Flush()); err != nil {
			t.Fatal(err) // what a segment's end has begun is done a while later
		}
		log = scatter(t, w, v, rng, log, 64)
		head := j.Head().Position
		if err := w.WaitDurable(soon(t)); err != nil {
			t.Fatal(err)
		}
		written := j.Head().Bytes
		if written < 8*o.SegmentBytes {
			t.Fatalf("only %d bytes written", written)
		}
		_ = j.fail(errors.New("killed")) // no clean close
		if err := j.end(); !errors.Is(err, ErrFailed) {
			t.Fatal(err)
		}
		before := heapAfterGC()
		k, err := Open(dir, o)
		if err != nil {
			t.Fatal(err)
		}
		open[half] = heapAfterGC() - before
		t.Logf("%d records, %d bytes: opening read %d bytes again and took %d bytes of heap", len(log), written, k.reread, open[half])
		if k.reread > 4*o.SegmentBytes+2*targetFrame {
			t.Errorf("opening read %d of %d bytes again", k.reread, written)
		}
		checkScattered(t, k, head, v, rng, log)
		if err := k.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if grown := open[1] - open[0]; grown > 4<<20 {
		t.Errorf("with twice the records an open journal takes %d bytes more", grown)
	}
	scale.Counted(t, "journal-scattered-records", len(log), 200000)
}

func checkScattered(t *testing.T, j *Journal, at Position, v cbt.Volume, rng *rand.Rand, log []stamped) {
	t.Helper()
	view, err := j.View(soon(t), Point{Position: at})
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 512)
	seen := 0
	for i := range 200 {
		among := log
		if i%2 == 0 { // not much of what is older is left by the zeros that came later
			among = log[len(log)-500:]
		}
		off := among[rng.IntN(len(among))].offset &^ 511
		var want uint64
		for i := len(log) - 1; i >= 0; i-- {
			if s := log[i]; s.offset <= off && off < s.offset+s.length {
				want = s.number
				break
			}
		}
		if err := view.ReadAt(soon(t), v.ID, b, off); err != nil {
			t.Fatal(err)
		}
		if got := binary.LittleEndian.Uint64(b); got != want {
			t.Fatalf("at %d there is %d, want %d", off, got, want)
		}
		if want > 0 {
			seen++
		}
	}
	if seen == 0 {
		t.Fatal("all that was looked at is zero")
	}
}
