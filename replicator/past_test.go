package replicator

import (
	"errors"
	"io"
	"testing"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
)

// inFrame writes until a frame holds several records, and gives one that is not its last.
func (s *three) inFrame(p *place) journal.Position {
	s.Helper()
	for range 1000 {
		var pending []cbt.Pending
		for i := range 8 {
			ev := cbt.Event{Kind: cbt.EventWrite, Volume: s.vol.ID, Data: make([]byte, cbt.CellBytes), Extent: cbt.Extent{Offset: int64(i) * cbt.CellBytes, Length: cbt.CellBytes}}
			fillRandom(s.rng, ev.Data)
			w, err := p.w.Record(s.Context(), ev)
			if err != nil {
				s.Fatal(err)
			}
			pending = append(pending, w)
		}
		for _, w := range pending {
			if err := w.Wait(s.Context()); err != nil {
				s.Fatal(err)
			}
		}
		if err := p.w.WaitDurable(s.Context()); err != nil {
			s.Fatal(err)
		}
		end := p.j.Head().Durable.Position
		frames, err := p.j.Stream(s.Context(), journal.Position{Epoch: end.Epoch, Seq: end.Seq - 8})
		if err != nil {
			s.Fatal(err)
		}
		for {
			f, err := frames.Next(s.Context())
			if err != nil {
				s.Fatal(err)
			}
			if at := max(f.First.Seq, end.Seq-8); at < f.Last.Seq {
				_ = frames.Close() // only read
				return journal.Position{Epoch: end.Epoch, Seq: at}
			}
			if f.Last.Seq >= end.Seq {
				break
			}
		}
		_ = frames.Close() // only read
	}
	s.Fatal("no frame holds two records")
	return journal.Position{}
}

// A replica that began with a point in the middle of a frame is brought on by a delta, and
// goes on with frames, also when the source has folded what is older.
func TestReplicaGoesOnFromWithinAFrame(t *testing.T) {
	s := newThree(t)
	s.reign(s.a, journal.Position{})
	s.write(s.a, 200, "folded")
	if m, err := s.a.j.Maintain(t.Context(), journal.Maintenance{Retention: foldAtOnce, FoldBytes: 1}); err != nil || m.Folded == 0 {
		t.Fatalf("fold: %+v, %v", m, err)
	}
	s.write(s.a, 20, "before")
	at := s.inFrame(s.a)
	s.write(s.a, 20, "after")
	begin(t, s.a.j, s.c.j, at)
	if got := s.c.j.Head().Durable.Position; got != at {
		t.Fatalf("it begins with %s, want %s", got, at)
	}
	s.c.knows(nil, s.a)
	s.c.up(faults{})
	s.a.knows([]*place{s.c})
	s.a.up(faults{})
	s.level(s.a, s.c)
	s.same("by a delta", s.a, s.c, s.a.j.Head().Durable.Position)
	s.same("where it began", s.a, s.c, at)
	s.write(s.a, 20, "on")
	s.level(s.a, s.c)
	s.same("by frames", s.a, s.c, s.a.j.Head().Durable.Position)
	if n := s.a.lagTo("c").FramesMoved; n == 0 {
		t.Error("no frame was sent after the delta")
	}
}

// begin lets an empty journal begin with a point of another.
func begin(t *testing.T, from, to *journal.Journal, at journal.Position) {
	t.Helper()
	d, err := from.OpenPast(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	var l *journal.Landing
	eventually(t, "the journal runs", func() bool {
		l, err = to.OpenLanding(t.Context(), journal.Position{}, nil)
		if err != nil && !errors.Is(err, journal.ErrClosed) {
			t.Fatal(err)
		}
		return err == nil
	})
	defer l.Close()
	r, w := io.Pipe()
	written := make(chan error, 1)
	go func() {
		err := d.Write(t.Context(), w, l.Place())
		written <- errors.Join(err, w.CloseWithError(err))
	}()
	_, err = l.Take(t.Context(), r, d.To())
	if err = errors.Join(err, r.CloseWithError(err), <-written); err != nil {
		t.Fatal(err)
	}
}
