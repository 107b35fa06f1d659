package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
)

// A frame is the same bytes at every site, so a repair is a copy. A damaged segment
// is walked from its first record on; each frame comes from the segment itself where
// it verifies, from a peer where it does not, and goes into a new file at the same
// offset, for the index points there:
//
//	old:  | header | frame | ######## | frame | trailer |
//	new:  | header | frame | fetched  | frame | trailer |   N.seg.new, synced, renamed
//
// A fetched frame must be of this journal, name the records that are missing, verify
// whole, equal what is left of the damaged one's header, and lead to the chain values
// that the samples, the next segment and the branches' ends name: a peer can refuse,
// but it cannot put other bytes in. What cannot be fetched leaves the segment as it was.
// Where a peer has folded a frame it may still have what its records stored (cells.go);
// runs are mended from that alone (runrepair.go).

// Fetch gives the frame that holds a record as a peer has it stored. Nothing of what
// it returns is trusted.
type Fetch func(ctx context.Context, p Position) ([]byte, error)

// Repaired is what a repair did.
type Repaired struct {
	Files  int      // that are whole again
	Frames int      // fetched, and stored bytes of single versions
	Bytes  int64    // of them
	Left   []Damage // not mended
	// Refused is why the first of the files that are left could not be mended.
	Refused error
}

// FrameFor is the durable frame that holds the record at p, in any branch, read and
// verified whole: what a peer repairs its copy with. Errors: *NoPointError or
// ErrUnknownParent when the record is not held here, *DamageError, ErrReclaimed.
func (j *Journal) FrameFor(ctx context.Context, p Position) (Frame, error) {
	f, err := j.frameFor(ctx, p)
	if err != nil {
		return Frame{}, fmt.Errorf("find frame of record %s: %w", p, err)
	}
	return f, nil
}

func (j *Journal) frameFor(ctx context.Context, p Position) (Frame, error) {
	if err := j.waitHeld(ctx, p); err != nil {
		return Frame{}, err
	}
	if err := j.WaitDurable(ctx, p); err != nil {
		return Frame{}, err
	}
	at, err := j.frameOf(ctx, p)
	if err != nil {
		return Frame{}, err
	}
	image := make([]byte, at.h.Bytes)
	if err := j.segs.readAt(at.segment, image, at.offset); err != nil {
		return Frame{}, err
	}
	_, recs, _, err := checkImage(image, j.identity, Chain{})
	if err != nil {
		return Frame{}, &DamageError{Hop: "read", Epoch: at.h.Epoch, Seq: at.h.First, Last: at.h.Last, File: segmentName(at.segment), Offset: at.offset, What: err.Error()}
	}
	return Frame{
		First: Position{at.h.Epoch, at.h.First}, Last: Position{at.h.Epoch, at.h.Last}, FirstTime: recs[0].time, LastTime: recs[len(recs)-1].time,
		Bytes: at.h.Bytes, Records: at.h.Count, Reader: bytes.NewReader(image),
	}, nil
}

// checkImage verifies a whole frame and computes the chain value after it.
func checkImage(image []byte, id Identity, before Chain) (frameHeader, []*record, Chain, error) {
	r := bytes.NewReader(image)
	h, meta, recs, err := readMeta(r, int64(len(image)))
	if err != nil {
		return h, nil, Chain{}, err
	}
	if h.Identity != id {
		return h, nil, Chain{}, ErrWrongJournal
	}
	chain, bad, err := frameScan(h, recs, meta, before, r, false, func([]byte, int64) error { return nil })
	if err == nil && bad >= 0 {
		err = badFrame("%s", damagedBytes)
	}
	return h, recs, chain, err
}

// Repair mends what the last scrub found, file by file: segments with frames that fetch
// gives, runs, and segments whose frames the peer has folded, with stored bytes that
// cells gives. Either may be nil: nobody is asked, and what the journal itself can
// put together again, a run's tail, is mended alone.
// It returns an error only when it could not go on; what a peer does not have, or has
// damaged as well, is left and said in Repaired.Left. It does not disturb capture.
func (j *Journal) Repair(ctx context.Context, fetch Fetch, cells FetchCells) (Repaired, error) {
	j.scrubbing.Lock()
	defer j.scrubbing.Unlock()
	var out Repaired
	if fetch == nil {
		fetch = func(context.Context, Position) ([]byte, error) { return nil, errNobody }
	}
	done := make(map[string]bool)
	for _, d := range j.Damages() {
		if done[d.File] {
			continue
		}
		done[d.File] = true
		var pieces int
		var size int64
		var err error
		if n, ok := parseSegmentName(d.File); ok {
			pieces, size, err = j.repairSegment(ctx, n, fetch, cells)
		} else if n, ok := parseRunName(d.File); ok {
			pieces, size, err = j.repairRun(ctx, n, cells)
		} else {
			err = errors.New("it is no file of the history")
		}
		if cerr := ctx.Err(); cerr != nil {
			return out, cerr
		}
		if err = j.endIfUnsynced(err); errors.Is(err, ErrFailed) {
			return out, fmt.Errorf("repair %s: %w", d.File, err)
		}
		if err != nil {
			j.o.Log.Warn("file not repaired", "file", d.File, "err", err)
			if out.Refused == nil {
				out.Refused = fmt.Errorf("repair %s: %w", d.File, err)
			}
			continue
		}
		out.Files, out.Frames, out.Bytes = out.Files+1, out.Frames+pieces, out.Bytes+size
		if err := j.forgetDamage(d.File); err != nil {
			return out, err
		}
		j.o.Log.Info("file repaired", "file", d.File, "fetched", pieces, "bytes", size)
	}
	out.Left = j.Damages()
	return out, nil
}

func (j *Journal) forgetDamage(file string) error {
	left := slices.DeleteFunc(j.Damages(), func(d Damage) bool { return d.File == file })
	if err := j.site.remember(damageKey, left); err != nil {
		return fullOr(err)
	}
	j.mu.Lock()
	j.damages = left
	j.mu.Unlock()
	return nil
}

// mending is one segment's new copy in the making.
type mending struct {
	j     *Journal
	n     uint64
	fetch Fetch
	cells FetchCells

	next   Position // the record that the next frame begins with
	before Chain    // the chain value before it
	known  bool     // before is to be trusted
	at     int64
	last   Position
	frames int
	bytes  int64
}

// repairSegment writes segment n anew and swaps it in.
func (j *Journal) repairSegment(ctx context.Context, n uint64, fetch Fetch, cells FetchCells) (frames int, size int64, err error) {
	if n < j.history().state.floor() {
		return 0, 0, nil // folded
	}
	if err := j.sealed(n); err != nil {
		return 0, 0, err
	}
	m := &mending{j: j, n: n, fetch: fetch, cells: cells, at: pageBytes}
	if err := m.begin(ctx); err != nil {
		return 0, 0, err
	}
	first := m.next
	length, err := j.segs.size(n)
	if err != nil && !notThere(err) {
		return 0, 0, err
	}
	err = j.writeAside(j.segs, n, func(w io.WriterAt) error {
		for !m.ended() {
			if err := m.frame(ctx, w); err != nil {
				return err
			}
		}
		if err := m.checkEnd(ctx); err != nil {
			return err
		}
		return m.pages(w, first, length)
	})
	return m.frames, m.bytes, j.placeSegment(n, err)
}

// placeSegment puts a segment that was written anew in its place, unless it was folded
// meanwhile: then it is mended, whatever err says, and must not be there again.
func (j *Journal) placeSegment(n uint64, err error) error {
	j.maintaining.Lock() // no fold gives it back between the look and the rename
	defer j.maintaining.Unlock()
	s := j.history().state
	if n >= s.floor() && err == nil {
		return j.takePlace(j.segs, n)
	}
	if n >= s.floor() {
		return err
	}
	if err := j.o.FS.Remove(j.segs.path(n) + asideSuffix); err != nil && !notThere(err) {
		return fmt.Errorf("remove mended segment: %w", err)
	}
	return nil
}

// sealed seals segment n if it is the one being written: a repair has it for itself.
func (j *Journal) sealed(n uint64) error {
	j.fileMu.Lock()
	defer j.fileMu.Unlock()
	if n != j.out.number || j.out.fresh {
		return nil
	}
	if j.out.at == pageBytes {
		return fmt.Errorf("segment %s holds nothing yet", segmentName(n))
	}
	if err := j.seal(); err != nil {
		return j.outcome(err)
	}
	return nil
}

// begin finds the segment's first record and the chain value before it.
func (m *mending) begin(ctx context.Context) error {
	first, ok, err := m.j.segmentFirst(m.n)
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("nothing says what %s held", segmentName(m.n))
	}
	m.next = first
	return m.sample(ctx)
}

// sample takes the chain value before the next frame from the index, or holds it to
// the one that is known.
func (m *mending) sample(ctx context.Context) error {
	sm, ok, err := m.j.sampleBefore(ctx, m.j.ordinalOf(m.next.Epoch), m.next.Seq)
	if err != nil || !ok {
		return err
	}
	exact, err := m.j.isSample(m.next)
	if err != nil || !exact || sm.before.unknown(m.next.Seq) {
		return err
	}
	if sm.segment != m.n || sm.offset != m.at {
		return fmt.Errorf("the frame of record %s would lie at %d of %s, the index has it at %d of %s", m.next, m.at, segmentName(m.n), sm.offset, segmentName(sm.segment))
	}
	if m.known && sm.before != m.before {
		return errOtherChain
	}
	m.before, m.known = sm.before, true
	return nil
}

var errOtherChain = errors.New("the frames lead to another chain value than the one known here")

// isSample reports that there is a sample of exactly p.
func (j *Journal) isSample(p Position) (bool, error) {
	found := false
	lo := sampleKey(j.ordinalOf(p.Epoch), p.Seq)
	it, err := j.iterate(lo, sampleKey(j.ordinalOf(p.Epoch), p.Seq+1))
	if err != nil {
		return false, err
	}
	found = it.First()
	return found, errors.Join(it.Error(), it.Close())
}

// ended reports that the next record lies in the next segment, or is not held.
func (m *mending) ended() bool {
	if m.next.IsZero() {
		return true
	}
	if first, ok, err := m.j.segmentFirst(m.n + 1); err == nil && ok {
		return first == m.next
	}
	return false
}

// frame copies the next frame, from here or from a peer.
func (m *mending) frame(ctx context.Context, w io.WriterAt) error {
	j := m.j
	h, meta, err := j.segs.frameAt(m.n, m.at)
	here := err == nil && h.Identity == j.identity && h.Epoch == m.next.Epoch && h.First == m.next.Seq
	var image []byte
	var chain Chain
	if here {
		image = make([]byte, h.Bytes)
		if err = j.segs.readAt(m.n, image, m.at); err == nil {
			_, _, chain, err = checkImage(image, j.identity, m.before)
		}
	}
	if !here || err != nil {
		if image, err = m.fetch(ctx, m.next); err != nil {
			err = fmt.Errorf("fetch record %s: %w", m.next, err)
			if !here || m.cells == nil {
				return err
			}
			var cerr error
			if image, cerr = m.cellsHere(ctx, h, meta); cerr != nil {
				return errors.Join(err, cerr)
			}
		}
		var got frameHeader
		if got, _, chain, err = checkImage(image, j.identity, m.before); err != nil {
			return fmt.Errorf("check fetched record %s: %w", m.next, err)
		}
		if got.Epoch != m.next.Epoch || got.First != m.next.Seq {
			return fmt.Errorf("check fetched record %s: it begins with record %s", m.next, Position{got.Epoch, got.First})
		}
		if here && !bytes.Equal(image[:len(meta)], meta) {
			return fmt.Errorf("check fetched record %s: its header differs from the one here", m.next)
		}
		h, m.frames, m.bytes = got, m.frames+1, m.bytes+got.Bytes
	}
	if _, err := w.WriteAt(image, m.at); err != nil {
		return err
	}
	m.at, m.before, m.last = m.at+h.Bytes, chain, Position{h.Epoch, h.Last}
	m.next = j.after(m.last)
	if m.ended() {
		return nil
	}
	if m.next.Epoch != h.Epoch { // it goes on at its parent, not at what stands before it
		if err := m.endsBranch(); err != nil {
			return err
		}
		m.before, m.known = find(j.Branches(), m.next.Epoch).Parent.Chain, true
	}
	return m.sample(ctx)
}

// after is the record that was written behind p here; zero when there is none.
func (j *Journal) after(p Position) Position {
	bs := j.Branches()
	for i, b := range bs {
		switch {
		case b.ID != p.Epoch:
		case p.Seq < b.Last.Seq:
			return Position{p.Epoch, p.Seq + 1}
		case i+1 < len(bs) && bs[i+1].Last.Seq >= bs[i+1].First():
			return Position{bs[i+1].ID, bs[i+1].First()}
		}
	}
	return Position{}
}

// endsBranch holds the chain value after the last frame to that of a branch or fork
// that ends there.
func (m *mending) endsBranch() error {
	for _, b := range m.j.Branches() {
		for _, c := range []Cursor{b.Last, b.Parent} {
			if c.Position == m.last && !c.Chain.unknown(c.Seq+1) && c.Chain != m.before {
				return errOtherChain
			}
		}
	}
	return nil
}

// checkEnd holds the chain value at the end to what is known behind it.
func (m *mending) checkEnd(ctx context.Context) error {
	if !m.known {
		return errors.New("no chain value is known here that the frames could be held to")
	}
	if err := m.endsBranch(); err != nil {
		return err
	}
	if m.next.IsZero() || m.next.Epoch != m.last.Epoch {
		return nil // the branch's end says it
	}
	sm, ok, err := m.j.sampleBefore(ctx, m.j.ordinalOf(m.next.Epoch), m.next.Seq)
	if err != nil {
		return err
	}
	if ok && sm.segment == m.n+1 && sm.offset == pageBytes && !sm.before.unknown(m.next.Seq) && sm.before != m.before {
		return errOtherChain
	}
	return nil
}

// pages writes header and trailer, the old ones where they verify, and makes the file
// as long as it was.
func (m *mending) pages(w io.WriterAt, first Position, length int64) error {
	j := m.j
	old := verifier{j: j}
	number := func(e EpochID) uint64 {
		for _, b := range j.Branches() {
			if b.ID == e {
				return b.Number
			}
		}
		return 0
	}
	header, ok, err := old.page(m.n, 0, segmentMagic)
	if err != nil {
		return err
	}
	if !ok || header.Epoch != first.Epoch || header.Seq != first.Seq {
		header = segmentPage{Magic: segmentMagic, Number: m.n, Identity: j.identity, Epoch: first.Epoch, EpochNum: number(first.Epoch), Seq: first.Seq, Time: j.o.Now()}
	}
	trailer, ok, err := old.page(m.n, m.at, trailerMagic)
	if err != nil {
		return err
	}
	if !ok || trailer.Epoch != m.last.Epoch || trailer.Seq != m.last.Seq {
		trailer = segmentPage{Magic: trailerMagic, Number: m.n, Identity: j.identity, Epoch: m.last.Epoch, EpochNum: number(m.last.Epoch), Seq: m.last.Seq, ChainSeq: m.last.Seq, Chain: m.before, Time: j.o.Now()}
	}
	if _, err := w.WriteAt(header.encode(), 0); err != nil {
		return err
	}
	if _, err := w.WriteAt(trailer.encode(), m.at); err != nil {
		return err
	}
	for at := m.at + pageBytes; at < length; at += scanBytes {
		if _, err := w.WriteAt(make([]byte, min(scanBytes, length-at)), at); err != nil {
			return err
		}
	}
	return nil
}
