package replicator

import (
	"context"
	"io"

	"github.com/novacron/afterimage/journal"
)

// Source is the journal of a group at its primary. Its methods are called from
// several goroutines. Values must be comparable: a changed Source of a group
// restarts its stream. JournalSource makes one from a *journal.Journal.
type Source interface {
	Identity() journal.Identity
	Head() journal.Head
	Branches() []journal.Branch
	Stream(ctx context.Context, after journal.Position) (Frames, error)
}

// Frames yields durable frames in order; see journal.Stream. One that has a method
// More() bool reports by it that Next will not wait.
type Frames interface {
	Next(ctx context.Context) (journal.Frame, error)
	Close() error
}

// Replica is the journal of a group at a site that receives it;
// *journal.Journal is one. One session at a time appends.
type Replica interface {
	Identity() journal.Identity
	Head() journal.Head
	Branches() []journal.Branch
	AppendFrame(ctx context.Context, r io.Reader, bytes int64, claimed journal.Chain) (journal.Cursor, bool, error)
	WaitDurable(ctx context.Context, s journal.Position) error
}

// BlockReplica is a Replica that gives back stored bytes of frames that it appended:
// what comes again is sent to it as a reference. What is read is not trusted.
type BlockReplica interface {
	Replica
	NewestFrame() journal.FramePlace
	ReadFrame(at journal.FramePlace, p []byte, off int64) error
}

var _ BlockReplica = (*journal.Journal)(nil)

// streamer is Source with the concrete stream type of its implementation.
type streamer[F Frames] interface {
	comparable
	Identity() journal.Identity
	Head() journal.Head
	Branches() []journal.Branch
	Stream(ctx context.Context, after journal.Position) (F, error)
}

// JournalSource is j as a Source. Two calls with the same j give equal values.
func JournalSource[F Frames, J streamer[F]](j J) Source { return journalSource[F, J]{j} }

type journalSource[F Frames, J streamer[F]] struct{ j J }

func (s journalSource[F, J]) Identity() journal.Identity { return s.j.Identity() }
func (s journalSource[F, J]) Head() journal.Head         { return s.j.Head() }
func (s journalSource[F, J]) Branches() []journal.Branch { return s.j.Branches() }

func (s journalSource[F, J]) Stream(ctx context.Context, after journal.Position) (Frames, error) {
	frames, err := s.j.Stream(ctx, after)
	if err != nil {
		return nil, err
	}
	return frames, nil
}
