package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/zeebo/blake3"
)

// No peer has the same run, but the run itself says what it was: the site log holds
// the root, the root proves the tail, the tail has a BLAKE3 leaf for each MiB. So a
// damaged run is put together again exactly as it was, leaf by leaf:
//
//	leaf:  | header page | cells | cells | pieces | zeros | block | zeros | cells …
//	from:    the footer    here, or a peer's        always  here, or the index
//
// and a leaf is written only when it has its hash: neither a peer nor the index can
// put other bytes in. Footer and tail come from the copy in the index where the run's
// own are damaged (runtail.go), and so a run whose file is gone comes back whole. The
// result is a new file in the place of the old one. Where there is no copy either,
// nothing is proven, and the run stays as it is.

// runMending is a run's new copy in the making.
type runMending struct {
	j      *Journal
	r      *run
	m      manifest
	cells  FetchCells
	parts  []runPart // of the leaves from on that are bad
	have   runPart   // the part that was put together last
	bytes  int64     // fetched
	pieces int
}

// runPart is what must be in its place in the file: a version's stored bytes, or a
// block.
type runPart struct {
	at, n int64
	entry indexEntry
	place place
	bytes []byte // nil: not yet known
}

// maxMendedLeaves bounds how many bad leaves are listed at a time.
const maxMendedLeaves = 256

// repairRun writes run n anew and swaps it in. Merged meanwhile is mended.
func (j *Journal) repairRun(ctx context.Context, n uint64, cells FetchCells) (pieces int, size int64, err error) {
	j.maintaining.Lock() // no fold takes it away
	defer j.maintaining.Unlock()
	runs := j.history().state.Runs
	i := slices.IndexFunc(runs, func(m manifest) bool { return m.Run == n })
	if i < 0 {
		return 0, 0, nil
	}
	w := &runMending{j: j, m: runs[i], cells: cells}
	if w.r, err = j.openRun(w.m); err != nil {
		return 0, 0, err
	}
	err = j.replaceFile(j.runs, n, func(f io.WriterAt) error { return w.write(ctx, f) })
	return w.pieces, w.bytes, err
}

// write puts all leaves and the tail into f.
func (w *runMending) write(ctx context.Context, f io.WriterAt) error {
	for from := int64(0); from < w.r.page.Leaves; from += maxMendedLeaves {
		to := min(from+maxMendedLeaves, w.r.page.Leaves)
		bad, err := w.copyLeaves(ctx, f, from, to)
		if err != nil {
			return err
		}
		if len(bad) == 0 {
			continue
		}
		if err := w.list(bad); err != nil {
			return err
		}
		for _, l := range bad {
			b, err := w.leaf(ctx, l)
			if err != nil {
				return err
			}
			if _, err := f.WriteAt(b, l*leafBytes); err != nil {
				return err
			}
		}
	}
	tail := append(bytes.Clone(w.r.raw.tail), zeros[:padPage(w.r.page.tailBytes())-w.r.page.tailBytes()]...)
	if _, err := f.WriteAt(tail, w.r.page.Body); err != nil {
		return err
	}
	_, err := f.WriteAt(w.r.raw.footer, w.m.Bytes-pageBytes)
	return err
}

// copyLeaves copies those that have their hash and returns the others.
func (w *runMending) copyLeaves(ctx context.Context, f io.WriterAt, from, to int64) (bad []int64, err error) {
	buf := make([]byte, leafBytes)
	for l := from; l < to; l++ {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		b := buf[:w.leafLength(l)]
		if err := w.r.damageOf(l*leafBytes, w.j.runs.readAt(w.r.number, b, l*leafBytes)); err != nil && !unreadable(err) {
			return nil, err
		} else if err != nil || blake3.Sum256(b) != w.hash(l) {
			bad = append(bad, l)
			continue
		}
		if _, err := f.WriteAt(b, l*leafBytes); err != nil {
			return nil, err
		}
	}
	return bad, nil
}

func (w *runMending) leafLength(l int64) int64 { return min(leafBytes, w.r.page.Body-l*leafBytes) }

func (w *runMending) hash(l int64) Chain { return Chain(w.r.leaves()[l*32:][:32]) }

// list gathers what lies in the bad leaves, in the order of the file.
func (w *runMending) list(bad []int64) error {
	w.parts = w.parts[:0]
	in := func(at, n int64) bool {
		return slices.ContainsFunc(bad, func(l int64) bool { return at < (l+1)*leafBytes && at+n > l*leafBytes })
	}
	broken := false
	for _, d := range w.r.blocks {
		b, err := w.r.block(d, nil)
		if err != nil && !unreadable(err) {
			return err
		}
		if err == nil {
			err = decodeBlock(b, d.kind, func(k, v []byte) error {
				if d.kind != blockVersions {
					return nil
				}
				return w.version(in, k, v)
			})
		}
		if broken = broken || err != nil; broken {
			break
		}
		if in(d.offset, int64(d.bytes)) {
			w.parts = append(w.parts, runPart{at: d.offset, n: int64(d.bytes), bytes: b})
		}
	}
	if broken {
		if err := w.listFromIndex(in); err != nil {
			return err
		}
	}
	slices.SortStableFunc(w.parts, func(a, b runPart) int { return int(a.at - b.at) })
	return nil
}

// version adds one entry's stored bytes, if they lie in a bad leaf.
func (w *runMending) version(in func(at, n int64) bool, k, v []byte) error {
	e, err := decodeIndexKey(k)
	if err != nil {
		return badFrame("%v", err)
	}
	p, err := decodePlace(slices.Clone(v), e.node.level)
	if err != nil {
		return badFrame("%v", err)
	}
	if n := p.storedBytes(); p.format != valueZero && in(p.offset, n) {
		w.parts = append(w.parts, runPart{at: p.offset, n: n, entry: e, place: p})
	}
	return nil
}

// leaf puts a leaf together; an error when it does not come to its hash.
func (w *runMending) leaf(ctx context.Context, l int64) ([]byte, error) {
	from, b := l*leafBytes, make([]byte, w.leafLength(l))
	if l == 0 {
		h := runPage{Magic: runMagic, Number: w.r.number, Identity: w.j.identity, Created: w.r.page.Created}
		copy(b, h.encode())
	}
	for _, p := range w.parts {
		if p.at >= from+int64(len(b)) || p.at+p.n <= from {
			continue
		}
		stored, err := w.stored(ctx, p)
		if err != nil {
			return nil, err
		}
		if p.at < from {
			copy(b, stored[from-p.at:])
		} else {
			copy(b[p.at-from:], stored)
		}
	}
	if blake3.Sum256(b) != w.hash(l) {
		return nil, fmt.Errorf("MiB %d of the run, put together anew, differs from its hash", l)
	}
	return b, nil
}

// stored is a part's bytes: known, whole in the file, or a peer's.
func (w *runMending) stored(ctx context.Context, p runPart) ([]byte, error) {
	if p.bytes != nil {
		return p.bytes, nil
	}
	if w.have.bytes != nil && w.have.at == p.at && w.have.n == p.n {
		return w.have.bytes, nil
	}
	b, ok, err := w.j.readStored(p.place)
	if err != nil {
		return nil, err
	}
	if !ok {
		if b, err = w.j.fetchStored(ctx, w.cells, p.entry, p.place); err != nil {
			return nil, err
		}
		w.pieces, w.bytes = w.pieces+1, w.bytes+int64(len(b))
	}
	w.have = runPart{at: p.at, n: p.n, bytes: b}
	return b, nil
}

// listFromIndex lists what lies in the bad leaves where a block does not read: the
// index has the same entries, and the blocks are filled with them in the order in
// which the fold wrote them.
func (w *runMending) listFromIndex(in func(at, n int64) bool) error {
	w.parts = w.parts[:0]
	next := 0
	var b blockBuilder
	add := func(k, v []byte, kind uint32) error {
		if next == len(w.r.blocks) || w.r.blocks[next].kind != kind {
			return errOtherBlocks
		}
		if kind == blockVersions {
			if err := w.version(in, k, v); err != nil {
				return err
			}
		}
		b.add(k, v)
		d := w.r.blocks[next]
		switch n := blockHeaderBytes + len(b.b); {
		case n < d.bytes:
			return nil
		case n > d.bytes:
			return errOtherBlocks
		}
		whole := b.finish(kind)
		if in(d.offset, int64(d.bytes)) {
			w.parts = append(w.parts, runPart{at: d.offset, n: int64(d.bytes), bytes: whole})
		}
		next++
		return nil
	}
	if err := w.indexed(func(k, v []byte) error { return add(k, v, blockVersions) }); err != nil {
		return err
	}
	c := change{After: w.m.After, To: w.m.To}
	end := frameEnd{Cursor: Cursor{w.m.Last, w.m.Out}}
	if err := w.j.eachCatalogued(c, end, func(k, v []byte) error { return add(k, v, blockCatalogue) }); err != nil {
		return err
	}
	if next != len(w.r.blocks) {
		return errOtherBlocks
	}
	return nil
}

var errOtherBlocks = errors.New("the run's own table is damaged, and the index does not come to the same one")

// indexed calls f for the index's entries of the run, in the order of its blocks.
func (w *runMending) indexed(f func(k, v []byte) error) error {
	j := w.j
	t := &maintainer{j: j}
	if err := t.takeLeaves(); err != nil {
		return err
	}
	s := &sweep{}
	for i := range t.leaves {
		if b, ok := t.leaves[i].through(w.m.After, w.m.To, w.r.points); ok {
			s.histories = append(s.histories, b)
		}
	}
	in, err := j.touchedIn(w.m.After, w.m.To)
	if err != nil {
		return err
	}
	r := &versionReader{j: j, after: w.m.After, to: w.m.To}
	var k, v []byte
	return in.each(func(volume uint32, offset int64) error {
		vs, err := r.chunk(volume, offset)
		if err != nil {
			return err
		}
		for _, x := range s.survivors(offset, vs) {
			k, v = indexKey(k, volume, x.node, x.ordinal, x.seq), x.place.encode(v)
			if err := f(k, v); err != nil {
				return err
			}
		}
		return nil
	})
}

// touchedIn is the MiBs that the versions of a range of history lie in, by the index.
func (j *Journal) touchedIn(after, to order) (touched, error) {
	in := make(touched)
	err := j.scanPrefix(prefixIndex, func(k, _ []byte) error {
		e, err := decodeIndexKey(k)
		if o := (order{e.ordinal, e.seq}); err == nil && o.after(after) && !o.after(to) {
			in.add(e.volume, e.node)
		}
		return err
	})
	return in, err
}

// cellsHere puts a segment's damaged payloads together from stored bytes of peers,
// where header and records are whole: the frame itself may be folded there.
func (m *mending) cellsHere(ctx context.Context, h frameHeader, meta []byte) ([]byte, error) {
	j := m.j
	rs, err := decodeRecords(h, meta)
	if err != nil {
		return nil, err
	}
	image := make([]byte, h.Bytes)
	copy(image, meta)
	for i := range rs {
		r := &rs[i]
		if !r.kind.hasPayload() {
			continue
		}
		err := indexRecord(r, j.ordinalOf(h.Epoch), h.First+Seq(i), m.n, m.at, func(k, v []byte) error {
			e, err := decodeIndexKey(k)
			if err != nil {
				return err
			}
			p, err := decodePlace(v, e.node.level)
			if err != nil {
				return err
			}
			b, ok, err := j.readStored(p)
			if err == nil && !ok {
				b, err = j.fetchStored(ctx, m.cells, e, p)
			}
			copy(image[p.offset-m.at:], b)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return image, nil
}
