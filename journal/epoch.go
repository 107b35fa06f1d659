package journal

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/novacron/afterimage/cbt"
)

// BeginEpoch forks a new epoch at parent (zero: the head) and returns when its
// record is durable. Every interval is closed by it; earlier Writers are fenced
// before it begins. Its number is above every one that this journal knows and
// not below atLeast, a number that other sites are known to have used. When it
// fails, Writers that there were stay fenced; a replica stays one.
func (j *Journal) BeginEpoch(ctx context.Context, site string, parent Position, atLeast uint64) (*Writer, error) {
	w, err := j.beginEpoch(ctx, site, parent, atLeast)
	if err != nil {
		return nil, fmt.Errorf("begin epoch: %w", err)
	}
	return w, nil
}

func (j *Journal) beginEpoch(ctx context.Context, site string, parent Position, atLeast uint64) (*Writer, error) {
	if err := j.waitRunning(ctx); err != nil {
		return nil, err
	}
	j.mu.Lock()
	switch {
	case j.readOnly:
		j.mu.Unlock()
		return nil, ErrReadOnly
	case !j.running || j.closing:
		j.mu.Unlock()
		return nil, errors.Join(ErrClosed, j.err)
	}
	w := &Writer{j: j}
	replica := j.writer == nil
	j.writer = w // fences the one before
	j.mu.Unlock()
	p, err := j.prepareEpoch(ctx, w, site, parent, atLeast)
	if err == nil {
		err = p.Wait(ctx)
	}
	if err != nil {
		j.mu.Lock()
		if replica && j.writer == w && w.epoch.ID.IsZero() {
			j.writer = nil
		}
		j.mu.Unlock()
		return nil, err
	}
	if err := j.WaitDurable(ctx, Position{w.epoch.ID, p.seq}); err != nil {
		return nil, err
	}
	if unsaid, err := j.lossesUnsaid(); err != nil {
		return nil, err
	} else if unsaid {
		return w, fullOr(j.lossesSaid())
	}
	return w, nil
}

// prepareEpoch finds out what goes on at parent, remembers that the epoch is ours,
// and forks it.
func (j *Journal) prepareEpoch(ctx context.Context, w *Writer, site string, parent Position, atLeast uint64) (pendingRecord, error) {
	if err := j.drain(ctx); err != nil {
		return pendingRecord{}, err
	}
	j.mu.Lock()
	n := len(j.branches)
	if parent.IsZero() && n > 0 {
		parent = j.durableLocked().Position
	}
	j.mu.Unlock()
	e := Epoch{Number: atLeast, ID: EpochID(cbt.NewID()), Site: site}
	none := pendingRecord{}
	if len(site) > maxDetailBytes {
		return none, fmt.Errorf("site name of %d bytes: %w", len(site), ErrOutOfRange)
	}
	if !parent.IsZero() {
		chain, err := j.chainOf(ctx, parent)
		if err != nil {
			return none, err
		}
		e.Parent = Cursor{parent, chain}
	} else if n > 0 {
		return none, fmt.Errorf("%w: the journal is not empty", ErrUnknownParent)
	}
	f, err := j.forkAt(ctx, parent)
	if err != nil {
		return none, err
	}
	if f.lost, err = j.lossesUnsaid(); err != nil {
		return none, err
	}
	s, key, err := j.epochSealer(e.ID)
	if err != nil {
		return none, err
	}
	if err := j.rememberReign(e.ID); err != nil {
		return none, err
	}
	return j.fork(w, e, f, s, key)
}

// reignsKey names the newest epochs that this site began: only of those do frames
// say what was durable here.
const (
	reignsKey = "journal/reigns"
	maxReigns = 256
)

func (j *Journal) reigns() ([]EpochID, error) {
	var ids []EpochID
	_, err := j.site.recall(reignsKey, &ids)
	return ids, err
}

func (j *Journal) rememberReign(id EpochID) error {
	ids, err := j.reigns()
	if err != nil {
		return err
	}
	ids = append(ids, id)
	return fullOr(j.site.remember(reignsKey, ids[max(0, len(ids)-maxReigns):]))
}

// forkPoint is what an epoch that goes on at a record begins with.
type forkPoint struct {
	lineage Lineage
	volumes map[cbt.VolumeID]volumeBody
	time    time.Time // of the record
	lost    bool      // a loss was accepted that no gap tells of yet
}

func (j *Journal) forkAt(ctx context.Context, p Position) (forkPoint, error) {
	var f forkPoint
	var err error
	if f.lineage, err = j.lineageAt(p); err != nil {
		return f, err
	}
	if err = j.mayForkAt(p); err != nil {
		return f, err
	}
	if f.volumes, err = j.volumesIn(f.lineage); err != nil {
		return f, err
	}
	f.time, err = j.timeAt(ctx, p)
	return f, err
}

// lossesUnsaid reports that a loss was accepted that no gap tells of.
func (j *Journal) lossesUnsaid() (bool, error) {
	ls, err := j.Losses()
	return len(ls) > 0 && !ls[len(ls)-1].Said, err
}

// lossesSaid notes that the gap is durable.
func (j *Journal) lossesSaid() error {
	ls, err := j.Losses()
	if err != nil {
		return err
	}
	for i := range ls {
		ls[i].Said = true
	}
	return j.site.remember(lossesKey, ls)
}

// mayForkAt is why no epoch may go on at p, or nil: what history held there was
// folded and not kept, or will be.
func (j *Journal) mayForkAt(p Position) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.mayForkLocked(p)
}

func (j *Journal) mayForkLocked(p Position) error {
	if p.IsZero() || j.mayOpenLocked(j.orderLocked(p)) || p == j.past.state.End.Position && p == j.chained[0].Position {
		return nil // what the end of folded history sees is there while it is the head
	}
	return &ReclaimedError{At: p, From: j.framesFromLocked()}
}

// drain waits until all that was recorded is durable and indexed.
func (j *Journal) drain(ctx context.Context) error {
	return j.waitFor(ctx, func() bool {
		return len(j.queue) == 0 && j.next == j.written+1 && j.synced >= j.written && j.indexed >= j.written && j.chained[0].Seq >= j.written
	})
}

// fork makes e the newest epoch and records it and, where s seals it, its key. If
// the records are refused the journal stands where it stood.
func (j *Journal) fork(w *Writer, e Epoch, f forkPoint, s *sealer, key *record) (pendingRecord, error) {
	j.fileMu.Lock() // nothing is written between the end of one epoch and the start of the next
	defer j.fileMu.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.writer != w {
		return pendingRecord{}, ErrFenced
	}
	if j.err != nil || j.closing || !j.running {
		return pendingRecord{}, errors.Join(ErrClosed, j.err)
	}
	if err := j.mayForkLocked(e.Parent.Position); err != nil {
		return pendingRecord{}, err
	}
	for _, b := range j.branches {
		e.Number = max(e.Number, b.Number+1)
	}
	e.Number = max(e.Number, 1)
	e.Begun = later(f.time, j.o.Now())
	w.epoch = e
	undo, old := j.beginLocked(e, f), j.sealer
	j.sealer = s
	j.lastTime = e.Begun
	j.owed, j.live = make(map[cbt.VolumeID]cbt.Cause), make(map[cbt.VolumeID]bool)
	p := j.addLocked(&record{kind: KindEpoch, body: encodeBody(e), undo: func() {
		undo()
		w.epoch, j.sealer = Epoch{}, old
	}})
	if key != nil {
		j.addLocked(key)
	}
	if f.lost {
		for v := range f.volumes {
			j.owed[v] = cbt.CauseLost
		}
		j.payOwedLocked() // in the epoch's first frame
	}
	j.broadcastLocked()
	return p, nil
}

// beginLocked makes e, which goes on at f, the newest epoch; undo takes that back
// while no record of it is written.
func (j *Journal) beginLocked(e Epoch, f forkPoint) (undo func()) {
	lineage, chained, recent, volumes := j.lineage, j.chained, j.recent, j.volumes
	written, synced, indexed, lastTime, headTime := j.written, j.synced, j.indexed, j.lastTime, j.headTime
	n := len(j.branches)
	if n > 0 {
		if d := j.durableLocked().Cursor; d.Epoch == j.branches[n-1].ID {
			j.branches[n-1].Last = d
		}
	}
	end := chained[len(chained)-1]
	end.Cursor, end.Time, end.Start, end.Epochs = e.Parent, f.time, 0, n
	j.branches = append(j.branches, Branch{Epoch: e, Last: e.Parent})
	j.lineage = append(f.lineage, Interval{e.ID, e.Number, e.First(), e.Parent.Seq})
	j.chained, j.recent = []frameEnd{end}, recentFrom(e.Parent)
	j.written, j.synced, j.indexed, j.next = e.Parent.Seq, e.Parent.Seq, e.Parent.Seq, e.First()
	j.headTime, j.volumes = f.time, f.volumes
	j.rewrites.forget()
	return func() {
		j.branches = j.branches[:n]
		j.lineage, j.chained, j.recent, j.volumes = lineage, chained, recent, volumes
		j.written, j.synced, j.indexed, j.lastTime, j.headTime = written, synced, indexed, lastTime, headTime
	}
}
