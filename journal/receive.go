package journal

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// AppendFrame is the replica's side: it reads one frame of size bytes from r, as
// stored at the peer, verifies identity, order, every cell and the chain, and
// appends it. claimed, unless zero, must be the chain value after it. It returns
// where the journal stands then; dup says that the frame was held already and was
// only read. The frame is durable when WaitDurable says so.
//
// Errors: ErrLowerEpoch, ErrNotContiguous, ErrUnknownParent, ErrWrongJournal,
// ErrIncompatible, ErrFull, ErrFenced while a Writer is in charge, *DamageError.
// After any error the journal is as before. One caller at a time.
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
	if recs[0].kind == KindEpoch {
		// The epoch before must be whole before another begins.
		if err := j.drain(ctx); err != nil {
			return Cursor{}, false, err
		}
	}
	j.fileMu.Lock()
	defer j.fileMu.Unlock()
	e, before, err := j.admit(h, recs)
	if err != nil {
		return Cursor{}, false, err
	}
	if err := j.makeRoom(h, true); err != nil {
		return Cursor{}, false, err
	}
	chain, bad, err := frameScan(h, recs, meta, before, r, j.o.faults.headerOnlyCRC, func(p []byte, at int64) error {
		_, err := j.out.file.WriteAt(p, j.out.at+at)
		return fullOr(err)
	})
	switch {
	case err != nil:
		return Cursor{}, false, err
	case bad >= 0:
		return Cursor{}, false, &DamageError{Hop: "receive", Volume: j.volumeOf(recs[bad].volume), Epoch: h.Epoch, Seq: h.First + Seq(bad), Offset: recs[bad].payload, What: "checksum of a cell differs"}
	case claimed != Chain{} && claimed != chain:
		return Cursor{}, false, &DamageError{Hop: "receive", Epoch: h.Epoch, Seq: h.First, What: "chain value differs from the sender's"}
	}
	if err := j.accept(h, recs, e, chain); err != nil {
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
	if err == nil && h.Bytes != size {
		err = badFrame("%d bytes announced, %d in its header", size, h.Bytes)
	}
	if err != nil {
		return h, nil, nil, damaged(err)
	}
	meta = append(meta, make([]byte, h.MetaBytes-frameHeaderBytes)...)
	if _, err := io.ReadFull(r, meta[frameHeaderBytes:]); err != nil {
		return h, nil, nil, noEOF(err)
	}
	if err := checkMeta(meta); err != nil {
		return h, nil, nil, damaged(err)
	}
	rs, err := decodeRecords(h, meta)
	if err != nil {
		return h, nil, nil, damaged(err)
	}
	return h, meta, pointers(rs), nil
}

func damaged(err error) error {
	if errors.Is(err, ErrIncompatible) {
		return err
	}
	return &DamageError{Hop: "receive", What: err.Error()}
}

// holds reports that a frame is here already.
func (j *Journal) holds(h frameHeader) (bool, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.readOnly:
		return false, ErrReadOnly
	case j.err != nil:
		return false, j.err
	case !j.running || j.closing:
		return false, ErrClosed
	}
	o := j.ordinalLocked(h.Epoch)
	if o == 0 {
		return false, nil
	}
	end := j.branches[o-1].Last.Seq
	if int(o) == len(j.branches) {
		end = j.written
	}
	if h.Last <= end {
		return true, nil
	}
	if int(o) < len(j.branches) {
		return false, fmt.Errorf("%w: epoch %d after %d", ErrLowerEpoch, h.Number, j.branches[len(j.branches)-1].Number)
	}
	return false, nil
}

// admit decides whether a frame goes on from what is held. fileMu is held.
func (j *Journal) admit(h frameHeader, recs []*record) (*Epoch, Chain, error) {
	j.mu.Lock()
	if j.writer != nil {
		j.mu.Unlock()
		return nil, Chain{}, fmt.Errorf("%w: this site is the primary", ErrFenced)
	}
	n := len(j.branches)
	same := n > 0 && j.branches[n-1].ID == h.Epoch
	j.mu.Unlock()
	if same { // the chain value before it must be known first
		if err := j.waitFor(context.Background(), func() bool { return j.chained[len(j.chained)-1].Seq >= j.written }); err != nil {
			return nil, Chain{}, err
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	e, before, err := j.follows(h, recs)
	if err != nil || e == nil || e.Parent.IsZero() {
		return e, before, err
	}
	for _, b := range j.branches { // same names over different bytes are found here
		if b.Last.Position == e.Parent.Position && b.Last.Chain != e.Parent.Chain {
			return nil, Chain{}, &DamageError{Hop: "receive", Epoch: h.Epoch, Seq: h.First, What: "the parent's chain value differs from ours"}
		}
	}
	return e, before, nil
}

// accept makes a frame that lies in the segment the newest one.
func (j *Journal) accept(h frameHeader, recs []*record, e *Epoch, chain Chain) error {
	if e != nil {
		if err := j.beginReceived(*e); err != nil {
			return err
		}
	}
	j.mu.Lock()
	w := &written{ordinal: uint32(len(j.branches)), h: h, recs: recs, segment: j.out.number, offset: j.out.at, chain: chain, end: recs[len(recs)-1].time}
	j.next = h.Last + 1
	for _, r := range recs {
		if r.kind == KindVolume {
			var b volumeBody
			if decodeBody(r.body, &b) == nil {
				j.volumes[b.ID] = b
				j.ordinals = max(j.ordinals, b.Ordinal)
			}
		}
	}
	j.lastTime = later(j.lastTime, w.end)
	j.mu.Unlock()
	j.advance(w, nil)
	return nil
}

// beginReceived is fork for an epoch that another site began.
func (j *Journal) beginReceived(e Epoch) error {
	l, err := j.lineageAt(e.Parent.Position)
	if err != nil {
		return err
	}
	volumes, err := j.volumesIn(l)
	if err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if d := j.durableLocked().Cursor; len(j.branches) > 0 && d.Epoch == j.branches[len(j.branches)-1].ID {
		j.branches[len(j.branches)-1].Last = d
	}
	end := j.chained[len(j.chained)-1]
	end.Cursor, end.Start, end.Epochs = e.Parent, 0, len(j.branches)
	j.branches = append(j.branches, Branch{Epoch: e, Last: e.Parent})
	j.lineage = append(l, Interval{e.ID, e.Number, e.First(), e.Parent.Seq})
	j.chained = []frameEnd{end}
	j.written, j.synced, j.indexed = e.Parent.Seq, e.Parent.Seq, e.Parent.Seq
	j.volumes = volumes
	return nil
}
