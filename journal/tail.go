package journal

import (
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

func (j *Journal) tailLost(at frameEnd) error {
	return fmt.Errorf("%w: after record %d, in %s at offset %d, though later records say it had been durable", ErrTailLost, j.written, segmentName(at.Segment), at.Offset)
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
	return fmt.Errorf("%w: record %d, in %s at offset %d: %w", ErrTailLost, at.Seq, segmentName(at.StartSegment), at.Start, err)
}

// provenLater looks behind a place for proof that record s of the newest epoch, or
// what stood at the place, had been durable: a later segment, for one is synced
// before the next is made; a frame of a reign of this site which says so; or one of
// a reign that is not known yet, for its first record was durable before its second
// was written. What a received frame says of durability was true at its source.
func (j *Journal) provenLater(segment uint64, off int64, s Seq) bool {
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
	newest := len(j.branches)
	page := make([]byte, pageBytes)
	for off = (off + pageBytes - 1) &^ (pageBytes - 1); j.segs.readAt(segment, page, off) == nil; off += pageBytes {
		if string(page[:4]) != frameMagic {
			continue
		}
		h, _, err := j.segs.frameAt(segment, off)
		if err != nil || h.Identity != j.identity || !slices.Contains(ids, h.Epoch) {
			continue
		}
		switch int(j.ordinalOf(h.Epoch)) {
		case 0:
			return true
		case newest:
			if h.First > s && h.Durable >= s {
				return true
			}
		}
	}
	return false
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
		return fmt.Errorf("%w: the journal was closed at record %d of epoch %s and ends at %d", ErrTailLost, a.Seq, a.Epoch.Short(), j.written)
	}
	return nil
}

// closeCleanly flushes the index and anchors the head.
func (j *Journal) closeCleanly() error {
	if j.through.Seq > 0 { // the next opening reads nothing again
		j.mu.Lock()
		j.through.Durable = j.chained[0]
		j.mu.Unlock()
		if err := j.db.Set([]byte(keyThrough), encodeBody(j.through), pebble.NoSync); err != nil {
			return fmt.Errorf("write index: %w", err)
		}
	}
	if err := j.db.Flush(); err != nil {
		return fmt.Errorf("flush index: %w", err)
	}
	if err := j.site.remember(anchorKey, j.Head().Durable); err != nil {
		return fmt.Errorf("anchor head: %w", err)
	}
	return nil
}
