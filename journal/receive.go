package journal

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// AppendFrame is the replica's side: it reads one frame of size bytes from r, as
// stored at the peer, verifies identity, order, every byte and the chain, and
// appends it. claimed, unless zero, must be the chain value after it. It returns
// where the journal stands then; dup says that the frame was held already and was
// only read. The frame is durable when WaitDurable says so.
//
// Errors: ErrLowerEpoch, ErrNotContiguous, ErrUnknownParent, ErrWrongJournal,
// ErrIncompatible, ErrReadOnly, ErrFull, ErrFenced once a Writer is in charge,
// *DamageError, what r returns. After any of them the journal is as before: the
// header, without which there is no frame, is written last, or with all the rest. One
// caller at a time; r may block without holding up anybody else.
func (j *Journal) AppendFrame(ctx context.Context, r io.Reader, size int64, claimed Chain) (c Cursor, dup bool, err error) {
	c, dup, err = j.appendFrame(ctx, r, size, claimed)
	if err != nil {
		return Cursor{}, false, fmt.Errorf("append frame: %w", err)
	}
	return c, dup, nil
}

func (j *Journal) appendFrame(ctx context.Context, r io.Reader, size int64, claimed Chain) (Cursor, bool, error) {
	h, meta, recs, err := readMeta(r, size)
	if err != nil {
		return Cursor{}, false, err
	}
	if h.Identity != j.identity {
		return Cursor{}, false, ErrWrongJournal
	}
	if held, err := j.holds(h); err != nil || held {
		if err == nil {
			_, err = io.CopyN(io.Discard, r, size-int64(len(meta)))
		}
		return Cursor{Position: Position{h.Epoch, h.Last}}, held, noEOF(err)
	}
	a, err := j.admit(ctx, h, recs)
	if err != nil {
		return Cursor{}, false, err
	}
	if err := j.waitSynced(ctx, h); err != nil {
		return Cursor{}, false, err
	}
	if err := j.land(a); err != nil {
		return Cursor{}, false, err
	}
	if h.Bytes <= wholeFrameBytes {
		a.whole = takePages(h.Bytes)
		defer a.whole.free()
	}
	chain, bad, err := frameScan(h, recs, meta, a.before, r, j.o.faults.headerOnlyCRC, func(p []byte, at int64) error {
		switch {
		case a.whole != nil:
			copy(a.whole.b[at:], p)
			return nil
		case at == 0:
			return nil // the header goes last
		}
		return j.fill(a, p, at)
	})
	switch {
	case errors.Is(err, errBadFrame):
		return Cursor{}, false, damaged(h, err)
	case err != nil:
		return Cursor{}, false, err
	case bad >= 0:
		return Cursor{}, false, &DamageError{Hop: "receive", Volume: j.volumeOf(recs[bad].volume), Epoch: h.Epoch, Seq: h.First + Seq(bad), Offset: recs[bad].payload, What: damagedBytes}
	case claimed != Chain{} && claimed != chain:
		return Cursor{}, false, &DamageError{Hop: "receive", Epoch: h.Epoch, Seq: h.First, What: "chain value differs from the sender's"}
	}
	if err := j.accept(a, meta, chain); err != nil {
		return Cursor{}, false, err
	}
	return Cursor{Position{h.Epoch, h.Last}, chain}, false, nil
}

// readMeta reads and checks header and records.
func readMeta(r io.Reader, size int64) (frameHeader, []byte, []*record, error) {
	meta := make([]byte, frameHeaderBytes)
	if _, err := io.ReadFull(r, meta); err != nil {
		return frameHeader{}, nil, nil, noEOF(err)
	}
	h, err := decodeFrameHeader(meta)
	if err == nil && h.foreign == 0 && h.Bytes != size {
		err = badFrame("%d bytes announced, %d in its header", size, h.Bytes)
	}
	if err != nil {
		return h, nil, nil, damaged(h, err)
	}
	meta = append(meta, make([]byte, h.MetaBytes-frameHeaderBytes)...)
	if _, err := io.ReadFull(r, meta[frameHeaderBytes:]); err != nil {
		return h, nil, nil, noEOF(err)
	}
	if err := checkMeta(h, meta); err != nil {
		return h, nil, nil, damaged(h, err)
	}
	rs, err := decodeRecords(h, meta)
	if err != nil {
		return h, nil, nil, damaged(h, err)
	}
	return h, meta, pointers(rs), nil
}

func damaged(h frameHeader, err error) error {
	if errors.Is(err, ErrIncompatible) {
		return err
	}
	return &DamageError{Hop: "receive", Epoch: h.Epoch, Seq: h.First, What: err.Error()}
}

// holds reports that a frame is here already.
func (j *Journal) holds(h frameHeader) (bool, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.readOnly || h.Features.readOnly():
		return false, ErrReadOnly
	case j.err != nil:
		return false, j.err
	case !j.running || j.closing:
		return false, ErrClosed
	}
	n := len(j.branches)
	o := int(j.ordinalLocked(h.Epoch))
	if o == 0 {
		if n > 0 && h.Number <= j.branches[n-1].Number {
			return false, fmt.Errorf("%w: epoch %d after %d", ErrLowerEpoch, h.Number, j.branches[n-1].Number)
		}
		return false, nil
	}
	end := j.branches[o-1].Last.Seq
	if o == n {
		end = j.written
	}
	if h.Last <= end {
		return true, nil
	}
	if o < n {
		return false, fmt.Errorf("%w: epoch %d after %d", ErrLowerEpoch, h.Number, j.branches[n-1].Number)
	}
	return false, nil
}

// wholeFrameBytes: frames up to here are written once they are whole, in one go.
const wholeFrameBytes = 256 << 10

// arrival is a frame on its way into a segment.
type arrival struct {
	h       frameHeader
	recs    []*record
	before  Chain
	begins  *Epoch // it begins this epoch
	fork    forkPoint
	segment uint64 // where it lands
	offset  int64
	whole   *pages // all of it, until it is written; nil: what comes is written
}

// admit decides whether a frame goes on from what is held.
func (j *Journal) admit(ctx context.Context, h frameHeader, recs []*record) (*arrival, error) {
	if err := j.mayReceive(); err != nil {
		return nil, err
	}
	if recs[0].kind == KindEpoch { // the epoch before must be whole before another begins
		if err := j.drain(ctx); err != nil {
			return nil, err
		}
	} else if err := j.waitFor(ctx, func() bool { return j.chained[len(j.chained)-1].Seq >= j.written }); err != nil {
		return nil, err // the chain value before it must be known first
	}
	a := &arrival{h: h, recs: recs}
	if err := j.checkKeys(h, recs); err != nil {
		return nil, damaged(h, err)
	}
	var err error
	j.mu.Lock()
	a.begins, a.before, err = j.follows(h, recs)
	differs := err == nil && a.begins == nil && j.recent.contradicts(h)
	j.mu.Unlock()
	if differs {
		return nil, &DamageError{Hop: "receive", Epoch: h.Epoch, Seq: h.ChainSeq, What: "the sender's chain value differs from ours"}
	}
	if err != nil || a.begins == nil {
		return a, err
	}
	parent := a.begins.Parent
	if a.fork, err = j.forkAt(ctx, parent.Position); err != nil || parent.IsZero() {
		return a, err
	}
	ours, err := j.chainOf(ctx, parent.Position)
	if err == nil && ours != parent.Chain { // same names over different bytes
		err = &DamageError{Hop: "receive", Epoch: h.Epoch, Seq: h.First, What: "the parent's chain value differs from ours"}
	}
	return a, err
}

// land finds the place for a frame.
func (j *Journal) land(a *arrival) error {
	j.fileMu.Lock()
	defer j.fileMu.Unlock()
	if err := j.mayReceive(); err != nil {
		return err
	}
	data := false
	for _, r := range a.recs {
		data = data || r.kind.hasPayload()
	}
	j.mu.Lock()
	total := j.usedLocked() + a.h.Bytes
	j.mu.Unlock()
	if q := j.o.QuotaBytes; data && q > 0 && total > q {
		return fmt.Errorf("quota of %d bytes: %w", q, ErrFull)
	}
	if err := j.outcome(j.makeRoom(a.h, data)); err != nil {
		return err
	}
	j.passCache(false)
	a.segment, a.offset = j.out.number, j.out.at
	return nil
}

// mayReceive is why no frame may be received, or nil.
func (j *Journal) mayReceive() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.err != nil:
		return j.err
	case !j.running || j.closing:
		return ErrClosed
	case j.writer != nil:
		return fmt.Errorf("%w: this site is the primary", ErrFenced)
	}
	return nil
}

// outcome makes a failure to write terminal, but for a lack of space.
func (j *Journal) outcome(err error) error {
	if err == nil || errors.Is(err, ErrFull) {
		return err
	}
	return j.fail(fmt.Errorf("write received frame: %w", err))
}

// fill writes a part of a frame to its place.
func (j *Journal) fill(a *arrival, p []byte, at int64) error {
	j.fileMu.Lock()
	defer j.fileMu.Unlock()
	if err := j.mayReceive(); err != nil {
		return err
	}
	_, err := j.out.file.WriteAt(p, a.offset+at)
	return j.outcome(fullOr(err))
}

// accept writes a verified frame's header, or all of it, and makes it the newest frame.
// Its chain value is known: what comes next need not wait for finishLoop.
func (j *Journal) accept(a *arrival, meta []byte, chain Chain) error {
	j.fileMu.Lock()
	defer j.fileMu.Unlock()
	if err := j.mayReceive(); err != nil {
		return err
	}
	if a.begins != nil {
		if err := j.mayForkAt(a.begins.Parent.Position); err != nil {
			return err
		}
	}
	last := meta
	if a.whole != nil {
		last = a.whole.b
	}
	if _, err := j.out.file.WriteAt(last, a.offset); err != nil {
		return j.outcome(fullOr(err))
	}
	j.mu.Lock()
	if a.begins != nil {
		_ = j.beginLocked(*a.begins, a.fork) // its record is written
	}
	w := &written{ordinal: uint32(len(j.branches)), h: a.h, recs: a.recs, segment: a.segment, offset: a.offset, chain: chain, end: a.recs[len(a.recs)-1].time}
	w.h.Chain = a.before
	w.received = true
	j.unindexed += int64(w.h.MetaBytes)
	j.next = a.h.Last + 1
	for _, r := range a.recs {
		j.learnKey(r) // the next frame may be sealed with it
		if r.kind == KindVolume {
			var b volumeBody
			if decodeBody(r.body, &b) == nil {
				j.volumes[b.ID] = b
				j.ordinals = max(j.ordinals, b.Ordinal)
			}
		}
	}
	j.lastTime = later(j.lastTime, w.end)
	j.goOn(w)
	j.arriveLocked(w)
	j.unsynced.file = j.out.file
	j.pushEnd(w)
	j.broadcastLocked()
	j.mu.Unlock()
	j.handOn(w)
	j.wakeSyncer()
	j.hurrySync()
	return nil
}
