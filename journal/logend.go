package journal

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// Where the log ends: an opening walks from segment to segment until there is no next
// one, or its header is torn; what is left of that is written anew with the first frame.

// nextSegment goes on after a trailer. ended says that the log ends here; the
// place returned has offset 0 when the next frame needs a new segment.
func (j *Journal) nextSegment(at frameEnd) (next frameEnd, ended bool, err error) {
	there, err := exists(j.o.FS, j.segs.path(at.Segment))
	if err != nil {
		return at, true, err
	}
	if !there {
		at.Offset = 0
		return at, true, nil
	}
	if at.Offset > pageBytes {
		_, err := j.pageOf(at.Segment, at.Offset, trailerMagic)
		if err == nil {
			at.Segment, at.Offset = at.Segment+1, pageBytes
			there, err := exists(j.o.FS, j.segs.path(at.Segment))
			if !there {
				at.Offset = 0
			}
			return at, !there, err
		}
		if !torn(err) && !errors.Is(err, errNoFrame) && !errors.Is(err, ErrIncompatible) {
			return at, true, err
		}
	}
	return at, true, j.checkHeader(at.Segment)
}

// checkHeader refuses a segment that is not ours; a torn header of a new one passes.
func (j *Journal) checkHeader(n uint64) error {
	page := make([]byte, pageBytes)
	if err := j.segs.readAt(n, page, 0); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	p, err := decodeSegmentPage(page, segmentMagic)
	switch {
	case errors.Is(err, ErrIncompatible):
		return err
	case err != nil:
		return nil // written before it was synced; rewritten with the first frame
	case p.Identity != j.identity || p.Number != n:
		return fmt.Errorf("%w: segment %s is group %s's number %d", ErrWrongJournal, segmentName(n), p.Identity.Group.Short(), p.Number)
	}
	j.readOnly = j.readOnly || p.Features.readOnly()
	return nil
}

// endAt makes a place the end of the log, where the next frame goes.
func (j *Journal) endAt(at frameEnd, fresh bool) error {
	j.out = output{number: at.Segment, at: at.Offset, fresh: fresh, tail: j.chained[len(j.chained)-1].Position}
	if fresh {
		j.out.at = pageBytes
	}
	there, err := exists(j.o.FS, j.segs.path(at.Segment))
	if err != nil {
		return err
	}
	if !there || (at.Offset == pageBytes && at.Segment >= 1) {
		j.out.fresh = true // an empty segment gets its header again
	}
	return nil
}
