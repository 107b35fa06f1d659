package replicator

import (
	"bytes"
	"context"
	"io"
	"sync/atomic"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/replicator/replicatortest"
)

func bytesReader(b []byte) io.Reader { return bytes.NewReader(b) }

// flipped is a source whose frames lose a bit on their way, while flip is set.
type flipped struct {
	*replicatortest.Journal
	flip atomic.Bool
}

func (f *flipped) Stream(ctx context.Context, after journal.Position) (flippedFrames, error) {
	s, err := f.Journal.Stream(ctx, after)
	return flippedFrames{s, f}, err
}

type flippedFrames struct {
	*replicatortest.Stream
	of *flipped
}

func (s flippedFrames) Next(ctx context.Context) (journal.Frame, error) {
	f, err := s.Stream.Next(ctx)
	if err != nil || !s.of.flip.Load() {
		return f, err
	}
	raw, err := io.ReadAll(f.Reader)
	if err != nil {
		return f, err
	}
	raw[len(raw)-1] ^= 1
	f.Reader = bytes.NewReader(raw)
	return f, nil
}
