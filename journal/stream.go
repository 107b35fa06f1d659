package journal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/novacron/afterimage/cbt"
)

// Frame is one frame to be sent as it lies in a segment. Reader yields exactly
// Bytes and is valid until the next call of Next.
type Frame struct {
	First, Last         Position
	FirstTime, LastTime time.Time
	Chain               Chain // after this frame; zero when it is not computed
	Bytes               int64
	Records             int
	Sealed              bool // some record is: its bytes do not shrink, and do not come again
	Reader              io.Reader
}

// Stream yields durable frames along the current lineage, in order. When a fork
// leaves what it has yielded outside the lineage it ends with ErrNotContiguous: the
// two sites must find out anew where they stand. One goroutine uses it.
type Stream struct {
	j     *Journal
	at    spot
	after Position // last record of the lineage that the reader holds
	found bool
	ahead ahead
}

// Stream begins after a record of the current lineage (zero: from the beginning).
// Frames that begin at or before it are sent whole if they end after it.
func (j *Journal) Stream(ctx context.Context, after Position) (*Stream, error) {
	l := j.Lineage()
	if !after.IsZero() && !l.Holds(after) {
		return nil, fmt.Errorf("stream after %s: %w: not in the current lineage", after, ErrNotContiguous)
	}
	return &Stream{j: j, after: after}, ctx.Err()
}

// Next blocks until the next frame is durable. A frame that does not verify is a
// *DamageError; frames of abandoned branches are passed over.
func (s *Stream) Next(ctx context.Context) (Frame, error) {
	for {
		if err := s.waitMore(ctx); err != nil {
			return Frame{}, fmt.Errorf("stream: %w", err)
		}
		if !s.found {
			if err := s.begin(ctx); err != nil {
				return Frame{}, fmt.Errorf("stream: %w", err)
			}
		}
		h, meta, whole, err := s.frame()
		if errors.Is(err, errNoFrame) {
			if s.at, err = s.j.overTrailer(s.at); err == nil {
				continue
			}
		}
		if errors.Is(err, ErrClosed) || errors.Is(err, ErrReclaimed) {
			return Frame{}, fmt.Errorf("stream: %w", err)
		}
		if err != nil {
			return Frame{}, &DamageError{Hop: "stream", Epoch: s.after.Epoch, Seq: s.after.Seq + 1, File: segmentName(s.at.segment), Offset: s.at.offset, What: err.Error()}
		}
		at := s.at
		s.at.offset += h.Bytes
		last, ok := s.wanted(h)
		if !ok {
			continue
		}
		recs, err := decodeRecords(h, meta)
		if err != nil {
			return Frame{}, &DamageError{Hop: "stream", Epoch: h.Epoch, Seq: h.First, File: segmentName(at.segment), Offset: at.offset, What: err.Error()}
		}
		s.after = Position{h.Epoch, last}
		return Frame{
			First: Position{h.Epoch, h.First}, Last: Position{h.Epoch, h.Last}, FirstTime: recs[0].time, LastTime: recs[len(recs)-1].time,
			Bytes: h.Bytes, Records: h.Count, Sealed: h.Features.Incompat&flagSealed != 0, Reader: s.reader(at, h, whole),
		}, nil
	}
}

// waitMore returns once there is a durable record of the lineage after s.after.
func (s *Stream) waitMore(ctx context.Context) error {
	defer s.j.follow()()
	left := false
	err := s.j.waitFor(ctx, func() bool {
		if len(s.j.branches) == 0 {
			return false
		}
		if left = !s.after.IsZero() && !s.j.lineage.Holds(s.after); left {
			return true
		}
		return s.j.durableLocked().Seq > s.after.Seq
	})
	if err == nil && left {
		err = fmt.Errorf("record %s: %w: a fork left it outside the current lineage", s.after, ErrNotContiguous)
	}
	return err
}

// More reports that Next will not wait: the next frame is durable.
func (s *Stream) More() bool {
	s.j.mu.Lock()
	defer s.j.mu.Unlock()
	return len(s.j.branches) > 0 && (s.after.IsZero() || s.j.lineage.Holds(s.after)) && s.j.durableLocked().Seq > s.after.Seq
}

// begin finds the first frame to look at.
func (s *Stream) begin(ctx context.Context) error {
	at, err := s.j.goOnAfter(ctx, s.after)
	if err != nil {
		return err
	}
	s.at, s.found = at, true
	return nil
}

// goOnAfter is where the frames begin that follow on a record of the current lineage
// (zero: all of them). A *ReclaimedError says that not all are there any more.
func (j *Journal) goOnAfter(ctx context.Context, after Position) (spot, error) {
	p, next := j.history(), Position{}
	for _, i := range j.Lineage() {
		if i.Last > after.Seq {
			next = Position{i.Epoch, max(i.First, after.Seq+1)}
			break
		}
	}
	_, folded, _ := j.keptPoint(after)
	switch {
	case !next.IsZero() && p.folded(j.orderOf(next)):
		return spot{}, j.reclaimedAt(next)
	case after.IsZero() || folded:
		return spot{segment: p.state.floor(), offset: pageBytes}, nil
	}
	return j.frameOf(ctx, after)
}

// wanted reports that a frame goes on from s.after in the current lineage, and the
// last of its records that lies in it.
func (s *Stream) wanted(h frameHeader) (Seq, bool) {
	for _, i := range s.j.Lineage() {
		if i.Epoch == h.Epoch {
			last := min(h.Last, i.Last)
			return last, h.First <= i.Last && last > s.after.Seq
		}
	}
	return 0, false
}

// Close frees the stream.
func (s *Stream) Close() error { return nil }

// Replay yields the data records of the current lineage after a seq, in order, as
// events: what brings an image to the head.
func (j *Journal) Replay(ctx context.Context, after Position, each func(Seq, cbt.Event) error) error {
	l, err := j.settled(ctx)
	if err != nil {
		return err
	}
	if !after.IsZero() && !l.Holds(after) {
		return fmt.Errorf("replay after %s: %w: not in the current lineage", after, ErrNotContiguous)
	}
	if len(l) == 0 || lastOf(l).Seq <= after.Seq {
		return nil
	}
	vs, err := j.volumesIn(l)
	if err != nil {
		return err
	}
	byOrdinal := make(map[uint32]volumeBody)
	for _, v := range vs {
		byOrdinal[v.Ordinal] = v
	}
	at, err := j.goOnAfter(ctx, after)
	if err != nil {
		return fmt.Errorf("replay: %w", err)
	}
	for done := after.Seq; done < lastOf(l).Seq; {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, meta, err := j.segs.frameAt(at.segment, at.offset)
		if errors.Is(err, errNoFrame) {
			if at, err = j.overTrailer(at); err == nil {
				continue
			}
		}
		if errors.Is(err, ErrClosed) || errors.Is(err, ErrReclaimed) {
			return fmt.Errorf("replay: %w", err)
		}
		if err != nil {
			return fmt.Errorf("replay: %w", &DamageError{Hop: "read", Seq: done + 1, File: segmentName(at.segment), Offset: at.offset, What: err.Error()})
		}
		if done, err = j.replayFrame(l, at, h, meta, done, byOrdinal, each); err != nil {
			return fmt.Errorf("replay: %w", err)
		}
		at.offset += h.Bytes
	}
	return nil
}

func (j *Journal) replayFrame(l Lineage, at spot, h frameHeader, meta []byte, done Seq, ids map[uint32]volumeBody, each func(Seq, cbt.Event) error) (Seq, error) {
	recs, err := decodeRecords(h, meta)
	if err != nil {
		return done, err
	}
	for i, r := range recs {
		s := h.First + Seq(i)
		if s <= done || !l.Holds(Position{h.Epoch, s}) {
			continue
		}
		done = s
		v := ids[r.volume]
		ev := cbt.Event{Volume: v.ID, Extent: r.extent}
		switch r.kind {
		case KindWrite, KindFill:
			ev.Kind, ev.Data = cbt.EventWrite, nil
			ev.Data, err = j.payloadOf(&r, v.ID, h.Epoch, s, func(p []byte) error { return j.segs.readAt(at.segment, p, at.offset+r.payload) })
			if errors.Is(err, errBadFrame) {
				err = &DamageError{Hop: "read", Volume: ev.Volume, Epoch: h.Epoch, Seq: s, File: segmentName(at.segment), Offset: at.offset + r.payload, What: err.Error()}
			}
			if err != nil {
				return done, err
			}
		case KindZero:
			ev.Kind = cbt.EventZero
		case KindTrim:
			ev.Kind = cbt.EventTrim
		default:
			continue
		}
		if ev.Extent.End() > v.Size { // from before the volume shrank
			ev.Extent.Length = max(v.Size-ev.Extent.Offset, 0)
			ev.Data = ev.Data[:min(int64(len(ev.Data)), ev.Extent.Length)]
		}
		if ev.Extent.Length == 0 {
			continue
		}
		if err := each(s, ev); err != nil {
			return done, err
		}
	}
	return done, nil
}
