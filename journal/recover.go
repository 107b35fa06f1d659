package journal

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/novacron/afterimage/cbt"
)

// recover finds the end of the journal. The index knows all frames up to the last
// batch that Pebble flushed, and a place up to which frames were durable then:
// from there the segments are read, verified and indexed again, until a frame that
// does not verify. That is a torn tail unless a later frame proves that more had
// been durable (ErrTailLost).
func (j *Journal) recover() error {
	err := j.recoverOnce()
	if errors.Is(err, ErrRunLost) && j.o.AcceptLoss {
		if err = j.loseRuns(err); err == nil {
			if err = j.resetIndex(); err == nil {
				err = j.recoverOnce()
			}
		}
	}
	if err != nil && IsLoss(err) && !errors.Is(err, ErrRunLost) && j.o.AcceptLoss {
		err = j.acceptLoss(err)
		if err == nil {
			err = j.setLineage()
		}
	}
	return err
}

func (j *Journal) recoverOnce() error {
	j.chained = []frameEnd{{}}
	if err := j.syncNewest(); err != nil {
		return err
	}
	known, err := j.loadIndex()
	if err == nil {
		err = j.checkPast(known)
	}
	if err != nil {
		j.o.Log.Warn("index does not read; building it anew from the segments", "dir", j.dir, "err", err)
		known = through{}
		if err := j.resetIndex(); err != nil {
			return err
		}
	}
	err = j.replayTail()
	if err == nil && known.Seq > 0 && j.behind(known.Position) {
		j.o.Log.Warn("the index knew records that did not reach the disk; building it anew", "dir", j.dir, "known", known.Position.String(), "head", j.written)
		if err = j.resetIndex(); err == nil {
			err = j.replayTail()
		}
	}
	if err != nil {
		return err
	}
	if err := errors.Join(j.mendHead(), j.checkChainAfterPast(), j.checkAnchor()); err != nil {
		return err
	}
	return j.setLineage()
}

// syncNewest makes what the newest segment holds durable: after the death of a
// process it may lie in the page cache alone, and all that is recovered counts as
// durable. Older segments were synced when they were sealed.
func (j *Journal) syncNewest() error {
	ns, err := j.segmentList()
	if err != nil || len(ns) == 0 {
		return err
	}
	f, err := j.o.FS.OpenReadWrite(j.segs.path(ns[len(ns)-1]), vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	if err := errors.Join(f.SyncData(), f.Close(), syncDir(j.o.FS, j.segs.dir)); err != nil {
		return fmt.Errorf("sync newest segment: %w", err)
	}
	return nil
}

// behind reports that p is not held.
func (j *Journal) behind(p Position) bool {
	n := len(j.branches)
	return n == 0 || (j.branches[n-1].ID == p.Epoch && j.written < p.Seq) || j.ordinalOf(p.Epoch) == 0
}

// resetIndex gives the index up for an empty one, if the runs can fill it.
func (j *Journal) resetIndex() error {
	if err := j.canRebuild(); err != nil {
		return err
	}
	if err := j.db.Close(); err != nil {
		return fmt.Errorf("close index: %w", err)
	}
	j.db = nil
	if err := j.o.FS.RemoveAll(j.o.FS.PathJoin(j.dir, "index")); err != nil {
		return fmt.Errorf("remove index: %w", err)
	}
	j.branches, j.levels, j.through = nil, make(map[uint32]uint16), through{}
	j.runLevels = make(map[uint32]uint16)
	j.chained, j.recent, j.written, j.bytes, j.torn = []frameEnd{{}}, recent{}, 0, 0, false
	j.resync = Cursor{} // a torn frame may have been met
	return j.openIndex()
}

// loadIndex reads branches, levels and how far the index has come.
func (j *Journal) loadIndex() (through, error) {
	var t through
	raw, closer, err := j.db.Get([]byte(keyThrough))
	if errors.Is(err, pebble.ErrNotFound) {
		return t, nil
	}
	if err != nil {
		return t, fmt.Errorf("read index: %w", err)
	}
	err = json.Unmarshal(raw, &t)
	if err = errors.Join(err, closer.Close(), j.checkIndexFormat()); err != nil {
		return t, fmt.Errorf("read index: %w", err)
	}
	err = j.scanPrefix(prefixBranch, func(k, v []byte) error {
		var b Branch
		if int(binary.BigEndian.Uint32(k[1:])) != len(j.branches)+1 {
			return fmt.Errorf("epochs have a hole at %d", len(j.branches)+1)
		}
		if err := json.Unmarshal(v, &b); err != nil {
			return err
		}
		j.branches = append(j.branches, b)
		return nil
	})
	if err == nil {
		err = j.scanPrefix(prefixLevels, func(k, v []byte) error {
			if len(k) > 5 {
				j.runLevels[binary.BigEndian.Uint32(k[1:])] = binary.BigEndian.Uint16(v)
			}
			j.levels[binary.BigEndian.Uint32(k[1:])] |= binary.BigEndian.Uint16(v)
			return nil
		})
	}
	if err == nil {
		err = j.loadKeys()
	}
	if err != nil {
		return t, fmt.Errorf("read index: %w", err)
	}
	// Epochs begun after the durable place are met again in the segments.
	j.branches = j.branches[:min(t.Durable.Epochs, len(j.branches))]
	if n := len(j.branches); n > 0 && j.branches[n-1].ID == t.Durable.Epoch && !t.Durable.forks() {
		j.branches[n-1].Last = t.Durable.Cursor
	}
	j.through = t
	j.through.frameEnd = t.Durable
	j.readOnly = t.ReadOnly
	return t, nil
}

// checkIndexFormat refuses an index that another version laid out.
func (j *Journal) checkIndexFormat() error {
	raw, closer, err := j.db.Get([]byte(keyFormat))
	if errors.Is(err, pebble.ErrNotFound) {
		return fmt.Errorf("index of format 1: %w", ErrIncompatible)
	}
	if err != nil {
		return err
	}
	if len(raw) != 1 || raw[0] != indexFormat {
		err = fmt.Errorf("index of format %x: %w", raw, ErrIncompatible)
	}
	return errors.Join(err, closer.Close())
}

func (j *Journal) scanPrefix(prefix byte, f func(k, v []byte) error) error {
	return j.scanRange([]byte{prefix}, []byte{prefix + 1}, f)
}

func (j *Journal) scanRange(lower, upper []byte, f func(k, v []byte) error) (err error) {
	it, err := j.iterate(lower, upper)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	for ok := it.First(); ok; ok = it.Next() {
		if err := f(it.Key(), it.Value()); err != nil {
			return err
		}
	}
	return it.Error()
}

// replayTail reads segments from the durable place on and leaves the journal's
// state at the last valid frame.
func (j *Journal) replayTail() error {
	if j.through.frameEnd.Segment == 0 {
		if err := j.rebuildFromRuns(); err != nil {
			return err
		}
	}
	if err := j.scanVolumeOrdinals(); err != nil {
		return err
	}
	at := j.through.frameEnd
	j.chained, j.recent = []frameEnd{at}, recentFrom(at.Cursor)
	j.written, j.headTime, j.lastTime = at.Seq, at.Time, at.Time
	if at.Segment == 0 {
		at.Segment, at.Offset = 1, pageBytes
	} else if err := j.checkDurable(at); err != nil {
		return err
	}
	entered := uint64(0)
	for {
		if at.Segment != entered {
			if err := j.checkHeader(at.Segment); err != nil {
				return err
			}
			entered = at.Segment
		}
		w, err := j.readFrame(at.Segment, at.Offset)
		var damage *DamageError
		switch {
		case errors.As(err, &damage):
			if !j.provenLater(at.Segment, at.Offset+w.h.Bytes, w.h.Last) {
				j.tornAt(at, err)
				return j.endAt(at, false)
			}
			j.o.Log.Error("damaged record found at open; other points stay usable", "err", damage)
		case errors.Is(err, errNoFrame):
			next, ended, err := j.nextSegment(at)
			if err != nil {
				return err
			}
			if !ended {
				at = next
				continue
			}
			if j.provenLater(at.Segment, at.Offset, j.written+1) {
				return j.lossAt(next, nil)
			}
			if !j.emptyAt(next) {
				if j.torn = j.recycledAt(next); !j.torn {
					j.tornAt(next, err)
				}
			}
			return j.endAt(next, next.Offset == 0)
		case err != nil && !torn(err):
			return err
		case err != nil:
			if j.provenLater(at.Segment, at.Offset, j.written+1) {
				return j.lossAt(at, err)
			}
			if !formerLife(err) {
				j.tornAt(at, err)
			}
			return j.endAt(at, false)
		}
		if w.h.Features.readOnly() {
			j.readOnly, j.through.ReadOnly = true, true
		}
		if err := j.replayed(w); err != nil {
			return err
		}
		at = j.through.frameEnd
	}
}

// readFrame reads the frame at a place and verifies it against the state: identity,
// order, every cell, chain. With a *DamageError w is still whole but for a payload.
func (j *Journal) readFrame(segment uint64, off int64) (*written, error) {
	h, meta, err := j.segs.frameAt(segment, off)
	if err != nil {
		return nil, err
	}
	rs, err := decodeRecords(h, meta)
	if err != nil {
		return nil, err
	}
	recs := pointers(rs)
	e, before, err := j.follows(h, recs)
	if err != nil {
		return nil, err
	}
	rest := &sectionOf{j.segs, segment, off + int64(len(meta))}
	chain, bad, err := frameScan(h, recs, meta, before, rest, j.o.faults.headerOnlyCRC, func([]byte, int64) error { return nil })
	if err != nil {
		return nil, err
	}
	if e != nil {
		j.startBranch(*e)
	}
	w := &written{h: h, recs: recs, segment: segment, offset: off, chain: chain, end: recs[len(recs)-1].time}
	w.ordinal = uint32(len(j.branches))
	w.h.Chain = before
	w.chain = j.mendChain(Position{h.Epoch, h.Last}, chain, bad >= 0, segment, off+h.Bytes)
	if bad >= 0 {
		return w, &DamageError{Hop: "open", Volume: j.volumeOf(recs[bad].volume), Epoch: h.Epoch, Seq: h.First + Seq(bad),
			File: segmentName(segment), Offset: off + recs[bad].payload, What: damagedBytes}
	}
	return w, nil
}

// follows decides whether a frame goes on from what is held: the next seq of the
// newest epoch, or the first of a new one, whose epoch record it begins with. It
// returns that epoch and the chain value before the frame.
func (j *Journal) follows(h frameHeader, recs []*record) (*Epoch, Chain, error) {
	if h.Identity != j.identity {
		return nil, Chain{}, ErrWrongJournal
	}
	last := j.chained[len(j.chained)-1]
	if n := len(j.branches); n > 0 && j.branches[n-1].ID == h.Epoch {
		if h.First != j.written+1 {
			return nil, Chain{}, fmt.Errorf("%w: record %d after %d", ErrNotContiguous, h.First, j.written)
		}
		return nil, last.Chain, nil
	}
	if recs[0].kind != KindEpoch {
		return nil, Chain{}, fmt.Errorf("%w: epoch %s begins without its record", ErrUnknownParent, h.Epoch.Short())
	}
	var e Epoch
	if err := decodeBody(recs[0].body, &e); err != nil {
		return nil, Chain{}, badFrame("epoch record: %v", err)
	}
	if e.ID != h.Epoch || e.Number != h.Number || e.First() != h.First {
		return nil, Chain{}, badFrame("epoch record says %d %s from %d", e.Number, e.ID.Short(), e.First())
	}
	if n := len(j.branches); n > 0 && e.Number <= j.branches[n-1].Number {
		return nil, Chain{}, fmt.Errorf("%w: epoch %d after %d", ErrLowerEpoch, e.Number, j.branches[n-1].Number)
	}
	if e.Parent.IsZero() {
		if len(j.branches) > 0 {
			return nil, Chain{}, fmt.Errorf("%w: epoch %d begins a second history", ErrUnknownParent, e.Number)
		}
		return &e, Chain{}, nil
	}
	for _, b := range j.branches {
		end := b.Last.Seq
		if b.ID == last.Epoch {
			end = max(end, last.Seq)
		}
		if b.ID == e.Parent.Epoch && b.First() <= e.Parent.Seq && e.Parent.Seq <= end {
			return &e, e.Parent.Chain, nil
		}
	}
	return nil, Chain{}, fmt.Errorf("%w: %s", ErrUnknownParent, e.Parent.Position)
}

// startBranch ends the newest epoch where it is and begins e.
func (j *Journal) startBranch(e Epoch) {
	last := j.chained[len(j.chained)-1]
	if n := len(j.branches); n > 0 && last.Epoch == j.branches[n-1].ID && !last.forks() {
		j.branches[n-1].Last = last.Cursor
	}
	j.branches = append(j.branches, Branch{Epoch: e, Last: e.Parent})
	j.written = e.Parent.Seq
}

// replayed makes w part of the state and the index.
func (j *Journal) replayed(w *written) error {
	j.pushEnd(w)
	j.reread += w.h.Bytes
	if err := j.apply([]*written{w}); err != nil {
		return err
	}
	j.written, j.headTime, j.lastTime = w.h.Last, w.end, later(j.lastTime, w.end)
	j.chained = j.chained[len(j.chained)-1:]
	for _, r := range w.recs {
		var b volumeBody
		if r.kind == KindVolume && decodeBody(r.body, &b) == nil {
			j.names[b.Ordinal] = b.ID
		}
	}
	return nil
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// setLineage derives what depends on the newest epoch.
func (j *Journal) setLineage() error {
	j.synced, j.indexed, j.next = j.written, j.written, j.written+1
	j.bytes = j.through.Bytes
	n := len(j.branches)
	if n == 0 {
		j.lineage = nil
		return nil
	}
	bs := append([]Branch(nil), j.branches...)
	bs[n-1].Last.Seq = j.written
	l, err := LineageOf(bs, bs[n-1].ID)
	if err != nil {
		return err
	}
	j.lineage = l
	if j.volumes, err = j.volumesIn(l); err != nil {
		return err
	}
	return j.scanVolumeOrdinals()
}

// scanVolumeOrdinals finds the highest ordinal ever given, in any branch.
func (j *Journal) scanVolumeOrdinals() error {
	return j.scanRange(happenKey(KindVolume, 0, 0), happenKey(KindVolume+1, 0, 0), func(_, v []byte) error {
		var h happening
		var b volumeBody
		if err := errors.Join(json.Unmarshal(v, &h), decodeBody(h.Body, &b)); err != nil {
			return err
		}
		j.ordinals = max(j.ordinals, b.Ordinal)
		j.names[b.Ordinal] = b.ID
		return nil
	})
}

func (j *Journal) volumeOf(ordinal uint32) cbt.VolumeID {
	j.mu.Lock()
	defer j.mu.Unlock()
	for id, v := range j.volumes {
		if v.Ordinal == ordinal {
			return id
		}
	}
	return j.names[ordinal]
}
