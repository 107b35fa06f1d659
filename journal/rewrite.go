package journal

import (
	"bytes"
	"context"
)

// A guest often writes what is there already. Such a record is of kind same: it has
// its seq and its time, it is a point, and it changes nothing, so that whoever does
// not know the kind passes over it and is right. It is recorded only where sameness
// is proven:
//
//  1. a table remembers for some cells which record touched them last, and the
//     CRC32C of what it wrote; a write whose cells all have theirs is a candidate;
//  2. the cells are read from the journal as of a seq that is indexed and not before
//     those records, and compared byte by byte;
//  3. under the lock that gives the seq, the table says still that nothing was
//     recorded in these cells since.
//
// Every record of this epoch passes the table, in order. A cell that is not in it is
// not proven, and its bytes are written.
type rewrites struct {
	round uint32 // entries of another one are void
	cells []lastWrite
}

// lastWrite is the newest record of a cell, of those that were given a seq.
type lastWrite struct {
	volume, round, crc uint32
	cell               int64
	seq                Seq
}

const (
	rewriteEntries = 1 << 15 // a MiB a journal that is written
	maxRewriteCell = 256     // of one record: more are never the same
)

func (t *rewrites) entry(volume uint32, cell int64) *lastWrite {
	h := (uint64(cell) ^ uint64(volume)<<40) * 0x9e3779b97f4a7c15
	return &t.cells[h>>(64-15)]
}

// forget voids the table.
func (t *rewrites) forget() { t.round++ }

// note makes r, which has just been given seq s, the newest of the cells it touches.
func (t *rewrites) note(r *record, s Seq) {
	if !r.kind.hasExtent() {
		return
	}
	if cellsOf(r.extent) > maxRewriteCell {
		t.forget()
		return
	}
	if t.cells == nil {
		t.cells, t.round = make([]lastWrite, rewriteEntries), t.round+1
	}
	first, n := r.extent.Offset/pageBytes, cellsOf(r.extent)
	for i := range n {
		c := first + int64(i)
		e := t.entry(r.volume, c)
		whole := c*pageBytes >= r.extent.Offset && (c+1)*pageBytes <= r.extent.End()
		switch {
		case r.kind.hasPayload() && whole && len(r.plain) == n:
			*e = lastWrite{r.volume, t.round, r.plain[i], c, s}
		case e.cell == c && e.volume == r.volume:
			e.round = 0
		}
	}
}

// repeats reports that the newest records of r's cells, none later than s, wrote
// what has the same checksums.
func (t *rewrites) repeats(r *record, s Seq) bool {
	if t.cells == nil || r.extent.Offset%pageBytes != 0 || r.extent.Length%pageBytes != 0 || len(r.plain) > maxRewriteCell {
		return false
	}
	for i, crc := range r.plain {
		c := r.extent.Offset/pageBytes + int64(i)
		if e := t.entry(r.volume, c); e.round != t.round || e.volume != r.volume || e.cell != c || e.crc != crc || e.seq > s {
			return false
		}
	}
	return len(r.plain) > 0
}

// sameLocked is r, or what is recorded in its place where it repeats what the volume
// holds. It lets go of the lock while it reads. r.data may be packed by now; data is
// what the guest wrote.
func (w *Writer) sameLocked(ctx context.Context, r *record, data []byte) *record {
	j := w.j
	v, ok := j.volumes[r.volumeID]
	r.volume = v.Ordinal
	if !ok || j.writer != w || !r.extent.Within(v.Size) || !j.rewrites.repeats(r, j.indexed) {
		return r
	}
	s, l := j.indexed, append(Lineage(nil), j.lineage...)
	if l[len(l)-1].First > s {
		return r
	}
	l[len(l)-1].Last = s
	j.mu.Unlock()
	there := make([]byte, len(data))
	err := j.reader(l).readAt(ctx, v, there, r.extent.Offset)
	j.mu.Lock()
	if err != nil || !bytes.Equal(there, data) || j.writer != w || !j.rewrites.repeats(r, s) {
		return r // what does not read is written anew
	}
	return &record{kind: KindSame, time: r.time, volume: r.volume, volumeID: r.volumeID, extent: r.extent}
}
