package journal

import (
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/novacron/afterimage/cbt"
)

// touched is the MiBs of each volume, by ordinal, that a range of history changed.
// Its memory goes with the number of separate stretches.
type touched map[uint32]*extents

func (t touched) add(volume uint32, n node) {
	x := t[volume]
	if x == nil {
		x = newExtents(1 << 62)
		t[volume] = x
	}
	x.add(cbt.Extent{Offset: n.offset &^ (chunkBytes - 1), Length: chunkBytes})
}

// each calls f for every MiB, by volume and offset.
func (t touched) each(f func(volume uint32, offset int64) error) error {
	for _, v := range slices.Sorted(maps.Keys(t)) {
		for _, e := range t[v].merged() {
			for at := e.Offset; at < e.End(); at += chunkBytes {
				if err := f(v, at); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// foldScan reads whole segments before they are folded: it verifies every cell and
// the chain, and gathers what the fold needs to know of them.
type foldScan struct {
	j     *Journal
	pace  *pace
	frame func(w *written) // told every frame, its chain value known

	touched touched
	nodes   int64 // entries that the index must have of them
	bytes   int64 // of the segments
	end     frameEnd
	recent  recent
	first   Position
	check   bool // verify payloads and chain; else only headers are read
}

// maxFoldNodes bounds a fold's memory; a fold ends with the segment that passes it.
const maxFoldNodes = 4 << 20

// segments scans from up to to, or less if that is much. It returns the last that
// it scanned.
func (s *foldScan) segments(ctx context.Context, from, to uint64) (uint64, error) {
	for n := from; ; n++ {
		if err := s.segment(ctx, n); err != nil {
			return n, err
		}
		if n == to || s.nodes > maxFoldNodes {
			return n, nil
		}
	}
}

// rescan finds again what a change that was interrupted had changed, from headers
// alone.
func (s *foldScan) rescan(ctx context.Context, c *change) error {
	for n := c.Segments[0]; n <= c.Segments[1]; n++ {
		if err := s.segment(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

func (s *foldScan) segment(ctx context.Context, n uint64) error {
	j, at := s.j, int64(pageBytes)
	page := make([]byte, pageBytes)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, meta, err := j.segs.frameAt(n, at)
		if errors.Is(err, errNoFrame) {
			if err := j.segs.readAt(n, page, at); err != nil {
				return s.damage(n, at, err)
			}
			t, err := decodeSegmentPage(page, trailerMagic)
			if err == nil && (t.Number != n || t.Seq != s.end.Seq || t.Epoch != s.end.Epoch) {
				err = badFrame("the trailer ends segment %d at record %d, the frames at %d", t.Number, t.Seq, s.end.Seq)
			}
			if err != nil {
				return s.damage(n, at, err)
			}
			s.end.Segment, s.end.Offset = n+1, pageBytes
			s.bytes += at + pageBytes
			return nil
		}
		if err == nil {
			err = s.frameAt(n, at, h, meta)
		}
		if err != nil {
			return s.damage(n, at, err)
		}
		at += h.Bytes
	}
}

func (s *foldScan) damage(n uint64, at int64, err error) error {
	var d *DamageError
	if errors.As(err, &d) || errors.Is(err, context.Canceled) || errors.Is(err, ErrClosed) {
		return err
	}
	if errors.Is(err, errBadFrame) || errors.Is(err, errNoFrame) || errors.Is(err, io.ErrUnexpectedEOF) {
		return &DamageError{Hop: "fold", Epoch: s.end.Epoch, Seq: s.end.Seq + 1, File: segmentName(n), Offset: at, What: err.Error()}
	}
	return err
}

func (s *foldScan) frameAt(n uint64, at int64, h frameHeader, meta []byte) error {
	j := s.j
	rs, err := decodeRecords(h, meta)
	if err != nil {
		return err
	}
	recs := pointers(rs)
	w := &written{h: h, recs: recs, segment: n, offset: at, end: recs[len(recs)-1].time}
	w.ordinal = j.ordinalOf(h.Epoch)
	if w.ordinal == 0 || h.Identity != j.identity {
		return badFrame("a frame of epoch %s, which is not held", h.Epoch.Short())
	}
	before := s.end.Chain
	if s.check && (h.Epoch != s.end.Epoch || h.First != s.end.Seq+1) {
		var e Epoch
		if recs[0].kind != KindEpoch || decodeBody(recs[0].body, &e) != nil || e.ID != h.Epoch {
			return badFrame("record %d of epoch %s does not follow on record %d", h.First, h.Epoch.Short(), s.end.Seq)
		}
		before = e.Parent.Chain
		s.recent = recentFrom(e.Parent)
	}
	if s.check {
		if s.recent.contradicts(h) {
			return badFrame("the frame names another chain value after record %d", h.ChainSeq)
		}
		if err := s.pace.spend(h.Bytes); err != nil {
			return err
		}
		rest := &sectionOf{j.segs, n, at + int64(len(meta))}
		chain, bad, err := frameScan(h, recs, meta, before, rest, j.o.faults.headerOnlyCRC, func([]byte, int64) error { return nil })
		if err != nil {
			return err
		}
		if bad >= 0 {
			return &DamageError{Hop: "fold", Volume: j.volumeOf(recs[bad].volume), Epoch: h.Epoch, Seq: h.First + Seq(bad),
				File: segmentName(n), Offset: at + recs[bad].payload, What: damagedBytes}
		}
		w.chain = chain
		s.recent.push(Cursor{Position{h.Epoch, h.Last}, chain})
	}
	if s.first.IsZero() {
		s.first = Position{h.Epoch, h.First}
	}
	for _, r := range recs {
		if r.kind.hasExtent() {
			top := maxLevel
			if r.kind.hasPayload() {
				top = levelMegabyte
			}
			cut(r.extent, top, func(c node) { s.nodes++; s.touched.add(r.volume, c) })
		}
	}
	s.end = frameEnd{
		Cursor: Cursor{Position{h.Epoch, h.Last}, w.chain}, Time: w.end, Segment: n, Offset: at + h.Bytes,
		Bytes: s.end.Bytes + h.Bytes, Epochs: int(w.ordinal),
	}
	if s.frame != nil {
		s.frame(w)
	}
	return nil
}

// versionsIn reads the versions that a range of history left in one chunk, and all
// larger ones that cover it, from the index.
type versionReader struct {
	j         *Journal
	after, to order
	big       [maxLevel + 1]bigVersions
}

// bigVersions is the versions of the node of a level that the last chunk lay in.
type bigVersions struct {
	volume   uint32
	node     node
	valid    bool
	versions []version
}

func (r *versionReader) chunk(volume uint32, offset int64) (_ []version, err error) {
	it, err := r.j.iterate([]byte{prefixIndex}, []byte{prefixIndex + 1})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	r.j.mu.Lock()
	levels := r.j.levels[volume]
	r.j.mu.Unlock()
	var out []version
	for l := range maxLevel + 1 {
		if levels&(1<<l) == 0 {
			continue
		}
		if l > levelMegabyte {
			n := node{l, offset &^ (nodeBytes(l) - 1)}
			if b := &r.big[l]; !b.valid || b.volume != volume || b.node != n {
				vs, err := r.nodes(it, volume, n, n.offset+1, nil)
				if err != nil {
					return nil, err
				}
				*b = bigVersions{volume, n, true, vs}
			}
			out = append(out, r.big[l].versions...)
			continue
		}
		if out, err = r.nodes(it, volume, node{l, offset}, offset+chunkBytes, out); err != nil {
			return nil, err
		}
	}
	return out, it.Error()
}

// nodes appends the versions in range of the nodes from n on that begin before end.
func (r *versionReader) nodes(it iterator, volume uint32, n node, end int64, out []version) ([]version, error) {
	newest := indexKey(nil, volume, n, r.to.Ordinal, r.to.Seq)
	for ok := it.SeekGE(newest); ok; {
		e, err := decodeIndexKey(it.Key())
		if err != nil {
			return nil, err
		}
		if e.volume != volume || e.node.level != n.level || e.node.offset >= end {
			break
		}
		o := order{e.ordinal, e.seq}
		switch {
		case o.after(r.to):
			ok = it.SeekGE(indexKey(nil, volume, e.node, r.to.Ordinal, r.to.Seq))
		case !o.after(r.after):
			ok = it.SeekGE(indexKey(nil, volume, node{e.node.level, e.node.offset + nodeBytes(e.node.level)}, r.to.Ordinal, r.to.Seq))
		default:
			p, err := decodePlace(it.Value(), e.node.level)
			if err != nil {
				return nil, err
			}
			p.crcs = slices.Clone(p.crcs)
			out = append(out, version{e, p})
			ok = it.Next()
		}
	}
	return out, it.Error()
}

// runTouched is the MiBs that the versions of runs lie in, and how many there are.
func (j *Journal) runTouched(runs []*run) (touched, int64, error) {
	t, n := make(touched), int64(0)
	for _, r := range runs {
		c := versionCursor{r: r}
		for {
			e, ok, err := c.peek()
			if err != nil {
				return nil, 0, err
			}
			if !ok {
				break
			}
			t.add(e.volume, e.node)
			n++
			c.pop()
		}
	}
	return t, n, nil
}

// slotPicker offers as candidates the records that a ladder may keep: of the points
// of one branch, the last of each slot of each rung.
type slotPicker struct {
	rungs  []Rung
	branch EpochID
	spans  []Span         // of the branch's lineage, every record of which is a point
	wanted map[order]bool // offered whatever the ladder
	dense  time.Time      // offered too: every record from then on
	every  bool           // or all
	prev   *runPoint
	at     Position
	number uint64
	offer  func(Candidate, runPoint)
}

func (p *slotPicker) covers(s Seq) bool {
	for i := range p.spans {
		if p.spans[i].First.Seq <= s && s <= p.spans[i].Last.Seq {
			return true
		}
	}
	return false
}

// record is told every record of the branch, in order.
func (p *slotPicker) record(at Position, number uint64, o order, t time.Time, chain Chain) {
	if !p.covers(at.Seq) {
		return
	}
	if p.prev != nil && p.leaves(t) {
		p.flush()
	}
	p.prev, p.at, p.number = &runPoint{order: o, time: t, chain: chain}, at, number
}

// leaves reports that the one before must be offered, for a point at t ends some
// rung's slot, a reference wants it, or every write is kept there: what such a rung
// reaches back to is not folded but for a landing.
func (p *slotPicker) leaves(t time.Time) bool {
	for _, g := range p.rungs {
		if g.Every > 0 && g.slot(t) != g.slot(p.prev.time) {
			return true
		}
	}
	return p.every || !p.prev.time.Before(p.dense) || p.wanted[p.prev.order]
}

// flush offers the newest record.
func (p *slotPicker) flush() {
	if p.prev != nil {
		p.offer(Candidate{Point: Point{Position: p.at, Number: p.number, Time: p.prev.time}, Branch: p.branch}, *p.prev)
		p.prev = nil
	}
}
