package journal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/cockroachdb/pebble/v2"
)

// What tells the torn tail of a crash from the loss of what had been durable.

// torn reports that err, met where a frame was looked for, may be what a crash
// left: half a frame, or a whole one of the place's former life. An error of the
// device, another group's frame or one of a newer version never is.
func torn(err error) bool {
	for _, e := range []error{errBadFrame, io.ErrUnexpectedEOF, ErrNotContiguous, ErrUnknownParent, ErrLowerEpoch} {
		if errors.Is(err, e) {
			return !errors.Is(err, ErrIncompatible)
		}
	}
	return false
}

// formerLife reports that err means a whole frame that does not go on from what is
// held: what a recycled segment held before.
func formerLife(err error) bool {
	return errors.Is(err, ErrNotContiguous) || errors.Is(err, ErrUnknownParent) || errors.Is(err, ErrLowerEpoch)
}

// emptyAt reports that nothing stands at a place: zeros, or the end of the file.
func (j *Journal) emptyAt(at frameEnd) bool {
	page := make([]byte, pageBytes)
	if at.Offset == 0 {
		return true
	}
	if err := j.segs.readAt(at.Segment, page, at.Offset); err != nil {
		size, err := j.segs.size(at.Segment)
		return err == nil && size <= at.Offset
	}
	return allZero(page)
}

// recycledAt reports that a former life of the file goes on behind a place, which shows
// by a frame that is older than the segment's header, or another segment's trailer: what
// stands at the place is most likely of it, too, and no half of a frame.
func (j *Journal) recycledAt(at frameEnd) bool {
	life, err := j.pageOf(at.Segment, 0, segmentMagic)
	if err != nil {
		return false
	}
	page := make([]byte, pageBytes)
	for off := at.Offset; j.segs.readAt(at.Segment, page, off) == nil; off += pageBytes {
		switch string(page[:4]) {
		case frameMagic:
			h, _, err := j.segs.frameAt(at.Segment, off)
			if err == nil && h.Identity == j.identity && life.stale(h) {
				return true
			}
		case trailerMagic:
			t, err := decodeSegmentPage(page, trailerMagic)
			if err == nil && t.Identity == j.identity && t.Number < at.Segment {
				return true
			}
		}
	}
	return false
}

// tornAt notes that the log ends at half a frame: what a crash leaves.
func (j *Journal) tornAt(at frameEnd, err error) {
	j.torn = true
	j.o.Log.Warn("torn tail cut off: the frame was not whole when the machine or process died", "dir", j.dir,
		"segment", segmentName(at.Segment), "offset", at.Offset, "after", j.written, "err", err)
}

// lossAt is what to say of a log that ends at a place behind which more had been
// durable.
func (j *Journal) lossAt(at frameEnd, cause error) error {
	there, err := exists(j.o.FS, j.segs.path(at.Segment))
	if err != nil {
		return err
	}
	if ns, err := j.segmentList(); err == nil && !there && len(ns) > 0 && ns[len(ns)-1] > at.Segment {
		return fmt.Errorf("%w: %s is not there, %s is", ErrMissingSegment, segmentName(at.Segment), segmentName(ns[len(ns)-1]))
	}
	err = fmt.Errorf("%w: after record %d, in %s at offset %d, though later records say it had been durable", ErrTailLost, j.written, segmentName(at.Segment), at.Offset)
	if cause != nil {
		err = fmt.Errorf("%w: %w", err, cause)
	}
	return err
}

// olderFile reports that segment n is a whole file of an earlier time: its header
// and frames verify and it ends, with nothing half written, before off.
func (j *Journal) olderFile(n uint64, off int64) bool {
	page := make([]byte, pageBytes)
	if j.segs.readAt(n, page, 0) != nil {
		return false
	}
	if p, err := decodeSegmentPage(page, segmentMagic); err != nil || p.Identity != j.identity {
		return false
	}
	at := frameEnd{Segment: n, Offset: pageBytes}
	for {
		h, _, err := j.segs.frameAt(n, at.Offset)
		if err != nil {
			return at.Offset > pageBytes && at.Offset <= off && errors.Is(err, errNoFrame) && j.emptyAt(at)
		}
		at.Offset += h.Bytes
	}
}

// checkDurable proves that the last frame the index knew as durable is there.
func (j *Journal) checkDurable(at frameEnd) error {
	if at.Seq == 0 || at.Start == 0 {
		return nil
	}
	h, _, err := j.segs.frameAt(at.StartSegment, at.Start)
	if err == nil && (h.Last != at.Seq || h.Epoch != at.Epoch) {
		err = fmt.Errorf("found epoch %s, records %d to %d", h.Epoch.Short(), h.First, h.Last)
	}
	switch {
	case err == nil:
		j.readOnly = j.readOnly || h.Features.readOnly()
		return nil
	case errors.Is(err, ErrIncompatible):
		return err
	case h.Last == at.Seq && h.Epoch == at.Epoch, j.provenLater(at.Segment, at.Offset, at.Seq):
		// It is there, or was: damage, not a loss. The index knows what it held.
		j.o.Log.Error("damaged frame found at open", "segment", segmentName(at.StartSegment), "offset", at.Start, "err", err)
		return nil
	}
	class := ErrTailLost
	var a Cursor
	if ok, serr := j.site.recall(anchorKey, &a); serr != nil {
		return serr
	} else if ok && a.Position == at.Position && j.olderFile(at.StartSegment, at.Start) {
		class = ErrRolledBack // closed cleanly with it, and nothing is torn
	}
	return fmt.Errorf("%w: record %d, in %s at offset %d: %w", class, at.Seq, segmentName(at.StartSegment), at.Start, err)
}

// provenLater looks behind a place for proof that record s of the newest epoch, or
// what stood at the place, had been durable: a later segment, for one is synced
// before the next is made; a frame of a reign of this site which says so; or one of
// a reign that is not known yet, for its first record was durable before its second
// was written. What a received frame says of durability was true at its source; of
// those, one that lies further behind than frames are ever unsynced is proof.
func (j *Journal) provenLater(segment uint64, off int64, s Seq) bool {
	if j.o.faults.tornMidFile {
		return false
	}
	ns, err := j.segmentList()
	if err != nil {
		j.o.Log.Error("look for later frames", "err", err)
		return true // not knowing is no reason to cut the log here
	}
	if len(ns) > 0 && ns[len(ns)-1] > segment {
		return true
	}
	ids, err := j.reigns()
	if err != nil {
		j.o.Log.Error("look for later frames", "err", err)
		return true
	}
	newest, from := len(j.branches), off
	var number uint64 // of the newest epoch
	if newest > 0 {
		number = j.branches[newest-1].Number
	}
	life, err := j.pageOf(segment, 0, segmentMagic)
	if err != nil {
		life = segmentPage{} // then what is known here tells former lives
	}
	page := make([]byte, pageBytes)
	for off = (off + pageBytes - 1) &^ (pageBytes - 1); j.segs.readAt(segment, page, off) == nil; off += pageBytes {
		if string(page[:4]) != frameMagic {
			continue
		}
		h, _, err := j.segs.frameAt(segment, off)
		if err != nil || h.Identity != j.identity || life.stale(h) {
			continue
		}
		if !slices.Contains(ids, h.Epoch) {
			if off > from+j.o.maxUnsynced() && int(j.ordinalOf(h.Epoch)) == newest && h.First > s {
				return true
			}
			continue
		}
		switch int(j.ordinalOf(h.Epoch)) {
		case 0: // of a lower number it is one that was forgotten, from a former life
			if h.Number > number {
				return true
			}
		case newest:
			if h.First > s && h.Durable >= s {
				return true
			}
		}
	}
	return false
}

// maxUnsynced is how many bytes of received frames may be written and not yet
// durable; a larger frame waits until it is alone.
func (o Options) maxUnsynced() int64 { return min(16<<20, o.SegmentBytes/4) }

// maxUnindexed is how many bytes of received frames' headers and records may wait for
// the index: what they are decoded to is many times that.
const maxUnindexed = 8 << 20

// waitSynced returns once a received frame keeps to maxUnsynced and maxUnindexed.
func (j *Journal) waitSynced(ctx context.Context, h frameHeader) error {
	return j.waitFor(ctx, func() bool {
		if j.unindexed > 0 && j.unindexed+int64(h.MetaBytes) > maxUnindexed && !j.closing {
			endRest(j.urgent.finish)
			return false
		}
		n := len(j.chained)
		unsynced := j.chained[n-1].Bytes - j.chained[0].Bytes
		return j.closing || (j.chained[n-1].Seq >= j.written && (n == 1 || unsynced+h.Bytes <= j.o.maxUnsynced()))
	})
}

// chainNamed is the first chain value at or after record p, which ends a damaged
// frame, that a later frame or trailer of its epoch names, looked for from a place on.
func (j *Journal) chainNamed(p Position, segment uint64, off int64) (Cursor, bool) {
	for end := off + 2*maxPending; off < end; {
		h, _, err := j.segs.frameAt(segment, off)
		if err == nil && h.Identity == j.identity {
			if h.Epoch != p.Epoch {
				return Cursor{}, false
			}
			if h.ChainSeq >= p.Seq {
				return Cursor{Position{p.Epoch, h.ChainSeq}, h.Chain}, true
			}
			off += h.Bytes
			continue
		}
		t, err := j.pageOf(segment, off, trailerMagic)
		if err != nil {
			return Cursor{}, false
		}
		if t.Epoch == p.Epoch && t.ChainSeq >= p.Seq {
			return Cursor{Position{p.Epoch, t.ChainSeq}, t.Chain}, true
		}
		segment, end, off = segment+1, end-off+pageBytes, pageBytes
	}
	return Cursor{}, false
}

// mendChain replaces what was computed over damaged bytes, for the frame that ends
// with p, by what the log says of it. Where the log names only a later frame's value,
// those in between are unknown, zero, and a repair makes them known.
func (j *Journal) mendChain(p Position, computed Chain, damaged bool, segment uint64, off int64) Chain {
	if damaged {
		if c, ok := j.chainNamed(p, segment, off); ok {
			j.resync = c
		} else { // the rest of the epoch
			j.resync = Cursor{Position{p.Epoch, ^Seq(0)}, Chain{}}
		}
	}
	if j.resync.Epoch != p.Epoch || j.resync.Seq < p.Seq {
		j.resync = Cursor{}
		return computed
	}
	if p.Seq < j.resync.Seq {
		return Chain{}
	}
	return j.resync.Chain
}

// mendHead gives the journal's end a chain value where damage took it: that of the
// last clean close. Else there is none, and peers that hold the records tell.
func (j *Journal) mendHead() error {
	last := &j.chained[len(j.chained)-1]
	if !last.Chain.unknown(last.Seq + 1) {
		return nil
	}
	var a Cursor
	ok, err := j.site.recall(anchorKey, &a)
	if err == nil && ok && a.Position == last.Position {
		last.Chain = a.Chain
	}
	return err
}

// anchor is the head at a clean close: less at the next opening is a loss.
const anchorKey = "journal/anchor"

func (j *Journal) checkAnchor() error {
	var a Cursor
	ok, err := j.site.recall(anchorKey, &a)
	if err != nil || !ok || a.IsZero() {
		return err
	}
	if last := j.chained[len(j.chained)-1].Cursor; last.Position == a.Position && last.Chain != a.Chain {
		return &DamageError{Hop: "open", Epoch: a.Epoch, Seq: a.Seq, File: "segments", What: "the head's chain value is not the one the journal was closed with"}
	}
	if j.behind(a.Position) {
		class := ErrRolledBack
		if j.torn {
			class = ErrTailLost
		}
		return fmt.Errorf("%w: the journal was closed at record %d of epoch %s and ends at %d", class, a.Seq, a.Epoch.Short(), j.written)
	}
	return nil
}

// closeCleanly anchors the head and flushes the index.
func (j *Journal) closeCleanly() error {
	// The anchor goes first: the index then knows of it.
	if err := j.site.remember(anchorKey, j.Head().Durable); err != nil {
		return fmt.Errorf("anchor head: %w", err)
	}
	if j.through.Seq > 0 { // the next opening reads nothing again
		j.mu.Lock()
		j.through.Durable = j.chained[0]
		j.mu.Unlock()
		j.through.Site = j.site.count()
		if err := j.copySiteLog(j.db); err != nil {
			return err
		}
		if err := j.db.Set([]byte(keyThrough), encodeBody(j.through), pebble.NoSync); err != nil {
			return fmt.Errorf("write index: %w", err)
		}
	}
	if err := j.db.Flush(); err != nil {
		return fmt.Errorf("flush index: %w", err)
	}
	return nil
}
