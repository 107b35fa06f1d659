package replicator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"testing/iotest"
	"time"

	"github.com/novacron/afterimage/journal"
)

// spoiled is a source with a frame that cannot be read.
type spoiled struct {
	Source
	at     journal.Seq // where the frame begins
	within bool        // it shows in the middle of it, and before it otherwise
}

func (s spoiled) Stream(ctx context.Context, after journal.Position) (Frames, error) {
	f, err := s.Source.Stream(ctx, after)
	return &spoiledFrames{f, s}, err
}

type spoiledFrames struct {
	Frames
	of spoiled
}

func (f *spoiledFrames) More() bool { return followed(f.Frames) }

func (f *spoiledFrames) Next(ctx context.Context) (journal.Frame, error) {
	frame, err := f.Frames.Next(ctx)
	if err != nil || frame.First.Seq < f.of.at {
		return frame, err
	}
	damage := &journal.DamageError{Hop: "stream", Epoch: frame.First.Epoch, Seq: frame.First.Seq, What: "planted"}
	if !f.of.within {
		return journal.Frame{}, damage
	}
	frame.Reader = io.MultiReader(io.LimitReader(frame.Reader, frame.Bytes/2), iotest.ErrReader(damage))
	return frame, nil
}

// What lies before a frame that cannot be read is durable at the replica by the time that
// the source says so, whichever way it is sent, and nothing of the frame comes.
func TestFramesBeforeAnUnreadableOneAreSent(t *testing.T) {
	const frames, bad = 12, 9
	for _, packing := range []Packing{PackOff, PackAlways} {
		for _, within := range []bool{false, true} {
			t.Run(fmt.Sprintf("packing %d, within %v", packing, within), func(t *testing.T) {
				p := newPair(t)
				p.source.o.Packing = packing
				for i := range frames {
					p.from.Append(make([]byte, 1000+i), 1, time.Now())
				}
				source := spoiled{JournalSource(p.from), p.from.Frames()[bad].First, within}
				p.source.o.Groups = func() []Group {
					return []Group{{Tenant: tenant, Name: group, Source: source, Peers: []string{"b"}}}
				}
				told := make(chan journal.Position, 1)
				p.source.o.Events.Ended = func(_ string, _ Direction, _, _ string, err error) {
					if damage := (*journal.DamageError)(nil); errors.As(err, &damage) {
						select {
						case told <- p.to.Head().Durable.Position:
						default:
						}
					}
				}
				p.up()
				select {
				case got := <-told:
					if want := p.from.Frames()[bad-1].Last; got.Seq != want {
						t.Errorf("when it is told the replica holds %d, want %d", got.Seq, want)
					}
				case <-time.After(patience):
					t.Fatalf("nobody is told; the source: %+v", p.source.lag())
				}
				eventually(t, "the session ends at the replica", func() bool { return len(p.replica.endings()) > 0 })
				if err := p.replica.endings()[0]; errors.Is(err, ErrProtocol) {
					t.Errorf("it ends with %v", err)
				}
				p.sameFrames()
				if n := len(p.to.Frames()); n != bad {
					t.Errorf("the replica holds %d frames, want %d", n, bad)
				}
			})
		}
	}
}

// endings are how sessions ended at an end.
func (e *endpoint) endings() []error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.ended)
}
