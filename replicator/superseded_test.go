package replicator

import (
	"bytes"
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/replicator/replicatortest"
)

// A session that stands at a disk which takes nothing, and whose source has lost it,
// holds the next one up for a moment alone.
func TestSupersededSessionWaitsForNoDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newHeldPair(t, faults{})
		level := func() bool { return p.to.Head().Durable == p.from.Head().Durable }
		eventually(t, "level", level)
		<-time.After(time.Minute) // it lived
		for range 3 {
			p.from.Append(make([]byte, redialFrame), 1, time.Now())
		}
		p.lose()
		lost := time.Now()
		eventually(t, "the next session", func() bool { return p.b.sessions() == 2 })
		if took := time.Since(lost); took >= supersededFor+500*time.Millisecond {
			t.Errorf("it was held up for %v, want %v and what a session takes", took, supersededFor)
		}
		close(p.to.gate)
		eventually(t, "level again", level)
	})
}

func (e *endpoint) sessions() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.streaming
}

// mute is a source that answers no question, while it is.
type mute struct {
	Source
	from  *replicatortest.Journal
	still *atomic.Bool
	asked *atomic.Int32
}

func (m mute) FrameFor(ctx context.Context, p journal.Position) (journal.Frame, error) {
	m.asked.Add(1)
	if m.still.Load() {
		<-ctx.Done()
		return journal.Frame{}, ctx.Err()
	}
	for _, f := range m.from.Frames() {
		if f.Last == p.Seq {
			return journal.Frame{Bytes: int64(len(f.Bytes)), Reader: bytes.NewReader(f.Bytes)}, nil
		}
	}
	return journal.Frame{}, journal.ErrNoPoint
}

func (mute) StoredCells(context.Context, journal.Cells) ([]byte, error) { return nil, ErrUnknownGroup }

// forgetful is a replica that finds no block again.
type forgetful struct{ *replicatortest.Journal }

func (forgetful) NewestFrame() journal.FramePlace { return journal.FramePlace{} }
func (forgetful) ReadFrame(journal.FramePlace, []byte, int64) error {
	return errors.New("read frame: planted")
}

// A session that waits for the source's answer over a connection which the source has lost
// holds the next one up no longer than a connection takes.
func TestSupersededSessionAsksNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := makeHeldPair(t)
		p.a.o.Packing = PackAlways
		p.a.o.IdleTimeout, p.b.o.IdleTimeout = 0, 0 // as shipped: nobody else says that the connection is lost
		of := mute{JournalSource(p.from), p.from, new(atomic.Bool), new(atomic.Int32)}
		p.a.o.Groups = func() []Group {
			return []Group{{Tenant: tenant, Name: group, Source: of, Peers: []string{"b"}}}
		}
		p.b.o.Receive = func(string, journal.Identity, string, string) (Replica, error) { return forgetful{p.to.Journal}, nil }
		p.up(faults{})
		same := bytes.Repeat([]byte{7}, 64<<10)
		p.from.Append(same, 1, time.Now())
		level := func() bool { return p.to.Head().Durable == p.from.Head().Durable }
		eventually(t, "level", level)
		<-time.After(time.Minute) // it lived
		of.still.Store(true)
		p.from.Append(same, 1, time.Now())
		eventually(t, "the replica asks", func() bool { return of.asked.Load() > 0 })
		p.lose()
		of.still.Store(false)
		lost := time.Now()
		eventually(t, "level again", level)
		if took := time.Since(lost); took >= supersededFor {
			t.Errorf("it took %v, want less than %v", took, supersededFor)
		}
	})
}
