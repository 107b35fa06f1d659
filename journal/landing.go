package journal

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/novacron/afterimage/cbt"
)

// A delta (delta.go) lands in a journal as its newest run, so all that is held must
// be folded before:
//
//  1. OpenLanding seals the segment under way and folds to the end, keeping what this
//     site's own retention keeps, and the record that the delta goes on from;
//  2. Take writes the delta into a file that no manifest names, makes it durable, and
//     verifies all of it against the history that is held (landcheck.go);
//  3. it remembers the manifest: from here on the delta is history, whatever happens;
//  4. the index takes it in, and the journal goes on behind it.
//
// A crash before 3 leaves a file that the next opening removes, and the journal as it
// was. After 3 an index that has not taken the run in is built anew from the runs.
// Reads at what was held before go on all the while; what lies between the record that
// the delta goes on from and the one that it leads to was never held here, and is no
// point.

// Landing is a journal that is ready to take a delta. It keeps Maintain out until Close.
type Landing struct {
	j      *Journal
	place  DeltaPlace
	end    order // the last record held
	parent forkPoint
	chain  Chain // at place.After
	used   bool  // place.After is in use
}

// maxLandingPoints bounds what a landing keeps of the time in which this site keeps
// every write: more become one for each of equal slots.
const maxLandingPoints = 1 << 18

// OpenLanding makes j ready for a delta that begins after a record of it: the durable
// end, or where the history goes on in another epoch (zero: j is empty). refs are what
// keeps points beside pins and views. Errors: ErrFenced where a Writer is in charge,
// ErrReclaimed when the record is folded and not kept, ErrRetained when the lock
// of retention forbids to fold, what a fold returns.
func (j *Journal) OpenLanding(ctx context.Context, after Position, refs []Reference) (*Landing, error) {
	j.maintaining.Lock()
	l := &Landing{j: j}
	if err := l.open(ctx, after, refs); err != nil {
		l.Close()
		return nil, fmt.Errorf("open landing after %s: %w", after, j.endIfUnsynced(err))
	}
	return l, nil
}

func (l *Landing) open(ctx context.Context, after Position, refs []Reference) (err error) {
	j := l.j
	if err := errors.Join(j.mayReceive(), j.mayLand()); err != nil {
		return err
	}
	l.place.After = after
	if err := j.drain(ctx); err != nil {
		return err
	}
	head := j.Head().Durable.Position
	if after.IsZero() != head.IsZero() || !after.IsZero() && !j.Lineage().Holds(after) {
		return fmt.Errorf("%w: the journal ends at %s", ErrNotContiguous, head)
	}
	if !after.IsZero() {
		if l.chain, err = j.chainOf(ctx, after); err != nil {
			return err
		}
	}
	if after != head && !j.o.faults.landForgetFork {
		if err := j.use(after); err != nil { // a branch of ours goes on behind it
			return err
		}
		l.used = true
	}
	t := &maintainer{j: j, m: Maintenance{References: refs}, now: j.o.Now(), pace: newPace(ctx, 0)}
	if err := t.finishChange(ctx); err != nil {
		return err
	}
	if _, err := j.site.recall(retentionKey, &t.m.Retention); err != nil {
		return err
	}
	if err := l.foldAll(ctx, t); err != nil {
		return err
	}
	if l.parent, err = j.forkAt(ctx, after); err != nil {
		return err
	}
	l.place.Run = max(j.history().state.Next, 1)
	return nil
}

// mayLand is why nothing may land, or nil.
func (j *Journal) mayLand() error {
	if _, unknown, err := j.SiteLogLoss(); err != nil {
		return err
	} else if unknown { // what is kept would be chosen by pins that may be missing
		return ErrSiteLogLost
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.readOnly {
		return ErrReadOnly
	}
	return nil
}

// Place is where the delta lands.
func (l *Landing) Place() DeltaPlace { return l.place }

// Close ends the landing; Maintain may run again.
func (l *Landing) Close() {
	if l.used {
		l.j.leave(l.place.After)
	}
	l.j.maintaining.Unlock()
}

// foldAll folds everything.
func (l *Landing) foldAll(ctx context.Context, t *maintainer) error {
	j := l.j
	if err := l.sealAll(ctx); err != nil {
		return err
	}
	for {
		p := j.history()
		if !l.end.after(p.to) {
			break
		}
		if p.to == (order{}) || len(p.state.Runs) == 0 || p.state.Runs[len(p.state.Runs)-1].To != l.end {
			if err := l.coarsen(ctx, t); err != nil {
				return err
			}
		}
		refs, err := j.references(t.m)
		if err != nil {
			return err
		}
		j.mu.Lock()
		last := j.out.number - 1
		j.mu.Unlock()
		if err := t.fold(ctx, last, refs); err != nil {
			return err
		}
	}
	return l.standAtEnd()
}

// sealAll ends the segment under way, so that the next frame begins another.
func (l *Landing) sealAll(ctx context.Context) error {
	j := l.j
	if err := j.drain(ctx); err != nil {
		return err
	}
	j.fileMu.Lock()
	defer j.fileMu.Unlock()
	if err := j.mayReceive(); err != nil {
		return err
	}
	switch {
	case j.out.fresh:
	case j.out.at > pageBytes:
		if err := j.outcome(j.seal()); err != nil {
			return err
		}
	default: // made for a frame that did not come whole
		j.out.fresh = true
		if f := j.out.file; f != nil {
			if err := f.Close(); err != nil {
				return err
			}
			j.out.file = nil
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	l.place.Epochs = len(j.branches)
	l.end = order{uint32(len(j.branches)), j.written}
	return nil
}

// coarsen bounds the points that the fold keeps of the time in which every write is one.
func (l *Landing) coarsen(ctx context.Context, t *maintainer) error {
	j := l.j
	dense, forEver := t.m.dense()
	head := j.Head()
	n, from := uint64(head.Seq-min(head.Seq, j.history().to.Seq)), t.now.Add(-dense)
	if n <= maxLandingPoints {
		return nil
	}
	first, err := j.timeAt(ctx, j.Usage().FramesFrom)
	if err != nil {
		return err
	}
	if forEver || from.Before(first) {
		from = first
	}
	if !head.Time.After(from) { // what is held is older than that
		return nil
	}
	if t.m.Lock > 0 && head.Time.After(t.now.Add(-t.m.Lock)) {
		return fmt.Errorf("%w: %d records are to be folded, of the last %v", ErrRetained, n, t.m.Lock)
	}
	every := (head.Time.Sub(from)/maxLandingPoints + time.Second).Truncate(time.Second)
	ladder := []Rung{{Every: every, For: dense}}
	if forEver {
		ladder[0].For = 0
	}
	for _, g := range t.m.Ladder {
		if g.Every > every {
			ladder = append(ladder, g)
		}
	}
	t.m.Ladder, t.m.Lock = ladder, 0
	j.o.Log.Warn("history is thinned to let a delta land", "dir", j.dir, "records", n, "every", every)
	return nil
}

// standAtEnd makes the end of folded history, which is all there is, the place from
// which an opening goes on.
func (l *Landing) standAtEnd() error {
	j := l.j
	j.fileMu.Lock()
	defer j.fileMu.Unlock()
	if err := l.unchanged(); err != nil {
		return err
	}
	p := j.history()
	if len(p.state.Runs) == 0 {
		return nil
	}
	j.mu.Lock()
	newest := j.branches[len(j.branches)-1]
	newest.Last = p.state.End.Cursor
	j.mu.Unlock()
	b := j.db.NewBatch()
	err := b.Set(branchKey(uint32(p.state.End.Epochs)), encodeBody(newest), nil)
	if err == nil {
		err = j.goOnFrom(b, p.state.End)
	}
	if err = errors.Join(err, b.Close()); err != nil {
		return err
	}
	j.mu.Lock()
	j.chained = []frameEnd{p.state.End}
	j.mu.Unlock()
	return nil
}

// goOnFrom commits a batch with which the index has come as far as end, which is
// durable, and makes that durable. fileMu is held and nothing is under way, so
// nobody else has to do with through.
func (j *Journal) goOnFrom(b *pebble.Batch, end frameEnd) error {
	t := through{frameEnd: end, Durable: end, Site: j.site.count(), ReadOnly: j.through.ReadOnly}
	err := b.Set([]byte(keyThrough), encodeBody(t), nil)
	if err == nil {
		err = b.Commit(pebble.NoSync)
	}
	if err == nil {
		err = j.db.Flush()
	}
	if err == nil {
		j.through = t
	}
	return err
}

// unchanged is why the journal is not as it was when the landing was opened, or nil.
// fileMu is held.
func (l *Landing) unchanged() error {
	j := l.j
	if err := j.mayReceive(); err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if now := (order{uint32(len(j.branches)), j.written}); now != l.end || j.past.to != l.end && len(j.past.state.Runs) > 0 || j.past.state.Change != nil || !j.out.fresh || j.indexed != j.written {
		return fmt.Errorf("%w: the journal went on while a delta was coming", ErrNotContiguous)
	}
	return nil
}

// Take reads a delta from r to its end and makes it history; to is what the sender
// says that it leads to. It returns the record at which the journal stands then,
// durably. After an error the journal is as it was before.
func (l *Landing) Take(ctx context.Context, r io.Reader, to DeltaEnd) (Cursor, error) {
	c, err := l.take(ctx, r, to)
	if err != nil {
		return Cursor{}, fmt.Errorf("take delta to %s: %w", to.Position, l.j.endIfUnsynced(err))
	}
	return c, nil
}

func (l *Landing) take(ctx context.Context, r io.Reader, to DeltaEnd) (c Cursor, err error) {
	j := l.j
	installed := false
	defer func() {
		if !installed {
			j.runs.drop(l.place.Run)
			_ = j.o.FS.Remove(j.runs.path(l.place.Run)) // else the next opening does
		}
	}()
	size, err := l.write(ctx, r)
	if err != nil {
		return Cursor{}, err
	}
	d, err := l.check(ctx, size, to)
	if err != nil {
		return Cursor{}, err
	}
	installed, err = l.install(d)
	if err != nil {
		return Cursor{}, err
	}
	return to.Cursor, nil
}

// write writes what comes into the run's file, and makes it durable.
func (l *Landing) write(ctx context.Context, r io.Reader) (size int64, err error) {
	j := l.j
	f, err := j.o.FS.Create(j.runs.path(l.place.Run), vfs.WriteCategoryUnspecified)
	if err != nil {
		return 0, fullOr(err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	buf, unsynced := make([]byte, leafBytes), 0
	for {
		n, err := io.ReadFull(r, buf)
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return size, err
		}
		if cerr := errors.Join(ctx.Err(), j.roomFor(int64(n), size)); cerr != nil {
			return size, cerr
		}
		if _, werr := f.Write(buf[:n]); werr != nil {
			return size, fullOr(werr)
		}
		size += int64(n)
		ended := err != nil
		if unsynced += n; (unsynced >= syncRunBytes || ended) && !j.o.faults.landUnsynced {
			if err := synced(f.Sync()); err != nil {
				return size, fmt.Errorf("sync delta: %w", err)
			}
			unsynced = 0
		}
		if ended {
			return size, syncDir(j.o.FS, j.runs.dir)
		}
	}
}

// roomFor refuses n more bytes of a file of size that quota or disk have no room for.
func (j *Journal) roomFor(n, size int64) error {
	j.mu.Lock()
	used := j.usedLocked()
	j.mu.Unlock()
	if q := j.o.QuotaBytes; q > 0 && used+size+n > q {
		return fmt.Errorf("quota of %d bytes: %w", q, ErrFull)
	}
	if j.roomForRun() < n {
		return fmt.Errorf("no room for a delta beside the reserve: %w", ErrFull)
	}
	return nil
}

// install makes a verified delta history. done says that it is, whatever the error.
func (l *Landing) install(d *landed) (done bool, err error) {
	j := l.j
	j.fileMu.Lock()
	defer j.fileMu.Unlock()
	if err := l.unchanged(); err != nil {
		return false, err
	}
	p := j.history()
	state := p.state
	end := frameEnd{Cursor: d.to.Cursor, Time: d.to.Time, Segment: j.out.number, Offset: pageBytes, Bytes: p.state.End.Bytes, Epochs: int(d.manifest.To.Ordinal)}
	if len(p.state.Runs) > 0 {
		d.manifest.In = p.state.Runs[len(p.state.Runs)-1].Out
	}
	state.Runs = append(slices.Clone(state.Runs), d.manifest)
	state.Next, state.End, state.Recent, state.Swapped = d.manifest.Run+1, end, nil, d.manifest.Run
	if err := j.install(state, append(slices.Clone(p.kept), d.run.points...)); err != nil {
		return true, err // the site log may hold it: the next opening tells
	}
	if err := l.indexDelta(d, end); err != nil {
		return true, j.fail(fmt.Errorf("index delta: %w", err))
	}
	l.goOn(d, end)
	return true, nil
}

// indexDelta lets the index take the delta in. Nothing of it is seen yet: views end
// before its records.
func (l *Landing) indexDelta(d *landed, end frameEnd) error {
	j := l.j
	b := j.db.NewBatch()
	defer func() { _ = b.Close() }()
	put := func(k, v []byte) error {
		if err := b.Set(k, v, nil); err != nil || b.Len() < swapBatchBytes {
			return err
		}
		err := b.Commit(pebble.NoSync)
		b.Reset()
		return err
	}
	err := d.run.each(blockVersions, func(k, v []byte) error {
		e, err := decodeIndexKey(k)
		if err == nil {
			err = j.noteRunLevels(e.volume, 1<<e.node.level)
		}
		return errors.Join(err, put(k, v))
	})
	if err == nil {
		err = d.run.each(blockCatalogue, func(k, v []byte) error {
			if k[0] == prefixHappen {
				return rebuildHappening(b, k, v)
			}
			return put(k, v)
		})
	}
	if err == nil {
		err = errors.Join(keepTail(b, d.run), j.copySiteLog(b), b.Set([]byte(keyRuns), binary.AppendUvarint(nil, d.manifest.Run), nil))
	}
	if err != nil {
		return err
	}
	return j.goOnFrom(b, end)
}

// goOn makes the delta's end the head.
func (l *Landing) goOn(d *landed, end frameEnd) {
	j := l.j
	for _, k := range d.keys {
		j.learnKey(k)
	}
	j.reading.Lock()
	j.foldGen.Add(1)
	j.reading.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	j.branches, j.lineage, j.volumes = d.branches, d.lineage, d.volumes
	for id, v := range d.volumes {
		j.ordinals, j.names[v.Ordinal] = max(j.ordinals, v.Ordinal), id
	}
	j.chained, j.recent = []frameEnd{end}, recentFrom(end.Cursor)
	j.written, j.synced, j.indexed, j.next = end.Seq, end.Seq, end.Seq, end.Seq+1
	j.headTime, j.lastTime = end.Time, later(j.lastTime, end.Time)
	j.out.tail = end.Position
	j.rewrites.forget()
	j.live, j.owed = make(map[cbt.VolumeID]bool), make(map[cbt.VolumeID]cbt.Cause)
	j.broadcastLocked()
}
