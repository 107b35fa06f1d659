package journal

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// A delta brings a journal that lacks history to a later record of the same history
// without the frames in between, which may be folded here: of every sector that
// changed between the two the newest version, and all control records. It is a run
// (run.go), made for the journal where it lands: its number and the ordinals of its
// epochs are those that come next there (DeltaPlace).
//
//	history        … after ┄┄┄┄┄┄┄┄ to | frames that follow as they lie …
//	here           [ runs ……………][ segments ……
//	there, before  [ runs ][ segments ]
//	there, after   [ runs …………… ][ delta ] | segments of the frames that follow
//
// What the newest version of a sector at to is, the index knows whether its history
// was folded or not, and whether it is newer than after: so after need not be a point
// here any more. Stored bytes are carried as they are: a journal without the key
// makes and takes deltas like any other. No record between after and to is a point
// there; to is one if it is one here.

// DeltaPlace is where a delta lands: what its parts are called there.
type DeltaPlace struct {
	After  Position // last record that both histories hold; zero: none
	Run    uint64   // number of the run
	Epochs int      // held there: the next one's ordinal is one more
}

// DeltaEnd is what a delta leads to.
type DeltaEnd struct {
	Cursor
	Time time.Time // of the record
}

// Delta is a delta that can be made. What it leads to stays readable until Close.
type Delta struct {
	j     *Journal
	after Position
	to    DeltaEnd
	point bool // to is a point
}

// OpenDelta finds the record to which a delta that begins after a record of the
// current lineage (zero: the beginning) leads: the durable end, if newest, else the
// earliest from which on all frames are left. Errors: ErrNotContiguous when after is
// not in the current lineage, or nothing lies between.
func (j *Journal) OpenDelta(ctx context.Context, after Position, newest bool) (*Delta, error) {
	d, err := j.openDelta(ctx, after, newest)
	if err != nil {
		return nil, fmt.Errorf("open delta after %s: %w", after, err)
	}
	return d, nil
}

func (j *Journal) openDelta(ctx context.Context, after Position, newest bool) (*Delta, error) {
	l, err := j.settled(ctx)
	if err != nil {
		return nil, err
	}
	if !after.IsZero() && !l.Holds(after) {
		return nil, fmt.Errorf("%w: not in the current lineage", ErrNotContiguous)
	}
	d := &Delta{j: j, after: after}
	for range 16 { // a fold may take away what was found
		if d.to.Position, err = j.deltaEnd(ctx, l, after, newest); err != nil {
			return nil, err
		}
		if d.to.Seq <= after.Seq {
			return nil, fmt.Errorf("%w: nothing lies between it and %s", ErrNotContiguous, d.to.Position)
		}
		if err = j.use(d.to.Position); !errors.Is(err, ErrReclaimed) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	if err := d.describe(ctx); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// describe finds out about the record that d leads to, which is in use.
func (d *Delta) describe(ctx context.Context) (err error) {
	if d.to.Chain, err = d.j.chainOf(ctx, d.to.Position); err != nil {
		return err
	}
	if d.to.Time, err = d.j.timeAt(ctx, d.to.Position); err != nil {
		return err
	}
	l, err := d.j.lineageAt(d.to.Position)
	if err != nil {
		return err
	}
	span, any, err := d.j.lastSpan(l)
	d.point = any && span.Open && span.Last == d.to.Position
	return err
}

// deltaEnd is the end of a durable frame of l, behind folded history where it can be:
// the newest, or the first that leads on from after, which may lie within a frame.
func (j *Journal) deltaEnd(ctx context.Context, l Lineage, after Position, newest bool) (Position, error) {
	j.mu.Lock()
	durable := j.durableLocked().Position
	j.mu.Unlock()
	p := j.history()
	if newest || len(p.state.Runs) == 0 {
		return durable, nil
	}
	at := spot{segment: p.state.floor(), offset: pageBytes}
	if !after.IsZero() {
		held, err := j.frameOf(ctx, after)
		if err == nil && held.segment >= at.segment {
			at = spot{segment: held.segment, offset: held.offset}
		} // else it is folded
		if err := ctx.Err(); err != nil {
			return Position{}, err
		}
	}
	for {
		h, _, err := j.segs.frameAt(at.segment, at.offset)
		if errors.Is(err, errNoFrame) {
			if at, err = j.overTrailer(at); err == nil {
				continue
			}
		}
		if err != nil { // the log ends: all of it is folded
			return durable, nil
		}
		if i, ok := l.Owner(h.First); ok && i.Epoch == h.Epoch {
			last := Position{h.Epoch, min(h.Last, i.Last)}
			if last.Seq > durable.Seq {
				return durable, nil
			}
			if last.Seq > after.Seq {
				return last, nil
			}
		}
		at.offset += h.Bytes
	}
}

// To is the record that the delta leads to.
func (d *Delta) To() DeltaEnd { return d.to }

// Close ends the use of d.
func (d *Delta) Close() { d.j.leave(d.to.Position) }

// Write makes the delta for a place and writes it to w, some MiB at a time. It reads
// and verifies every byte that it carries; a *DamageError names what does not verify.
func (d *Delta) Write(ctx context.Context, w io.Writer, at DeltaPlace) error {
	m, err := d.maker(ctx, w, at)
	if err == nil {
		err = m.write(ctx)
	}
	if err != nil {
		return fmt.Errorf("write delta to %s: %w", d.to.Position, err)
	}
	return nil
}

// deltaMaker writes one delta.
type deltaMaker struct {
	*Delta
	out      io.Writer
	file     *deltaFile
	run      *runWriter
	copier   maintainer
	epochs   []Branch            // that the delta tells of, as far as it goes
	ordinals map[uint32]uint32   // of them: here to there
	in       map[uint32]Interval // records that it stands for, by ordinal here
}

// deltaFile is what a run is written to on its way.
type deltaFile struct {
	vfs.File
	buf []byte
}

func (f *deltaFile) Write(p []byte) (int, error) { f.buf = append(f.buf, p...); return len(p), nil }
func (f *deltaFile) SyncData() error             { return nil }
func (f *deltaFile) Sync() error                 { return nil }
func (f *deltaFile) Close() error                { return nil }

func (d *Delta) maker(ctx context.Context, w io.Writer, at DeltaPlace) (*deltaMaker, error) {
	if at.After != d.after || at.Run == 0 || at.Epochs < 0 {
		return nil, fmt.Errorf("%w: the delta begins after %s, not %s", ErrNotContiguous, d.after, at.After)
	}
	m := &deltaMaker{Delta: d, out: w, file: new(deltaFile), ordinals: make(map[uint32]uint32), in: make(map[uint32]Interval)}
	if err := m.findEpochs(at); err != nil {
		return nil, err
	}
	p := newPace(ctx, 0) // who takes what is written sets the pace
	m.copier = maintainer{j: d.j, pace: p}
	var err error
	if m.run, err = newRunWriterTo(m.file, at.Run, d.j.identity, d.j.o.Now(), p); err != nil {
		return nil, err
	}
	m.run.ordinals = m.ordinals
	return m, nil
}

// findEpochs finds the epochs of the delta, oldest first. The one that after lies in
// is among them if records of it follow.
func (m *deltaMaker) findEpochs(at DeltaPlace) error {
	bs := m.j.Branches()
	end := m.to.Cursor
	for e := m.to.Epoch; ; {
		b := find(bs, e)
		if b.ID != e || e.IsZero() {
			return fmt.Errorf("epoch %s: %w", e.Short(), ErrUnknownParent)
		}
		if e == m.after.Epoch && end.Seq <= m.after.Seq {
			break
		}
		b.Last = end
		m.epochs = append(m.epochs, b)
		if e == m.after.Epoch {
			break
		}
		if b.Parent.IsZero() {
			if !m.after.IsZero() {
				return fmt.Errorf("%w: record %s", ErrNotContiguous, m.after)
			}
			break
		}
		e, end = b.Parent.Epoch, b.Parent
	}
	slices.Reverse(m.epochs)
	next := uint32(at.Epochs)
	for _, b := range m.epochs {
		if b.ID != m.after.Epoch {
			next++
		}
		o := m.j.ordinalOf(b.ID)
		m.ordinals[o] = next
		m.in[o] = Interval{Epoch: b.ID, Number: b.Number, First: max(b.First(), m.after.Seq+1), Last: b.Last.Seq}
	}
	return nil
}

func (m *deltaMaker) write(ctx context.Context) error {
	changed, err := m.changed(ctx)
	if err != nil {
		return err
	}
	j := m.j
	s := &sweep{faults: j.o.faults, histories: []bounded{{last: make(map[uint32]Seq), bounds: []bound{{m.to.Seq, j.orderOf(m.to.Position)}}}}}
	for o, i := range m.in {
		s.histories[0].last[o] = i.Last
	}
	r := &versionReader{j: j, after: j.orderOf(m.after), to: j.orderOf(m.to.Position)}
	err = changed.each(func(volume uint32, offset int64) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := m.chunk(r, s, volume, offset); err != nil {
			return err
		}
		return m.send(leafBytes)
	})
	if err == nil {
		err = errors.Join(m.run.flushVersions(), m.catalogue())
	}
	if err != nil {
		return err
	}
	var points []runPoint
	if o := j.orderOf(m.to.Position); m.point {
		points = []runPoint{{order: order{m.ordinals[o.Ordinal], o.Seq}, time: m.to.Time, chain: m.to.Chain}}
	}
	if _, err := m.run.finish(points); err != nil {
		return err
	}
	return m.send(0)
}

// chunk puts what is seen of one MiB into the run. Nothing is sent meanwhile: the
// guard is short.
func (m *deltaMaker) chunk(r *versionReader, s *sweep, volume uint32, offset int64) error {
	m.j.reading.RLock()
	defer m.j.reading.RUnlock()
	vs, err := r.chunk(volume, offset)
	if err != nil {
		return err
	}
	if m.j.o.faults.deltaOlder && len(vs) > 1 {
		newest := slices.MaxFunc(vs, func(a, b version) int { return cmp.Compare(a.seq, b.seq) }).seq
		vs = slices.DeleteFunc(vs, func(v version) bool { return v.seq == newest })
	}
	return m.copier.copySurvivors(m.run, volume, s.survivors(offset, vs))
}

// send hands on what was written, if it is more than least.
func (m *deltaMaker) send(least int) error {
	if len(m.file.buf) <= least {
		return nil
	}
	_, err := m.out.Write(m.file.buf)
	m.file.buf = m.file.buf[:0]
	return err
}

// changed is the MiBs of which some version lies in the range.
func (m *deltaMaker) changed(ctx context.Context) (touched, error) {
	l, err := m.j.lineageAt(m.to.Position)
	if err != nil {
		return nil, err
	}
	vs, err := m.j.volumesIn(l)
	if err != nil {
		return nil, err
	}
	out := make(touched)
	for _, v := range vs {
		x := newExtents(1 << 62)
		if err := m.j.changedIn(ctx, v.Ordinal, m.in, x); err != nil {
			return nil, err
		}
		for _, e := range x.merged() {
			for at := e.Offset &^ (chunkBytes - 1); at < e.End(); at += chunkBytes {
				out.add(v.Ordinal, node{levelMegabyte, at})
			}
		}
	}
	return out, nil
}

// catalogue adds epochs and control records.
func (m *deltaMaker) catalogue() error {
	theirs := make(map[uint32]Branch)
	for _, b := range m.epochs {
		theirs[m.ordinals[m.j.ordinalOf(b.ID)]] = b
	}
	for _, o := range slices.Sorted(maps.Keys(theirs)) {
		if err := m.run.control(branchKey(o), encodeBody(theirs[o])); err != nil {
			return err
		}
	}
	return m.j.scanPrefix(prefixHappen, func(k, v []byte) error {
		o, s := happenedAt(k)
		i, ok := m.in[o]
		if !ok || s < i.First || s > i.Last {
			return nil
		}
		return m.run.control(happenKey(Kind(uint16(k[1])<<8|uint16(k[2])), m.ordinals[o], s), v)
	})
}
