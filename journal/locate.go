package journal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sort"
	"time"
)

// spot is a frame's place and what is known of it.
type spot struct {
	segment uint64
	offset  int64
	h       frameHeader
	recs    []record
}

// sampleBefore is the newest sample of an epoch at or before seq s. Received frames may
// be durable before the index has them: that is waited for.
func (j *Journal) sampleBefore(ctx context.Context, ordinal uint32, s Seq) (_ sample, _ bool, err error) {
	err = j.waitFor(ctx, func() bool {
		there := !j.running || int(ordinal) != len(j.branches) || j.indexed >= min(s, j.written)
		if !there {
			j.hurry()
		}
		return there
	})
	if err != nil {
		return sample{}, false, err
	}
	it, err := j.iterate(sampleKey(ordinal, 0), sampleKey(ordinal+1, 0))
	if err != nil {
		return sample{}, false, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	if !it.SeekLT(sampleKey(ordinal, s+1)) {
		return sample{}, false, it.Error()
	}
	sm, err := decodeSample(it.Value())
	return sm, err == nil, err
}

// frameOf finds the frame that holds p, walking from the nearest sample over
// headers only.
func (j *Journal) frameOf(ctx context.Context, p Position) (spot, error) {
	if _, folded, _ := j.keptPoint(p); folded {
		return spot{}, fmt.Errorf("find record: %w", j.reclaimedAt(p))
	}
	sm, ok, err := j.sampleBefore(ctx, j.ordinalOf(p.Epoch), p.Seq)
	if err != nil {
		return spot{}, err
	}
	if !ok {
		return spot{}, fmt.Errorf("find record %s: %w", p, ErrUnknownParent)
	}
	at := spot{segment: sm.segment, offset: sm.offset}
	for {
		h, meta, err := j.segs.frameAt(at.segment, at.offset)
		if errors.Is(err, errNoFrame) {
			if at, err = j.overTrailer(at); err == nil {
				continue
			}
		}
		if errors.Is(err, ErrClosed) || errors.Is(err, ErrReclaimed) {
			return spot{}, fmt.Errorf("find record %s: %w", p, err)
		}
		if err != nil {
			return spot{}, &DamageError{Hop: "read", Epoch: p.Epoch, Seq: p.Seq, File: segmentName(at.segment), Offset: at.offset, What: err.Error()}
		}
		if h.Epoch == p.Epoch && h.First <= p.Seq && p.Seq <= h.Last {
			at.h = h
			at.recs, err = decodeRecords(h, meta)
			return at, err
		}
		if h.Epoch == p.Epoch && h.First > p.Seq {
			return spot{}, fmt.Errorf("find record %s: %w", p, ErrNotContiguous)
		}
		at.offset += h.Bytes
	}
}

// overTrailer goes to the next segment if a trailer stands at at.
func (j *Journal) overTrailer(at spot) (spot, error) {
	if _, err := j.pageOf(at.segment, at.offset, trailerMagic); errors.Is(err, io.ErrUnexpectedEOF) {
		return at, fmt.Errorf("segment ends: %w", errNoFrame)
	} else if err != nil {
		return at, err
	}
	return spot{segment: at.segment + 1, offset: pageBytes}, nil
}

// chainOf computes the chain value of the frame that holds p, from the nearest
// sample.
func (j *Journal) chainOf(ctx context.Context, p Position) (Chain, error) {
	for _, b := range j.Branches() {
		if b.Last.Position == p {
			return b.Last.Chain, nil
		}
	}
	if pt, folded, kept := j.keptPoint(p); kept {
		return pt.chain, nil
	} else if folded {
		return Chain{}, fmt.Errorf("compute chain: %w", j.reclaimedAt(p))
	}
	sm, ok, err := j.sampleBefore(ctx, j.ordinalOf(p.Epoch), p.Seq)
	if err != nil || !ok {
		return Chain{}, errors.Join(fmt.Errorf("find record %s: %w", p, ErrUnknownParent), err)
	}
	at, chain := spot{segment: sm.segment, offset: sm.offset}, sm.before
	for {
		h, meta, err := j.segs.frameAt(at.segment, at.offset)
		if errors.Is(err, errNoFrame) {
			if at, err = j.overTrailer(at); err == nil {
				continue
			}
		}
		if err != nil {
			return Chain{}, fmt.Errorf("compute chain: %w", err)
		}
		if h.Epoch != p.Epoch {
			return Chain{}, fmt.Errorf("compute chain: record %s: %w", p, ErrUnknownParent)
		}
		rest := &sectionOf{j.segs, at.segment, at.offset + int64(len(meta))}
		if chain, _, err = frameScan(h, nil, meta, chain, rest, true, func([]byte, int64) error { return nil }); err != nil {
			return Chain{}, fmt.Errorf("compute chain: %w", noEOF(err))
		}
		if p.Seq <= h.Last {
			return chain, nil
		}
		at.offset += h.Bytes
	}
}

// timeAt is the time of record p; zero for the zero Position.
func (j *Journal) timeAt(ctx context.Context, p Position) (time.Time, error) {
	if p.IsZero() {
		return time.Time{}, nil
	}
	if err := j.waitHeld(ctx, p); err != nil {
		return time.Time{}, err
	}
	if pt, _, kept := j.keptPoint(p); kept {
		return pt.time, nil
	}
	if e := j.history().state.End; e.Position == p {
		return e.Time, nil
	}
	s, err := j.frameOf(ctx, p)
	if err != nil {
		return time.Time{}, err
	}
	return s.recs[p.Seq-s.h.First].time, nil
}

// waitHeld returns once reads see p; ErrNoPoint if this journal will never.
func (j *Journal) waitHeld(ctx context.Context, p Position) error {
	j.mu.Lock()
	n := len(j.branches)
	o := int(j.ordinalLocked(p.Epoch))
	written := j.written
	j.mu.Unlock()
	switch {
	case o == 0:
		return &NoPointError{At: p.String(), Why: "no epoch of that name is held here"}
	case o == n && p.Seq > written:
		return &NoPointError{At: p.String(), Why: fmt.Sprintf("the journal ends at record %d", written)}
	case o == n:
		return j.waitIndexed(ctx, n, p.Seq)
	}
	return nil
}

// seqAt is the last record of interval i not later than t.
func (j *Journal) seqAt(ctx context.Context, i Interval, t time.Time) (Seq, bool, error) {
	ordinal := j.ordinalOf(i.Epoch)
	var failed error
	// Samples' times do not decrease with seq: find the first seq whose sample is later.
	n := sort.Search(int(i.Last-i.First)+1, func(k int) bool {
		sm, ok, err := j.sampleBefore(ctx, ordinal, i.First+Seq(k))
		failed = errors.Join(failed, err)
		return ok && sm.time.After(t)
	})
	if failed != nil {
		return 0, false, failed
	}
	if n == 0 {
		return 0, false, nil
	}
	// The answer lies in the stretch after the last sample that is not later.
	s, found := i.First, false
	from := i.First + Seq(n) - 1
	sm, ok, err := j.sampleBefore(ctx, ordinal, from)
	if err != nil || !ok {
		return 0, false, errors.Join(err, ErrNotContiguous)
	}
	at := spot{segment: sm.segment, offset: sm.offset}
	for {
		if s >= i.Last && found { // what follows may be of the file's former life
			return s, found, nil
		}
		h, meta, err := j.segs.frameAt(at.segment, at.offset)
		if errors.Is(err, errNoFrame) {
			if at, err = j.overTrailer(at); err == nil {
				continue
			}
			return 0, false, &DamageError{Hop: "read", Epoch: i.Epoch, Seq: s + 1, File: segmentName(at.segment), Offset: at.offset, What: err.Error()}
		}
		if err != nil {
			return 0, false, err
		}
		if h.Epoch != i.Epoch || h.First > i.Last {
			return s, found, nil
		}
		recs, err := decodeRecords(h, meta)
		if err != nil {
			return 0, false, err
		}
		for k, r := range recs {
			q := h.First + Seq(k)
			if q > i.Last || r.time.After(t) {
				return s, found, nil
			}
			if q >= i.First {
				s, found = q, true
			}
		}
		at.offset += h.Bytes
	}
}

// segmentList is the numbers of all segments here, ascending.
func (j *Journal) segmentList() ([]uint64, error) {
	names, err := j.o.FS.List(j.segs.dir)
	if err != nil {
		return nil, fmt.Errorf("list segments: %w", err)
	}
	var out []uint64
	for _, n := range names {
		if s, ok := parseSegmentName(n); ok {
			out = append(out, s)
		}
	}
	sort.Slice(out, func(a, b int) bool { return out[a] < out[b] })
	return out, nil
}
