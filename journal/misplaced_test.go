package journal

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/novacron/afterimage/cbt"
)

// Promise 6: a frame that stands in the midst of another one's payload, whole but in
// the wrong place, hides nothing of that payload from a scrub: a point that does not
// read is called invalid.
func TestMisplacedFrameHidesNoDamage(t *testing.T) {
	mem := vfs.NewMem()
	v := volume("a", 64<<10)
	o := Options{FS: mem, Create: newIdentity()}
	j := start(t, "j", o)
	w := beginWith(t, j.Journal, v)
	zero := Position{w.epoch.ID, mustRecord(t, w, cbt.Event{Kind: cbt.EventZero, Volume: v.ID, Extent: cbt.Extent{Offset: 32 << 10, Length: 4096}})}
	must(t, w.WaitDurable(soon(t)))
	data := make([]byte, 12<<10) // nothing packs it
	for i, r := 0, rand.New(rand.NewPCG(1, 1)); i < len(data); i++ {
		data[i] = byte(r.Uint32())
	}
	written := Position{w.epoch.ID, put(t, w, v, 0, data)}
	must(t, w.WaitDurable(soon(t)))
	small, err := j.frameOf(soon(t), zero)
	must(t, err)
	large, err := j.frameOf(soon(t), written)
	must(t, err)
	path := j.segs.path(small.segment)
	j.close()
	if small.h.Bytes != pageBytes || large.h.Bytes < 2*pageBytes || large.segment != small.segment {
		t.Fatalf("frames of %d and %d bytes in segments %d and %d", small.h.Bytes, large.h.Bytes, small.segment, large.segment)
	}
	b := contentOf(t, mem, path)
	last := large.offset + large.h.Bytes - pageBytes
	one := bytes.Clone(b[small.offset : small.offset+pageBytes])
	copy(b[small.offset:small.offset+pageBytes], b[last:last+pageBytes])
	copy(b[last:last+pageBytes], one)
	replaceFile(t, mem, path, b)

	j = start(t, "j", o)
	found, err := j.Verify(soon(t), nil)
	must(t, err)
	if _, err := readAs(t, j.Journal, written, v); err == nil {
		t.Fatal("the point reads with a page of another frame in it")
	}
	l, err := j.lineageAt(written)
	must(t, err)
	if why, err := j.invalidAt(l); err != nil || why == "" {
		t.Fatalf("the point does not read and is not called invalid, %v: found were %v", err, found)
	}
}

// Promise 6: so does the first frame of an epoch that stands in the place of one of the
// epoch before: it goes on from no record, and hides none.
func TestMisplacedEpochHidesNoDamage(t *testing.T) {
	mem := vfs.NewMem()
	v := volume("a", 1<<20)
	o := Options{FS: mem, Create: newIdentity()}
	j := start(t, "j", o)
	w := beginWith(t, j.Journal, v)
	data := make([]byte, 512)
	for i := range data {
		data[i] = byte(i%7) + 1
	}
	written := Position{w.epoch.ID, put(t, w, v, 2048, data)} // in the page of its frame's header
	must(t, w.WaitDurable(soon(t)))
	old, err := j.frameOf(soon(t), written)
	must(t, err)
	put(t, w, v, 4096, data)
	must(t, w.WaitDurable(soon(t)))
	j.close()
	j = start(t, "j", o)
	w, err = j.BeginEpoch(soon(t), "a", written, 0)
	must(t, err)
	must(t, w.WaitDurable(soon(t)))
	opening, err := j.frameOf(soon(t), Position{w.epoch.ID, written.Seq + 1})
	must(t, err)
	put(t, w, v, 0, make([]byte, 1<<20)) // an opening looks at no more than the end
	must(t, w.WaitDurable(soon(t)))
	path := j.segs.path(old.segment)
	j.close()
	if old.h.Bytes != pageBytes || opening.h.Bytes != pageBytes || opening.segment != old.segment || opening.h.First != written.Seq+1 {
		t.Fatalf("frames of %d and %d bytes in segments %d and %d, the second from record %d on", old.h.Bytes, opening.h.Bytes, old.segment, opening.segment, opening.h.First)
	}
	b := contentOf(t, mem, path)
	one := bytes.Clone(b[old.offset : old.offset+pageBytes])
	copy(b[old.offset:old.offset+pageBytes], b[opening.offset:opening.offset+pageBytes])
	copy(b[opening.offset:opening.offset+pageBytes], one)
	replaceFile(t, mem, path, b)

	j = start(t, "j", o)
	found, err := j.Verify(soon(t), nil)
	must(t, err)
	if _, err := readAs(t, j.Journal, written, v); err == nil {
		t.Fatal("the point reads with another epoch's frame in its record's place")
	}
	l, err := j.lineageAt(written)
	must(t, err)
	if why, err := j.invalidAt(l); err != nil || why == "" {
		t.Fatalf("the point does not read and is not called invalid, %v: found were %v", err, found)
	}
}
