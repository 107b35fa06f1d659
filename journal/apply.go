package journal

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/zeebo/blake3"
)

// flushSegments is after how many segments the index is flushed: it bounds what an
// opening reads again. More often, and the small tables of fast writers are written
// over and over.
const flushSegments = 4

// staleIndexName is the file that says that the index must be built anew.
const staleIndexName = "index.damaged"

// openIndex opens Pebble. It holds nothing that the segments do not, so it has no
// write-ahead log and an index that does not open is made anew.
func (j *Journal) openIndex() error {
	dir, stale := j.o.FS.PathJoin(j.dir, "index"), j.o.FS.PathJoin(j.dir, staleIndexName)
	if there, err := exists(j.o.FS, stale); err != nil {
		return err
	} else if there {
		if err := j.canRebuild(); err != nil {
			return err
		}
		if err := errors.Join(j.o.FS.RemoveAll(dir), j.o.FS.Remove(stale)); err != nil {
			return fmt.Errorf("remove damaged index: %w", err)
		}
	}
	db, err := pebble.Open(dir, j.pebbleOptions())
	if err != nil {
		j.o.Log.Warn("index does not open; building it anew from the segments", "dir", dir, "err", err)
		if err := j.canRebuild(); err != nil {
			return err
		}
		if err := j.o.FS.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove damaged index: %w", err)
		}
		if db, err = pebble.Open(dir, j.pebbleOptions()); err != nil {
			return fmt.Errorf("open index: %w", err)
		}
	}
	j.db = db
	return j.markIndexFormat()
}

// markIndexFormat writes the format into an index that holds nothing yet.
func (j *Journal) markIndexFormat() error {
	_, closer, err := j.db.Get([]byte(keyThrough))
	if errors.Is(err, pebble.ErrNotFound) {
		return j.db.Set([]byte(keyFormat), []byte{indexFormat}, pebble.NoSync)
	}
	if err != nil {
		return nil // loadIndex meets it, and builds the index anew
	}
	return closer.Close()
}

// indexDamaged has the next opening build the index anew; until then what needs
// the damaged part fails.
func (j *Journal) indexDamaged(i pebble.DataCorruptionInfo) {
	j.markIndexStale(fmt.Sprintf("file %s: %v", i.Path, i.Details))
}

func (j *Journal) markIndexStale(why string) {
	j.o.Log.Error("index is damaged; it will be built anew at the next opening", "why", why)
	f, err := j.o.FS.Create(j.o.FS.PathJoin(j.dir, staleIndexName), vfs.WriteCategoryUnspecified)
	if err == nil {
		err = errors.Join(f.Sync(), f.Close(), syncDir(j.o.FS, j.dir))
	}
	if err != nil {
		j.o.Log.Error("mark index as damaged", "err", err)
	}
}

// pebbleLog hands Pebble's messages on; what it calls fatal ends the journal.
type pebbleLog struct{ j *Journal }

func (pebbleLog) Infof(string, ...any) {}

func (l pebbleLog) Errorf(format string, args ...any) {
	l.j.o.Log.Warn("index: " + fmt.Sprintf(format, args...))
}

// Fatalf must not return: no reply has been sent for what failed, and the segments
// hold all that was answered.
func (l pebbleLog) Fatalf(format string, args ...any) {
	panic("journal index: " + fmt.Sprintf(format, args...))
}

// lingerFor is how long finishLoop looks away after a batch of few frames. Woken with
// every frame of a lone writer, it costs that writer the wake-up of another processor
// on the way to each reply.
const lingerFor = 200 * time.Microsecond

// maxUnfinished frames may wait for chain and index. They are put into the index in one batch.
const maxUnfinished = 256

// fewFrames are fewer than come together while many write.
const fewFrames = 2

// finishLoop chains and indexes frames in order, behind the replies.
func (j *Journal) finishLoop(drained <-chan struct{}) error {
	rest := time.NewTimer(0)
	defer rest.Stop()
	for {
		var ws []*written
		select {
		case w := <-j.finish:
			ws = append(ws, w)
		case <-j.restate:
			if err := j.sayDurable(); err != nil {
				err = j.fail(err)
				go j.discard(drained)
				return err
			}
			continue
		case <-drained:
			if len(j.finish) == 0 {
				return nil
			}
			continue
		}
		j.rest(j.o.finishRest, j.urgent.finish, drained)
		for len(ws) < maxUnfinished && len(j.finish) > 0 {
			ws = append(ws, <-j.finish)
		}
		for _, w := range ws {
			j.chain(w)
		}
		if err := j.applyAll(ws); err != nil {
			err = j.fail(fmt.Errorf("index frames: %w", err))
			go j.discard(drained) // writers must not wait for an index that is gone
			return err
		}
		if len(ws) <= fewFrames && j.toDevice.Load() {
			rest.Reset(lingerFor)
			select {
			case <-rest.C:
			case <-drained:
			}
		}
	}
}

func (j *Journal) discard(drained <-chan struct{}) {
	for {
		select {
		case <-j.finish:
		case <-drained:
			return
		}
	}
}

// chain gives w its chain value and publishes it. That of a received frame was known.
func (j *Journal) chain(w *written) {
	if w.after.Segment != 0 {
		return
	}
	j.mu.Lock()
	before := j.chained[len(j.chained)-1].Chain
	j.mu.Unlock()
	if w.image != nil {
		w.chain = nextChain(before, w.image)
		w.mem.free()
		w.image, w.mem = nil, nil
	}
	w.h.Chain = before // what precedes w; the header's own copy lags
	j.mu.Lock()
	j.held -= w.held
	j.pushEnd(w)
	j.trimChainedLocked()
	j.broadcastLocked()
	j.mu.Unlock()
}

func (j *Journal) pushEnd(w *written) {
	bytes := j.chained[len(j.chained)-1].Bytes
	w.after = frameEnd{
		Cursor: Cursor{Position{w.h.Epoch, w.h.Last}, w.chain}, Time: w.end, Segment: w.segment, Offset: w.offset + w.h.Bytes,
		StartSegment: w.segment, Start: w.offset, Bytes: bytes + w.h.Bytes, Epochs: int(w.ordinal),
	}
	j.chained = append(j.chained, w.after)
	j.recent.push(Cursor{Position{w.h.Epoch, w.h.Last}, w.chain})
}

func nextChain(before Chain, image []byte) Chain {
	h := blake3.New()
	_, _ = h.Write(before[:]) // a hash takes everything
	_, _ = h.Write(image)
	var c Chain
	h.Sum(c[:0])
	return c
}

// maxBatchMeta bounds the records of one batch, by their bytes in frames: Pebble does
// not survive a batch of 4 GiB, and an entry is far larger than what it says.
const maxBatchMeta = 2 << 20

// applyAll is apply in as few batches as are safe.
func (j *Journal) applyAll(ws []*written) error {
	for len(ws) > 0 {
		n, meta := 1, ws[0].h.MetaBytes
		for n < len(ws) && meta+ws[n].h.MetaBytes <= maxBatchMeta {
			meta += ws[n].h.MetaBytes
			n++
		}
		if err := j.apply(ws[:n]); err != nil {
			return err
		}
		ws = ws[n:]
	}
	return nil
}

// apply puts frames into the index in one batch, and lets reads see them.
func (j *Journal) apply(ws []*written) (err error) {
	b := j.db.NewBatch()
	defer func() { err = errors.Join(err, b.Close()) }()
	for _, w := range ws {
		if err := j.applyFrame(b, w); err != nil {
			return err
		}
	}
	w := ws[len(ws)-1]
	rolled := j.through.Segment != 0 && j.through.Segment != w.segment
	j.mu.Lock()
	j.through.frameEnd = w.after
	j.through.Durable = j.durableUpTo(w.after)
	j.mu.Unlock()
	j.through.Site = j.site.count()
	raw, err := json.Marshal(j.through)
	if err != nil {
		return err
	}
	if err := b.Set([]byte(keyThrough), raw, nil); err != nil {
		return err
	}
	if err := b.Commit(pebble.NoSync); err != nil {
		return err
	}
	if rolled {
		j.rolled++
	}
	if j.rolled >= flushSegments {
		j.rolled = 0
		if _, err := j.db.AsyncFlush(); err != nil {
			return err
		}
	}
	j.mu.Lock()
	for _, w := range ws {
		if w.received {
			j.unindexed -= int64(w.h.MetaBytes)
		}
	}
	j.indexed = w.h.Last
	j.branches[len(j.branches)-1].Last = j.through.Cursor
	j.broadcastLocked()
	j.mu.Unlock()
	return nil
}

// durableUpTo is the newest durable frame end that is not behind at, which the index
// goes up to: received frames may be durable before they are indexed. mu is held.
func (j *Journal) durableUpTo(at frameEnd) frameEnd {
	if durable := j.chained[0]; durable.Bytes <= at.Bytes {
		return durable
	}
	return at
}

func (j *Journal) applyFrame(b *pebble.Batch, w *written) error {
	ordinal := w.ordinal
	if w.recs[0].kind == KindEpoch {
		if err := j.saveBranches(b, ordinal); err != nil {
			return err
		}
	}
	if j.through.Samples.due(w, w.recs[0].kind == KindEpoch) {
		s := sample{w.segment, w.offset, w.h.Time, w.h.Chain}
		if err := b.Set(sampleKey(ordinal, w.h.First), s.encode(), nil); err != nil {
			return err
		}
	}
	inKey := ordinal
	if j.o.faults.keyWithoutEpoch {
		inKey = 1
	}
	set := func(k, v []byte) error { return b.Set(k, v, nil) }
	for i, r := range w.recs {
		s := w.h.First + Seq(i)
		switch {
		case r.kind.hasExtent():
			if err := j.noteLevels(b, r); err != nil {
				return err
			}
			if err := j.entries.record(r, inKey, s, w.segment, w.offset, set); err != nil {
				return err
			}
		case r.kind <= KindAnchor:
			if err := catalogue(b, r, ordinal, s); err != nil {
				return err
			}
			j.learnKey(r)
		}
	}
	return nil
}

// noteLevels keeps the levels that a volume has nodes of: lookups visit no others.
func (j *Journal) noteLevels(b *pebble.Batch, r *record) error {
	var mask uint16
	top := maxLevel
	if r.kind.hasPayload() {
		top = levelMegabyte
	}
	cut(r.extent, top, func(n node) { mask |= 1 << n.level })
	j.mu.Lock()
	old := j.levels[r.volume]
	j.levels[r.volume] = old | mask
	j.mu.Unlock()
	if old|mask == old {
		return nil
	}
	return b.Set(levelsKey(r.volume), []byte{byte((old | mask) >> 8), byte(old | mask)}, nil)
}

// saveBranches makes a new epoch, and where the one before it ended, part of the
// index together with the new one's first frame.
func (j *Journal) saveBranches(b *pebble.Batch, ordinal uint32) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	for o := max(ordinal, 2) - 1; o <= ordinal; o++ {
		if err := b.Set(branchKey(o), encodeBody(j.branches[o-1]), nil); err != nil {
			return err
		}
	}
	return nil
}
