package journal

import (
	"context"
	"errors"
	"fmt"
	"os"
)

// Verify reads every segment up to the durable end as of the call and checks each
// page, header, record, payload and chain value. It returns all damage it found, in
// the order of the files, and an error only when it could not go on. progress, if
// not nil, is told the bytes done and the bytes there are.
func (j *Journal) Verify(ctx context.Context, progress func(done, total int64)) ([]DamageError, error) {
	j.mu.Lock()
	v := verifier{j: j, end: j.chained[0]}
	j.mu.Unlock()
	if v.end.Segment == 0 {
		return nil, nil
	}
	var done int64
	for n := uint64(1); n <= v.end.Segment; n++ {
		if err := v.segment(ctx, n); err != nil {
			return v.found, fmt.Errorf("verify segment %s: %w", segmentName(n), err)
		}
		done += v.at - pageBytes
		if progress != nil {
			progress(min(done, v.end.Bytes), v.end.Bytes)
		}
	}
	return v.found, nil
}

// verifier walks segments in order. The chain is followed from frame to frame;
// behind damage it is picked up again at the next sample.
type verifier struct {
	j     *Journal
	end   frameEnd
	found []DamageError

	last   Position // of the last frame seen
	chain  Chain    // after it
	known  bool     // chain is to be trusted
	number uint64   // of last's epoch
	recent recent
	at     int64       // in the segment
	life   segmentPage // header of the segment; zero when it is damaged
}

func (v *verifier) damage(n uint64, off int64, what string) *DamageError {
	v.found = append(v.found, DamageError{Hop: "verify", Epoch: v.last.Epoch, Seq: v.last.Seq + 1, File: segmentName(n), Offset: off, What: what})
	return &v.found[len(v.found)-1]
}

// page checks a header or trailer; false when there is none that verifies.
func (v *verifier) page(n uint64, off int64, magic string) (segmentPage, bool, error) {
	b := make([]byte, pageBytes)
	if err := v.j.segs.readAt(n, b, off); err != nil {
		return segmentPage{}, false, missing(err)
	}
	p, err := decodeSegmentPage(b, magic)
	if errors.Is(err, ErrIncompatible) {
		return p, false, err
	}
	return p, err == nil && p.Identity == v.j.identity && p.Number == n, nil
}

// missing is err unless it says that bytes are not there, which is damage.
func missing(err error) error {
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, errNoFrame) || torn(err) {
		return nil
	}
	return err
}

func (v *verifier) segment(ctx context.Context, n uint64) error {
	v.at = pageBytes
	p, ok, err := v.page(n, 0, segmentMagic)
	if err != nil {
		return err
	}
	v.life = p
	if !ok {
		v.life = segmentPage{}
		v.damage(n, 0, "the segment's header is missing or differs from its checksum")
	} else if v.known && v.recent.contradicts(frameHeader{ChainSeq: p.ChainSeq, Chain: p.Chain}) && p.Epoch == v.last.Epoch {
		v.damage(n, 0, "the segment's header names another chain value")
	}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		if n == v.end.Segment && v.at >= v.end.Offset {
			return nil
		}
		h, meta, err := v.j.segs.frameAt(n, v.at)
		if err == nil && h.Identity == v.j.identity && !v.stale(h) {
			if err := v.frame(n, h, meta); err != nil {
				return err
			}
			continue
		}
		if err = missing(err); err != nil {
			return err
		}
		t, ok, err := v.page(n, v.at, trailerMagic)
		if err != nil {
			return err
		}
		if ok {
			if v.known && t.Seq != v.last.Seq {
				v.damage(n, v.at, fmt.Sprintf("the trailer ends at record %d, the segment at %d", t.Seq, v.last.Seq))
			}
			return nil
		}
		v.damage(n, v.at, "no frame, or one whose header or records differ from their checksum")
		v.known = false
		if more, err := v.skip(n); err != nil || !more {
			return err
		}
	}
}

// stale reports that a frame lies before the last one in the log: it is of a former
// life of the segment's file.
func (v *verifier) stale(h frameHeader) bool {
	if h.Epoch == v.last.Epoch {
		return h.First <= v.last.Seq
	}
	return v.life.stale(h) || h.Number < v.number
}

// skip goes to the next page that holds a frame or a trailer; false at the end.
func (v *verifier) skip(n uint64) (bool, error) {
	b := make([]byte, pageBytes)
	for {
		v.at += pageBytes
		if err := v.j.segs.readAt(n, b, v.at); err != nil {
			return false, missing(err)
		}
		if m := string(b[:4]); m == frameMagic {
			h, _, err := v.j.segs.frameAt(n, v.at)
			if err == nil && h.Identity == v.j.identity && !v.stale(h) {
				return true, nil
			}
		} else if m == trailerMagic {
			if _, err := v.j.pageOf(n, v.at, trailerMagic); err == nil {
				return true, nil
			}
		}
	}
}

// frame checks a frame whose header and records are right.
func (v *verifier) frame(n uint64, h frameHeader, meta []byte) error {
	rs, err := decodeRecords(h, meta)
	if err != nil {
		v.damage(n, v.at, err.Error())
		v.known, v.at = false, v.at+h.Bytes
		return missing(err)
	}
	recs := pointers(rs)
	if err := v.follow(n, h, recs[0]); err != nil {
		return err
	}
	if v.known && v.recent.contradicts(h) {
		v.damage(n, v.at, fmt.Sprintf("the frame names another chain value after record %d", h.ChainSeq))
	}
	rest := &sectionOf{v.j.segs, n, v.at + int64(len(meta))}
	chain, bad, err := frameScan(h, recs, meta, v.chain, rest, v.j.o.faults.headerOnlyCRC, func([]byte, int64) error { return nil })
	if err = missing(err); err != nil {
		return err
	}
	if bad >= 0 {
		d := v.damage(n, v.at+recs[bad].payload, damagedBytes)
		d.Epoch, d.Seq, d.Volume = h.Epoch, h.First+Seq(bad), v.j.volumeOf(recs[bad].volume)
		v.known = false
	}
	v.chain, v.last, v.number, v.at = chain, Position{h.Epoch, h.Last}, h.Number, v.at+h.Bytes
	v.recent.push(Cursor{v.last, chain})
	return nil
}

// follow checks that a frame goes on from the last one and sets the chain value
// before it.
func (v *verifier) follow(n uint64, h frameHeader, first *record) error {
	if sm, ok, err := v.j.sampleBefore(v.j.ordinalOf(h.Epoch), h.First); err != nil {
		return err
	} else if ok && sm.segment == n && sm.offset == v.at {
		if v.known && h.Epoch == v.last.Epoch && sm.before != v.chain {
			v.damage(n, v.at, "the index names another chain value before the frame")
		}
		if !v.known || h.Epoch != v.last.Epoch {
			v.recent = recentFrom(Cursor{Position{h.Epoch, h.First - 1}, sm.before})
		}
		v.chain, v.known = sm.before, true
	}
	if first.kind == KindEpoch {
		var e Epoch
		if err := decodeBody(first.body, &e); err != nil {
			v.damage(n, v.at, "the epoch's record does not read")
			return nil
		}
		v.chain, v.known, v.recent = e.Parent.Chain, true, recentFrom(e.Parent)
		return nil
	}
	if h.Epoch != v.last.Epoch || h.First != v.last.Seq+1 {
		if v.known && v.last.Seq > 0 && h.Epoch == v.last.Epoch {
			v.damage(n, v.at, fmt.Sprintf("record %d follows record %d", h.First, v.last.Seq))
		}
	}
	return nil
}
