// Package replicatortest holds an in-memory twin of a journal, as far as
// replication sees one: frames in epochs, a durable end that lags the written
// one, and a stream of what is durable.
//
// All methods are safe for concurrent use.
package replicatortest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
)

// frameHeadBytes: epoch 16, epoch number 8, first 8, last 8, parent seq 8, parent
// epoch 16, chain before 32, time 8.
const frameHeadBytes = 104

// Frame is one stored group commit.
type Frame struct {
	Epoch         journal.EpochID
	First, Last   journal.Seq
	Before, Chain journal.Chain
	Time          time.Time
	Bytes         []byte // as stored, header and payload
}

// Payload is what was handed to Append.
func (f Frame) Payload() []byte { return f.Bytes[frameHeadBytes:] }

// Journal is the twin. It keeps one history: its abandoned branches are known by
// their end only, not by their frames.
type Journal struct {
	id   journal.Identity
	site string

	mu       sync.Mutex // guards all below
	frames   []Frame    // of the current lineage
	durable  int        // so many of them survive a crash
	manual   bool       // only Sync moves durable
	branches []journal.Branch
	bytes    int64
	changed  chan struct{} // closed and renewed by every change

	// Hold, when set, is called while a frame is appended with the bytes read so
	// far; it may block until ctx ends.
	Hold func(ctx context.Context, read int64) error
	// StreamAll yields frames that are not durable: the planted fault of a source.
	StreamAll bool
}

// New is an empty journal of site.
func New(id journal.Identity, site string) *Journal {
	return &Journal{id: id, site: site, changed: make(chan struct{})}
}

// NewIdentity draws the names of a group.
func NewIdentity() journal.Identity {
	return journal.Identity{Tenant: cbt.NewID(), Group: cbt.NewID(), Stream: cbt.NewID()}
}

func (j *Journal) touch() {
	close(j.changed)
	j.changed = make(chan struct{})
}

// ManualSync makes frames durable only by Sync, from now on.
func (j *Journal) ManualSync() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.manual = true
}

// Sync makes everything durable.
func (j *Journal) Sync() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.syncLocked()
}

func (j *Journal) syncLocked() {
	j.durable = len(j.frames)
	j.touch()
}

// Crash loses what is not durable.
func (j *Journal) Crash() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.frames = j.frames[:j.durable]
	for i := range j.branches {
		b := &j.branches[i]
		b.Last = b.Parent
		for _, f := range j.frames {
			if f.Epoch == b.ID {
				b.Last = end(f)
			}
		}
	}
	j.branches = slices.DeleteFunc(j.branches, func(b journal.Branch) bool { return b.Last == b.Parent })
	j.touch()
}

// BeginEpoch forks a new reign after seq at, dropping what lies beyond it from the
// lineage. at must end a frame. It is durable, with one frame, on return.
func (j *Journal) BeginEpoch(at journal.Seq, now time.Time) journal.EpochID {
	j.mu.Lock()
	defer j.mu.Unlock()
	n := 0
	for n < len(j.frames) && j.frames[n].Last <= at {
		n++
	}
	j.frames = slices.Clone(j.frames[:n])
	var parent journal.Cursor
	if n > 0 {
		parent = end(j.frames[n-1])
	}
	number := uint64(1)
	for _, b := range j.branches {
		number = max(number, b.Number+1)
	}
	e := journal.Epoch{Number: number, ID: journal.EpochID(cbt.NewID()), Parent: parent, Site: j.site, Begun: now}
	j.branches = append(j.branches, journal.Branch{Epoch: e, Last: parent})
	j.appendLocked([]byte("epoch"), 1, now)
	j.syncLocked()
	return e.ID
}

func end(f Frame) journal.Cursor {
	return journal.Cursor{Position: journal.Position{Epoch: f.Epoch, Seq: f.Last}, Chain: f.Chain}
}

// Append writes one frame of n records in the current epoch.
func (j *Journal) Append(payload []byte, n int, now time.Time) journal.Position {
	j.mu.Lock()
	defer j.mu.Unlock()
	f := j.appendLocked(payload, n, now)
	if !j.manual {
		j.durable = len(j.frames)
	}
	j.touch()
	return journal.Position{Epoch: f.Epoch, Seq: f.Last}
}

func (j *Journal) appendLocked(payload []byte, n int, now time.Time) Frame {
	b := &j.branches[len(j.branches)-1]
	last := j.endLocked(len(j.frames))
	f := Frame{Epoch: b.ID, First: last.Seq + 1, Last: last.Seq + journal.Seq(n), Before: last.Chain, Time: now}
	h := make([]byte, frameHeadBytes, frameHeadBytes+len(payload))
	copy(h, f.Epoch[:])
	binary.LittleEndian.PutUint64(h[16:], b.Number)
	binary.LittleEndian.PutUint64(h[24:], uint64(f.First))
	binary.LittleEndian.PutUint64(h[32:], uint64(f.Last))
	binary.LittleEndian.PutUint64(h[40:], uint64(b.Parent.Seq))
	copy(h[48:], b.Parent.Epoch[:])
	copy(h[64:], f.Before[:])
	binary.LittleEndian.PutUint64(h[96:], uint64(now.UnixNano()))
	f.Bytes = append(h, payload...)
	f.Chain = chainOf(f)
	j.takeLocked(f)
	return f
}

func chainOf(f Frame) journal.Chain {
	return sha256.Sum256(append(f.Before[:], f.Bytes...))
}

func (j *Journal) takeLocked(f Frame) {
	j.frames = append(j.frames, f)
	j.bytes += int64(len(f.Bytes))
	for i := range j.branches {
		if j.branches[i].ID == f.Epoch {
			j.branches[i].Last = end(f)
		}
	}
}

// endLocked is the end of the first n frames.
func (j *Journal) endLocked(n int) journal.Cursor {
	if n == 0 {
		return journal.Cursor{}
	}
	return end(j.frames[n-1])
}

// Identity, Head and Branches are as in package journal.
func (j *Journal) Identity() journal.Identity { return j.id }

// Head tells where the lineage ends.
func (j *Journal) Head() journal.Head {
	j.mu.Lock()
	defer j.mu.Unlock()
	h := journal.Head{Position: j.endLocked(len(j.frames)).Position, Durable: j.endLocked(j.durable), Bytes: j.bytes}
	if n := len(j.frames); n > 0 {
		h.Time = j.frames[n-1].Time
	}
	if n := len(j.branches); n > 0 {
		h.Number = j.branches[n-1].Number
	}
	return h
}

// Branches is every epoch held, oldest first.
func (j *Journal) Branches() []journal.Branch {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.branches)
}

// Frames is the current lineage.
func (j *Journal) Frames() []Frame {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.frames)
}

// WaitDurable returns once s is durable. Unless syncing is manual, it makes it so.
func (j *Journal) WaitDurable(ctx context.Context, s journal.Position) error {
	for {
		j.mu.Lock()
		if !j.manual && j.durable < len(j.frames) {
			j.syncLocked()
		}
		durable, changed := j.endLocked(j.durable), j.changed
		j.mu.Unlock()
		if durable.Seq >= s.Seq {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Wait returns once ok holds of the journal; it is asked after every change.
func (j *Journal) Wait(ctx context.Context, ok func(journal.Head) bool) error {
	for {
		j.mu.Lock()
		changed := j.changed
		j.mu.Unlock()
		if ok(j.Head()) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for journal of %s at %v: %w", j.site, j.Head().Position, ctx.Err())
		}
	}
}

// Stream yields frames after a position of the lineage.
func (j *Journal) Stream(_ context.Context, after journal.Position) (*Stream, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	n := 0
	for n < len(j.frames) && j.frames[n].Last <= after.Seq {
		n++
	}
	if at := j.endLocked(n); at.Position != after {
		return nil, fmt.Errorf("stream after %v: %w", after, journal.ErrNotContiguous)
	}
	return &Stream{j: j, next: n}, nil
}

// Stream is one reader of a Journal.
type Stream struct {
	j    *Journal
	next int
}

// Next blocks until there is a durable frame.
func (s *Stream) Next(ctx context.Context) (journal.Frame, error) {
	for {
		s.j.mu.Lock()
		limit, changed := s.j.durable, s.j.changed
		if s.j.StreamAll {
			limit = len(s.j.frames)
		}
		if s.next < limit {
			f := s.j.frames[s.next]
			s.next++
			s.j.mu.Unlock()
			return journal.Frame{First: journal.Position{Epoch: f.Epoch, Seq: f.First}, Last: end(f).Position, FirstTime: f.Time,
				LastTime: f.Time, Chain: f.Chain, Bytes: int64(len(f.Bytes)), Reader: bytes.NewReader(f.Bytes)}, nil
		}
		s.j.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return journal.Frame{}, ctx.Err()
		}
	}
}

// More reports that Next will not wait.
func (s *Stream) More() bool {
	s.j.mu.Lock()
	defer s.j.mu.Unlock()
	return s.next < s.j.durable
}

// Close ends the reader.
func (s *Stream) Close() error { return nil }

// AppendFrame takes one frame as stored at the source.
func (j *Journal) AppendFrame(ctx context.Context, r io.Reader, n int64, claimed journal.Chain) (journal.Cursor, bool, error) {
	raw := make([]byte, 0, min(n, 1<<20))
	buf := make([]byte, 4096)
	for int64(len(raw)) < n {
		if j.Hold != nil {
			if err := j.Hold(ctx, int64(len(raw))); err != nil {
				return journal.Cursor{}, false, err
			}
		}
		k, err := r.Read(buf[:min(int64(len(buf)), n-int64(len(raw)))])
		raw = append(raw, buf[:k]...)
		if err != nil && int64(len(raw)) < n {
			return journal.Cursor{}, false, err
		}
	}
	if n < frameHeadBytes {
		return journal.Cursor{}, false, errors.New("frame too short")
	}
	f := Frame{Epoch: journal.EpochID(raw[:16]), First: journal.Seq(binary.LittleEndian.Uint64(raw[24:])),
		Last: journal.Seq(binary.LittleEndian.Uint64(raw[32:])), Before: journal.Chain(raw[64:96]),
		Time: time.Unix(0, int64(binary.LittleEndian.Uint64(raw[96:]))), Bytes: raw}
	f.Chain = chainOf(f)
	if f.Chain != claimed {
		return journal.Cursor{}, false, &journal.DamageError{Hop: "receive", Epoch: f.Epoch, Seq: f.First, What: "chain differs"}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.placeLocked(f)
}

func (j *Journal) placeLocked(f Frame) (journal.Cursor, bool, error) {
	for _, old := range j.frames {
		if old.Chain == f.Chain {
			return j.endLocked(len(j.frames)), true, nil
		}
	}
	number := binary.LittleEndian.Uint64(f.Bytes[16:])
	known := false
	for _, b := range j.branches {
		known = known || b.ID == f.Epoch
		if b.Number > number {
			return journal.Cursor{}, false, journal.ErrLowerEpoch
		}
	}
	n := len(j.frames)
	for n > 0 && j.frames[n-1].Last >= f.First {
		n--
	}
	if at := j.endLocked(n); at.Seq+1 != f.First || at.Chain != f.Before {
		return journal.Cursor{}, false, journal.ErrNotContiguous
	}
	if n < len(j.frames) && known {
		return journal.Cursor{}, false, journal.ErrNotContiguous
	}
	if !known {
		e := journal.Epoch{Number: number, ID: f.Epoch, Parent: j.endLocked(n), Begun: f.Time}
		j.branches = append(j.branches, journal.Branch{Epoch: e})
		j.frames, j.durable = slices.Clone(j.frames[:n]), min(j.durable, n)
	}
	j.takeLocked(f)
	j.touch()
	return end(f), false, nil
}
