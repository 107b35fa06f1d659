package journal

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/cockroachdb/pebble/v2"
)

// A change of the runs is finished in three steps, each of which may be done again:
// the index is made to name the new run, chunk by chunk, each chunk in one batch, so
// that a read sees the old places or the new ones; the index is flushed; what went
// into the run is given back.

const swapBatchBytes = 1 << 20

// keyRuns is the number of the newest run that the index has taken in whole.
const keyRuns = "r"

// levelsOfRuns is the key of the levels that folding brought into use, apart from
// the one that records bring: the two have different writers.
func levelsOfRuns(volume uint32) []byte { return append(levelsKey(volume), 'r') }

// finishChange finishes the change that the site log names, if any.
func (t *maintainer) finishChange(ctx context.Context) error {
	j := t.j
	p := j.history()
	c := p.state.Change
	if c == nil {
		return nil
	}
	done, err := j.swappedRun()
	if err != nil {
		return err
	}
	if done != c.Run {
		if err := t.swap(ctx, p, c); err != nil {
			return err
		}
	}
	if err := j.db.Flush(); err != nil {
		return fmt.Errorf("flush index: %w", err)
	}
	j.reading.Lock() // nobody reads by the old index behind this
	j.foldGen.Add(1)
	j.reading.Unlock()
	freed := c.RunBytes
	if err := j.giveBackInputs(c); err != nil {
		return err
	}
	s := p.state
	if len(c.Segments) == 2 {
		freed += s.End.Bytes - s.Given
		s.Given = s.End.Bytes
	}
	s.Change, s.Swapped = nil, c.Run
	if err := j.install(s, p.kept); err != nil {
		return err
	}
	t.done.Freed += freed
	return nil
}

// swappedRun is the newest run that the index has taken in.
func (j *Journal) swappedRun() (uint64, error) {
	raw, closer, err := j.db.Get([]byte(keyRuns))
	if errors.Is(err, pebble.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read index: %w", err)
	}
	n, k := binary.Uvarint(raw)
	if k <= 0 {
		n = ^uint64(0)
	}
	return n, closer.Close()
}

// swap lets the index name a change's run where it named what went into it.
func (t *maintainer) swap(ctx context.Context, p *folds, c *change) error {
	j := t.j
	var m manifest
	for _, o := range p.state.Runs {
		if o.Run == c.Run {
			m = o
		}
	}
	r, err := j.openRun(m)
	if err != nil {
		return err
	}
	in, err := t.changedBy(ctx, p, c)
	if err != nil {
		return err
	}
	cur := &versionCursor{r: r}
	reader := &versionReader{j: j, after: c.After, to: c.To}
	b := j.db.NewBatch()
	defer func() { _ = b.Close() }()
	var k []byte
	err = in.each(func(volume uint32, offset int64) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		vs, err := reader.chunk(volume, offset)
		if err != nil {
			return err
		}
		for _, v := range vs {
			if v.node.offset < offset {
				continue // a larger one: its chunk was before
			}
			k = indexKey(k, volume, v.node, v.ordinal, v.seq)
			if err := b.Delete(k, nil); err != nil {
				return err
			}
		}
		if err := t.putChunk(b, cur, volume, offset); err != nil {
			return err
		}
		if b.Len() < swapBatchBytes {
			return nil
		}
		err = b.Commit(pebble.NoSync)
		b.Reset()
		return err
	})
	if err == nil {
		if e, more, perr := cur.peek(); perr != nil {
			err = perr
		} else if more {
			err = r.damage(0, badFrame("a version of volume %d at %d lies outside the range", e.volume, e.node.offset))
		}
	}
	if err != nil {
		return err
	}
	if len(c.Segments) == 2 {
		err = b.DeleteRange(sampleKey(c.After.Ordinal, c.After.Seq), sampleKey(c.To.Ordinal, c.To.Seq+1), nil)
	}
	for _, n := range c.Runs {
		err = errors.Join(err, forgetTail(b, n))
	}
	err = errors.Join(err, keepTail(b, r), j.copySiteLog(b))
	if err = errors.Join(err, b.Set([]byte(keyRuns), binary.AppendUvarint(nil, c.Run), nil)); err != nil {
		return err
	}
	return b.Commit(pebble.NoSync)
}

// putChunk adds the run's versions of one chunk to a batch.
func (t *maintainer) putChunk(b *pebble.Batch, cur *versionCursor, volume uint32, offset int64) error {
	var k []byte
	for {
		e, ok, err := cur.peek()
		if err != nil || !ok || e.volume != volume || e.node.offset&^(chunkBytes-1) != offset {
			return err
		}
		_, v := cur.pop()
		if err := t.j.noteRunLevels(e.volume, 1<<e.node.level); err != nil {
			return err
		}
		k = indexKey(k, e.volume, e.node, e.ordinal, e.seq)
		if err := b.Set(k, v, nil); err != nil {
			return err
		}
	}
}

// noteRunLevels makes levels of a volume part of what look-ups visit, before a
// version of such a level is there.
func (j *Journal) noteRunLevels(volume uint32, mask uint16) error {
	j.mu.Lock()
	old := j.runLevels[volume]
	j.runLevels[volume] = old | mask
	j.levels[volume] |= mask
	j.mu.Unlock()
	if old|mask == old {
		return nil
	}
	return j.db.Set(levelsOfRuns(volume), binary.BigEndian.AppendUint16(nil, old|mask), pebble.NoSync)
}

// changedBy is the MiBs that what went into a change lies in.
func (t *maintainer) changedBy(ctx context.Context, p *folds, c *change) (touched, error) {
	j := t.j
	if len(c.Segments) == 2 {
		s := &foldScan{j: j, pace: t.pace, touched: make(touched)}
		err := s.rescan(ctx, c)
		if err != nil && unreadable(err) { // the run is whole, and what went into it is not needed for more
			j.o.Log.Warn("a segment was damaged after it was folded; its blocks are taken from the index", "dir", j.dir, "err", err)
			return j.touchedIn(c.After, c.To)
		}
		return s.touched, err
	}
	var runs []*run
	for _, n := range c.Runs {
		size, err := j.runs.size(n)
		if err != nil {
			return nil, err
		}
		r, err := j.openRunFile(n, size)
		if err != nil {
			return nil, err
		}
		runs = append(runs, r)
	}
	in, _, err := j.runTouched(runs)
	return in, err
}

// giveBackInputs removes what a change made a run of. What is gone already is no
// error: the step may be done again.
func (j *Journal) giveBackInputs(c *change) error {
	fs := j.o.FS
	if len(c.Segments) == 2 {
		j.segs.giveBack(c.Segments[1] + 1)
		for n := c.Segments[0]; n <= c.Segments[1]; n++ {
			if err := j.retireSegment(n); err != nil && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("give back segment: %w", err)
			}
		}
		if err := syncDir(fs, j.segs.dir); err != nil {
			return err
		}
	}
	for _, n := range c.Runs {
		j.runs.drop(n)
		if err := fs.Remove(j.runs.path(n)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove run: %w", err)
		}
	}
	return syncDir(fs, j.runs.dir)
}

// rebuildFromRuns puts all that the runs hold into an index that is empty, and
// leaves the journal's state at the end of folded history.
func (j *Journal) rebuildFromRuns() error {
	p := j.past
	if len(p.state.Runs) == 0 {
		return nil
	}
	for _, m := range p.state.Runs {
		r, err := j.openRun(m)
		if err == nil {
			err = j.rebuildFrom(r)
		}
		if err != nil && unreadable(err) {
			err = fmt.Errorf("%w: %w", ErrRunLost, err)
		}
		if err != nil {
			return fmt.Errorf("rebuild index from run %s: %w", runName(m.Run), err)
		}
	}
	if n := len(j.branches); n != p.state.End.Epochs {
		return &DamageError{Hop: "open", File: "runs", What: fmt.Sprintf("they hold %d epochs, the site log says %d", n, p.state.End.Epochs)}
	}
	j.through = through{frameEnd: p.state.End, Durable: p.state.End}
	b := j.db.NewBatch()
	err := b.Set([]byte(keyThrough), encodeBody(j.through), nil)
	newest := p.state.Swapped
	if c := p.state.Change; c != nil {
		newest = c.Run
	}
	err = errors.Join(err, b.Set([]byte(keyRuns), binary.AppendUvarint(nil, newest), nil))
	if err == nil {
		err = b.Commit(pebble.NoSync)
	}
	return errors.Join(err, b.Close(), j.loadKeys())
}

func (j *Journal) rebuildFrom(r *run) error {
	b := j.db.NewBatch()
	defer func() { _ = b.Close() }()
	flush := func(least int) error {
		if b.Len() < least {
			return nil
		}
		err := b.Commit(pebble.NoSync)
		b.Reset()
		return err
	}
	err := r.each(blockVersions, func(k, v []byte) error {
		e, err := decodeIndexKey(k)
		if err != nil {
			return badFrame("%v", err)
		}
		if err := j.noteRunLevels(e.volume, 1<<e.node.level); err != nil {
			return err
		}
		return errors.Join(b.Set(k, v, nil), flush(swapBatchBytes))
	})
	if err != nil {
		return err
	}
	err = r.each(blockCatalogue, func(k, v []byte) error {
		return errors.Join(j.rebuildPair(b, k, v), flush(swapBatchBytes))
	})
	return errors.Join(err, keepTail(b, r), flush(0))
}

// rebuildPair puts one pair of a run's catalogue into the index, and an epoch among
// the journal's.
func (j *Journal) rebuildPair(b *pebble.Batch, k, v []byte) error {
	switch {
	case len(k) == 5 && k[0] == prefixBranch:
		o := int(binary.BigEndian.Uint32(k[1:]))
		var br Branch
		if err := decodeBody(v, &br); err != nil || o == 0 || o > len(j.branches)+1 {
			return badFrame("epoch %d of a run's catalogue: %v", o, err)
		}
		if j.o.faults.rebuildWithoutLineage && o > 1 {
			return nil
		}
		if o > len(j.branches) {
			j.branches = append(j.branches, br)
		}
		j.branches[o-1] = br
		return b.Set(k, v, nil)
	case len(k) == 15 && k[0] == prefixHappen:
		return rebuildHappening(b, k, v)
	}
	return badFrame("key %x of a run's catalogue is none", k)
}

// rebuildHappening puts a control record of a run's catalogue into the index.
func rebuildHappening(b *pebble.Batch, k, v []byte) error {
	if kind := Kind(binary.BigEndian.Uint16(k[1:])); kind == KindSynced || kind == KindGap {
		var h happening
		if err := decodeBody(v, &h); err != nil {
			return badFrame("control record of a run: %v", err)
		}
		ordinal, s := happenedAt(k)
		if err := b.Set(stateKey(h.Volume, ordinal, s), []byte{byte(kind)}, nil); err != nil {
			return err
		}
	}
	return b.Set(k, v, nil)
}

// checkPast refuses an index that does not go with the runs, and a first remaining
// frame that does not chain on to the last folded one.
func (j *Journal) checkPast(known through) error {
	s := &j.past.state
	if known.Seq == 0 && known.Segment == 0 {
		return nil
	}
	n, err := j.swappedRun()
	switch {
	case err != nil:
		return err
	case n != s.Swapped && (s.Change == nil || n != s.Change.Run):
		return fmt.Errorf("the index has taken in run %d, not %d", n, s.Swapped)
	case len(s.Runs) > 0 && known.Durable.Segment < s.End.Segment:
		return fmt.Errorf("the index ends in segment %d, folded history behind it", known.Durable.Segment)
	}
	return nil
}

// checkChainAfterPast compares the chain values that the first remaining frames name
// with those of the folded ones.
func (j *Journal) checkChainAfterPast() error {
	s := &j.past.state
	if len(s.Runs) == 0 || j.o.faults.skipReclaimedChain {
		return nil
	}
	known := recent{append(s.Recent[:len(s.Recent):len(s.Recent)], s.End.Cursor)}
	page := make([]byte, pageBytes)
	n, at := s.End.Segment, int64(pageBytes)
	if err := j.segs.readAt(n, page, 0); err == nil {
		p, err := decodeSegmentPage(page, segmentMagic)
		if err == nil && p.Epoch == s.End.Epoch && known.contradicts(frameHeader{ChainSeq: p.ChainSeq, Chain: p.Chain}) {
			return j.brokenChain(n, 0)
		}
	}
	for range maxRecent {
		h, _, err := j.segs.frameAt(n, at)
		if err != nil || h.Epoch != s.End.Epoch || h.ChainSeq > s.End.Seq {
			return nil // what else is wrong is found when the segment is replayed or read
		}
		if known.contradicts(h) {
			return j.brokenChain(n, at)
		}
		at += h.Bytes
	}
	return nil
}

func (j *Journal) brokenChain(n uint64, at int64) error {
	s := &j.past.state
	return &DamageError{Hop: "open", Epoch: s.End.Epoch, Seq: s.End.Seq + 1, File: segmentName(n), Offset: at,
		What: "it does not chain on to the history before it, which was folded"}
}
