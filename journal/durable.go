package journal

import (
	"context"
	"fmt"
	"time"
)

// frameEnd is where a frame ends, in the history and on disk, its chain value known.
type frameEnd struct {
	Cursor
	Time         time.Time `json:"time"`
	Segment      uint64    `json:"segment"` // where the next frame would begin
	Offset       int64     `json:"offset"`
	StartSegment uint64    `json:"start_segment"` // where this one begins
	Start        int64     `json:"start"`
	Bytes        int64     `json:"bytes"`  // of all frames up to here
	Epochs       int       `json:"epochs"` // held when it was written
}

// forks reports that no frame ends here: an epoch begins, and the record that it
// goes on from may lie far back, before the end of its own.
func (f frameEnd) forks() bool { return f.Start == 0 }

// syncLoop makes written frames durable, one fdatasync after the other, until the
// committer has ended and all it wrote is durable.
func (j *Journal) syncLoop(drained <-chan struct{}) error {
	for {
		last := false
		select {
		case <-j.sync:
			last = j.rest(j.restOfSync(), j.urgent.sync, drained)
		case <-drained:
			last = true
		}
		j.syncing.lock()
		err := j.syncOnce()
		j.syncing.unlock()
		if err != nil {
			return j.fail(err)
		}
		if last {
			return nil
		}
	}
}

// syncOnce makes durable what is written, and answers it. syncing is held.
func (j *Journal) syncOnce() error {
	f, err := j.flush()
	if err == nil {
		j.answer(f)
	}
	return err
}

// flushed is what a flush has made durable.
type flushed struct {
	target Seq // of the newest epoch; 0: nothing new
	epochs int
}

// flush syncs the segment, as of the call. syncing is held.
func (j *Journal) flush() (flushed, error) {
	j.mu.Lock()
	u, f := j.unsynced, flushed{j.written, len(j.branches)}
	j.unsynced.retired, j.unsynced.bytes = nil, 0
	j.mu.Unlock()
	if u.file == nil && len(u.retired) == 0 {
		return flushed{}, nil
	}
	if u.file != nil {
		if err := u.file.SyncData(); err != nil {
			return f, fmt.Errorf("sync segment: %w", err)
		}
	}
	return f, j.settle(u)
}

// settle closes the segments that u retired and makes the newest one's name durable.
func (j *Journal) settle(u unsynced) error {
	for _, r := range u.retired { // synced when they were sealed
		if err := r.Close(); err != nil {
			return fmt.Errorf("close segment: %w", err)
		}
	}
	return j.nameDurable(u.made, u.madeDurable)
}

// answer tells whoever waits for what f made durable.
func (j *Journal) answer(f flushed) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if f.epochs != len(j.branches) {
		return // nothing new, or a fork came between: it was made durable itself
	}
	j.synced = max(j.synced, f.target)
	done := 0
	for _, c := range j.awaiting {
		if c.last() > j.synced {
			break
		}
		close(c.done)
		done++
	}
	j.awaiting = j.awaiting[done:]
	j.trimChainedLocked()
	j.broadcastLocked()
}

// trimChainedLocked drops frame ends older than the durable one.
func (j *Journal) trimChainedLocked() {
	n := 0
	for n+1 < len(j.chained) && j.chained[n+1].Seq <= j.synced {
		n++
	}
	j.chained = j.chained[n:]
}

// durableLocked is the newest frame end that survives power loss.
func (j *Journal) durableLocked() frameEnd {
	if j.o.faults.sendUnsynced {
		return j.chained[len(j.chained)-1]
	}
	return j.chained[0]
}

// Head is where a journal's newest lineage ends.
type Head struct {
	Position              // newest record
	Number      uint64    // of its epoch
	Time        time.Time // of that record
	Durable     Cursor    // newest frame end that survives power loss: what may be sent
	DurableTime time.Time
	Bytes       int64 // of all frames written or received
}

// Head tells where the newest lineage ends; zero in an empty journal.
func (j *Journal) Head() Head {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.branches) == 0 {
		return Head{}
	}
	b, d := j.branches[len(j.branches)-1], j.durableLocked()
	h := Head{Position: Position{b.ID, j.written}, Number: b.Number, Time: j.headTime, Durable: d.Cursor, DurableTime: d.Time, Bytes: j.bytes}
	if j.written < b.First() {
		h.Position = b.Parent.Position
	}
	return h
}

// Branches is every epoch held, in the order they came; the last one is the head's.
// Its end is the durable one.
func (j *Journal) Branches() []Branch {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.branchesLocked()
}

func (j *Journal) branchesLocked() []Branch {
	out := append([]Branch(nil), j.branches...)
	if n := len(out); n > 0 {
		out[n-1].Last = j.durableLocked().Cursor
	}
	return out
}

// Lineage is the history that the head ends. An epoch of which nothing is written
// yet is not in it.
func (j *Journal) Lineage() Lineage {
	j.mu.Lock()
	defer j.mu.Unlock()
	return append(Lineage(nil), j.lineage.written()...)
}

// WaitDurable returns once the record at p survives the loss of power. A record
// that will never be held is an error: of an epoch unknown here (ErrUnknownParent),
// beyond the end of an earlier one (ErrFenced), refused while it waited (ErrFull).
func (j *Journal) WaitDurable(ctx context.Context, p Position) error {
	j.mu.Lock()
	before := j.refusals
	j.mu.Unlock()
	var ended error
	err := j.waitFor(ctx, func() bool {
		if p.IsZero() {
			return true
		}
		o := int(j.ordinalLocked(p.Epoch))
		switch {
		case o == 0:
			ended = fmt.Errorf("wait for record %s: %w", p, ErrUnknownParent)
		case o < len(j.branches): // ended epochs are durable to their end
			if p.Seq > j.branches[o-1].Last.Seq {
				ended = fmt.Errorf("wait for record %s: %w", p, ErrFenced)
			}
		case j.durableLocked().Seq >= p.Seq:
		default:
			if j.refusals == before || j.next > p.Seq {
				j.hurry()
				return false
			}
			ended = fmt.Errorf("wait for record %s: %w", p, ErrFull)
		}
		return true
	})
	if err != nil {
		return err
	}
	return ended
}

// waitIndexed returns once reads see seq s of the newest epoch.
func (j *Journal) waitIndexed(ctx context.Context, epochs int, s Seq) error {
	return j.waitFor(ctx, func() bool {
		there := len(j.branches) != epochs || j.indexed >= s
		if !there {
			j.hurry()
		}
		return there
	})
}
