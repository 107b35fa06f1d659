package journal

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/zeebo/blake3"
)

// resealed is a delta whose sums are right again after its bytes were changed: what a
// peer could send that means ill.
func resealed(b []byte) []byte {
	b = bytes.Clone(b)
	n := int64(len(b))
	if n < 3*pageBytes || n%pageBytes != 0 {
		return b
	}
	le := binary.LittleEndian
	footer := b[n-pageBytes:]
	sum := func(p []byte, at int) {
		le.PutUint32(p[at:], 0)
		le.PutUint32(p[at:], crc32.Checksum(p, castagnoli))
	}
	sum(b[:pageBytes], 20)
	sum(footer, 20)
	f, err := decodeRunPage(footer, runFooterMagic)
	if err != nil || f.fileBytes() != n {
		return b
	}
	tail := b[f.Body : f.Body+f.tailBytes()]
	for i := range f.Blocks {
		at, size := int64(le.Uint64(tail[i*directoryBytes:])), int64(le.Uint32(tail[i*directoryBytes+8:]))
		if at >= 0 && size >= blockHeaderBytes && at <= f.Body-size {
			sum(b[at:at+size], 4)
		}
	}
	for l := range f.Leaves {
		leaf := blake3.Sum256(b[l*leafBytes : min(f.Body, (l+1)*leafBytes)])
		copy(tail[int64(len(tail))-(f.Leaves-l)*int64(len(leaf)):], leaf[:])
	}
	root := blake3.Sum256(tail)
	copy(footer[136:], root[:])
	sum(footer, 20)
	return b
}

// FuzzDelta: a delta that was changed, its sums made right again or not, lands as a
// history that reads and verifies, or is refused and leaves the follower empty.
func FuzzDelta(f *testing.F) {
	for i := range uint32(64) {
		f.Add(i*2654435761, uint16(1+i%9), uint8(1+i), i%4 > 0)
	}
	var once sync.Once
	var sent []byte
	var to DeltaEnd
	var o Options
	var place DeltaPlace
	f.Fuzz(func(t *testing.T, at uint32, n uint16, by uint8, reseal bool) {
		once.Do(func() { sent, to, place, o = sentDelta(t) })
		b := bytes.Clone(sent)
		from := int(at) % len(b)
		if at%3 > 0 { // most of it is cells and zeros: the tables matter more
			from = len(b) - 1 - from%min(len(b), 6*pageBytes)
		}
		for i := from; i < min(len(b), from+int(n)%64); i++ {
			b[i] ^= by
		}
		if n%64 == 0 {
			b = b[:from]
		}
		if reseal {
			b = resealed(b)
		}
		o := o
		o.FS = vfs.NewMem()
		j := start(t, "p", o)
		defer j.close()
		l, err := j.OpenLanding(soon(t), Position{}, nil)
		must(t, err)
		if l.Place() != place {
			t.Fatalf("it lands at %+v, the first at %+v", l.Place(), place)
		}
		at2, err := l.Take(soon(t), bytes.NewReader(b), to)
		l.Close()
		if err != nil {
			if h := j.Head(); !h.IsZero() {
				t.Fatalf("refused for %v, and the head is %v", err, h)
			}
			return
		}
		if at2 != to.Cursor {
			t.Fatalf("it stands at %v, the delta leads to %v", at2, to.Cursor)
		}
		if found, err := j.Verify(soon(t), nil); err != nil || len(found) > 0 {
			t.Fatalf("what landed does not verify: %v, %v", found, err)
		}
	})
}

func sentDelta(t *testing.T) ([]byte, DeltaEnd, DeltaPlace, Options) {
	f, p, _ := deltaFolding(t, faults{})
	defer func() { p.to.close(); f.j.close() }()
	d, err := f.j.OpenDelta(soon(t), Position{}, false)
	must(t, err)
	defer d.Close()
	l, err := p.to.OpenLanding(soon(t), Position{}, nil)
	must(t, err)
	defer l.Close()
	var b bytes.Buffer
	must(t, d.Write(soon(t), &b, l.Place()))
	return b.Bytes(), d.To(), l.Place(), p.o
}
