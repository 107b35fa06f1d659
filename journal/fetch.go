package journal

import (
	"bytes"
	"cmp"
	"errors"
	"io"
	"slices"
	"sync"

	"github.com/novacron/afterimage/cbt"
)

// A fetch brings the bytes that a stretch of a volume is made of: parts are added,
// each a stretch of one version; run reads them, near ones of a file together and
// all at once, and verifies every cell before it hands on a byte of it.
//
//	file:    ….[cell|cell|cell]…gap…[cell]………………………[piece].…
//	parts:      └──── a ────┘      └ b ┘               └─ c ─┘
//	reads:   └── one, whole pages ──────┘           └── one ──┘
type fetch struct {
	parts []part
	reads []fileRead
	first []int // of each read, its first part
	deep  []*diskRead
	bulk  bool // nobody waits for any one of them

	unpacked part // the last part that was packed; its dst is all of its payload
	of       cbt.Extent
}

// part is what a read of the volume takes from one version.
type part struct {
	*found
	want cbt.Extent // of the volume
	dst  []byte     // its bytes
	at   int64      // in the file, of what must be read whole to check them
	n    int64
}

const (
	// nearGap is what is read for nothing rather than to ask the disk twice, where
	// somebody waits; wideGap where only throughput counts.
	nearGap = 2 * pageBytes
	wideGap = 32 << 10
	// maxJoined is how much parts that lie together make one read.
	maxJoined = 1 << 20
)

var fetches = sync.Pool{New: func() any { return new(fetch) }}

// free gives f back for the next fetch.
func (f *fetch) free() {
	f.forget()
	f.bulk = false
	fetches.Put(f)
}

// forget drops all parts and keeps the memory they were listed in.
func (f *fetch) forget() {
	for i := range f.reads {
		f.reads[i].mem.free()
	}
	clear(f.parts)
	clear(f.reads)
	clear(f.deep)
	f.unpacked = part{}
	f.parts, f.reads, f.first, f.deep = f.parts[:0], f.reads[:0], f.first[:0], f.deep[:0]
}

// add asks for dst, which begins at volume offset off, out of version v.
func (f *fetch) add(v *found, dst []byte, off int64) {
	p := part{found: v, dst: dst, want: cbt.Extent{Offset: off, Length: int64(len(dst))}}
	p.at, p.n = v.storedAt(p.want)
	f.parts = append(f.parts, p)
}

// run reads, verifies and delivers all parts; those that lie within gap of each
// other in one file share a read.
func (f *fetch) run(a *asOf, v volumeBody, gap int64) error {
	f.plan(gap)
	queue := &a.j.deep
	if f.bulk {
		queue = &a.j.bulk
	}
	f.deep = a.j.readPages(queue, f.reads, f.deep)
	for i := range f.reads {
		r, end := &f.reads[i], len(f.parts)
		if i+1 < len(f.reads) {
			end = f.first[i+1]
		}
		for k := f.first[i]; k < end; k++ {
			p := &f.parts[k]
			if err := f.deliver(a, v, p, r, end-f.first[i] > 1); err != nil {
				return err
			}
		}
	}
	return nil
}

// plan orders the parts by where they lie and joins them to reads.
func (f *fetch) plan(gap int64) {
	if len(f.parts) > 1 {
		slices.SortFunc(f.parts, func(a, b part) int {
			return cmp.Or(cmp.Compare(a.file, b.file), cmp.Compare(a.at, b.at))
		})
	}
	for i := 0; i < len(f.parts); {
		p := &f.parts[i]
		from, end := p.at&^(pageBytes-1), p.at+p.n
		direct := p.at == from && p.whole() && pageAligned(p.dst)
		n, useful := i+1, p.n
		for ; n < len(f.parts); n++ {
			q := &f.parts[n]
			if q.file != p.file || q.at > end+min(gap, max(useful, nearGap)) || q.at+q.n > from+maxJoined {
				break
			}
			useful += q.n
			direct = direct && q.at == end && q.whole() && p.reaches(q, end-from)
			end = max(end, q.at+q.n)
		}
		end = (end + pageBytes - 1) &^ (pageBytes - 1)
		r := fileRead{id: p.file, disk: diskRead{off: from}}
		if direct {
			r.disk.buf = p.dst[:end-from] // the reader's memory will do
		} else {
			r.mem = takePages(end - from)
			r.disk.buf = r.mem.b
		}
		f.reads, f.first = append(f.reads, r), append(f.first, i)
		i = n
	}
}

// whole reports that p's bytes are its destination's, and whole pages.
func (p *part) whole() bool { return p.n == p.want.Length && p.n%pageBytes == 0 && !p.packed() }

// reaches reports that q's destination lies n bytes behind the begin of p's, in the
// same memory.
func (p *part) reaches(q *part, n int64) bool {
	return int64(cap(p.dst)) >= n+int64(len(q.dst)) && &p.dst[:n+1][n] == &q.dst[0]
}

// deliver verifies p's cells in what r brought and copies them out. A read that
// several parts share says nothing of one of them when it fails: p is read alone.
func (f *fetch) deliver(a *asOf, v volumeBody, p *part, r *fileRead, shared bool) error {
	from := p.at - r.disk.off
	switch {
	case r.disk.err == nil && int64(r.disk.got) >= from+p.n:
		raw := r.disk.buf[from : from+p.n]
		if shared && p.sealed() { // opened in place, and another part may lie in the same cells
			raw = bytes.Clone(raw)
		}
		return f.take(a, v, p, raw)
	case errors.Is(r.disk.err, ErrClosed):
		return r.disk.err
	case !shared:
		err := r.disk.err
		if err == nil {
			err = io.ErrUnexpectedEOF
		}
		return a.damage(v, p.found, p.at, err.Error())
	}
	raw := make([]byte, p.n)
	if err := a.j.readAt(p.file, raw, p.at); errors.Is(err, ErrClosed) {
		return err
	} else if err != nil {
		return a.damage(v, p.found, p.at, err.Error())
	}
	return f.take(a, v, p, raw)
}

// take checks raw, which is what p asked for, and fills p.dst. raw may change. What
// was unpacked for one part serves those beside it.
func (f *fetch) take(a *asOf, v volumeBody, p *part, raw []byte) error {
	if u := &f.unpacked; u.found != nil && p.packed() && u.file == p.file && u.at == p.at && u.seq == p.seq {
		copy(p.dst, u.dst[p.want.Offset-f.of.Offset:])
		return nil
	}
	plain, e, err := a.openStored(v, p.found, p.want, raw)
	if err != nil {
		return err
	}
	if p.packed() {
		f.unpacked, f.of = part{found: p.found, at: p.at, dst: plain}, e
	}
	if &plain[0] != &p.dst[0] {
		copy(p.dst, plain[p.want.Offset-e.Offset:])
	}
	return nil
}
