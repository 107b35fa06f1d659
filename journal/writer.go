package journal

import (
	"context"
	"fmt"
	"github.com/novacron/afterimage/cbt"
)

// Writer is the primary's pen for one epoch. It is a cbt.Sink; all methods are
// safe for concurrent use. Once a newer epoch is known every call returns
// ErrFenced.
type Writer struct {
	j     *Journal
	epoch Epoch
}

var _ cbt.Prompt = (*Writer)(nil)

// waitRunning returns once Run has begun, which its caller started beside us.
func (j *Journal) waitRunning(ctx context.Context) error {
	return j.waitFor(ctx, func() bool { return j.running || j.closing })
}

// Epoch is the epoch that w writes.
func (w *Writer) Epoch() Epoch { return w.epoch }

// Record gives ev its seq. It blocks only while maxPending bytes are under way, and
// while it reads what a rewrite may repeat (rewrite.go); never for events that carry
// no extent. A refused write (ErrFull) owes its
// volume a gap, which goes before whatever is recorded next.
func (w *Writer) Record(ctx context.Context, ev cbt.Event) (cbt.Pending, error) {
	r, err := recordOf(ev)
	if err != nil {
		return nil, err
	}
	j := w.j
	if err := w.prepare(r); err != nil {
		return nil, fmt.Errorf("record %s: %w", r.kind, err)
	}
	j.mu.Lock()
	for r.kind.hasExtent() && j.pending+j.held > maxPending && j.writer == w && j.stoppedLocked() == nil {
		ch := j.changed
		j.mu.Unlock()
		select {
		case <-ch:
		case <-ctx.Done():
			return nil, fmt.Errorf("record %s: %w", r.kind, ctx.Err())
		}
		j.mu.Lock()
	}
	r = w.sameLocked(ctx, r, ev.Data)
	p, err := w.recordLocked(ev, r)
	j.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("record %s: %w", r.kind, err)
	}
	if r.stored > 0 {
		p.c.fillIn(r, p.seq, j.identity)
		j.wakeCommitter()
	}
	return p, nil
}

// RecordNow implements cbt.Prompt.
func (w *Writer) RecordNow(ev cbt.Event) (cbt.Pending, bool) {
	j := w.j
	if j.o.Sync != SyncProcess {
		return nil, false
	}
	r, err := recordOf(ev)
	if err != nil || !r.kind.hasExtent() || w.prepare(r) != nil {
		return nil, false
	}
	j.mu.Lock()
	r.volume = j.volumes[ev.Volume].Ordinal
	if j.pending+j.held > maxPending || j.rewrites.repeats(r, j.indexed) {
		j.mu.Unlock()
		return nil, false
	}
	p, err := w.recordLocked(ev, r)
	j.mu.Unlock()
	if err != nil {
		return nil, false
	}
	if r.stored > 0 {
		p.c.fillIn(r, p.seq, j.identity)
	}
	return p, true
}

// Commit implements cbt.Prompt.
func (w *Writer) Commit() { w.j.commitHere() }

// recordLocked checks r, which is of ev, and gives it its place in the order.
func (w *Writer) recordLocked(ev cbt.Event, r *record) (p pendingRecord, err error) {
	j := w.j
	if err := w.usableLocked(); err != nil {
		return p, err
	}
	v, ok := j.volumes[ev.Volume]
	if !ok || v.Left {
		return p, fmt.Errorf("volume %s: %w", ev.Volume, ErrUnknownVolume)
	}
	if r.kind.hasExtent() && !ev.Extent.Within(v.Size) {
		return p, fmt.Errorf("%v of volume %s of %d bytes: %w", ev.Extent, v.Name, v.Size, ErrOutOfRange)
	}
	r.volume = v.Ordinal
	if err := j.sealLocked(r); err != nil {
		return p, err
	}
	if q := j.o.QuotaBytes; q > 0 && r.kind.hasExtent() && j.usedLocked()+j.pending+ev.Extent.Length > q && r.kind.hasPayload() {
		j.oweLocked(ev.Volume)
		return p, fmt.Errorf("quota of %d bytes: %w", q, ErrFull)
	}
	return j.enqueueLocked(r), nil
}

// usableLocked is why w may not write, or nil.
func (w *Writer) usableLocked() error {
	switch j := w.j; {
	case j.err != nil:
		return j.err
	case j.closing || !j.running:
		return ErrClosed
	case j.writer != w || w.epoch.ID.IsZero():
		return ErrFenced
	}
	return nil
}

func recordOf(ev cbt.Event) (*record, error) {
	r := &record{volumeID: ev.Volume, extent: ev.Extent, time: ev.At.Round(0)}
	switch ev.Kind {
	case cbt.EventWrite, cbt.EventFill:
		r.kind, r.data = KindWrite, ev.Data
		if ev.Kind == cbt.EventFill {
			r.kind = KindFill
		}
		if int64(len(ev.Data)) != ev.Extent.Length || ev.Extent.Length > cbt.MaxWriteBytes {
			return nil, fmt.Errorf("record %s: %d bytes for %v: %w", r.kind, len(ev.Data), ev.Extent, ErrOutOfRange)
		}
		r.cells = cellCRCs(ev.Extent.Offset, ev.Data)
	case cbt.EventZero:
		r.kind = KindZero
	case cbt.EventTrim:
		r.kind = KindTrim
	case cbt.EventSynced:
		return &record{kind: KindSynced, volumeID: ev.Volume, time: ev.At.Round(0)}, nil
	case cbt.EventGap:
		detail := ev.Detail[:min(len(ev.Detail), maxDetailBytes)]
		return &record{kind: KindGap, volumeID: ev.Volume, time: ev.At.Round(0), body: encodeBody(gapBody{ev.Cause, detail})}, nil
	default:
		return nil, fmt.Errorf("record event of kind %d: %w", ev.Kind, ErrOutOfRange)
	}
	if ev.Extent.Length <= 0 || !ev.Extent.Aligned() {
		return nil, fmt.Errorf("record %s: %v is not made of sectors: %w", r.kind, ev.Extent, ErrOutOfRange)
	}
	return r, nil
}

// control records r and returns when it is durable.
func (w *Writer) control(ctx context.Context, r *record) (Position, error) {
	if len(r.body) > maxBodyBytes {
		return Position{}, fmt.Errorf("record %s: body of %d bytes: %w", r.kind, len(r.body), ErrOutOfRange)
	}
	j := w.j
	j.mu.Lock()
	if err := w.usableLocked(); err != nil {
		j.mu.Unlock()
		return Position{}, fmt.Errorf("record %s: %w", r.kind, err)
	}
	if r.kind == KindVolume {
		if done := w.volumeLocked(r); done {
			j.mu.Unlock()
			return Position{}, nil
		}
	}
	p := j.enqueueLocked(r)
	j.mu.Unlock()
	if err := p.Wait(ctx); err != nil {
		return Position{}, fmt.Errorf("record %s: %w", r.kind, err)
	}
	at := Position{w.epoch.ID, p.seq}
	return at, j.WaitDurable(ctx, at)
}

// AddVolume makes v part of the group, or resizes it; durable on return.
func (w *Writer) AddVolume(ctx context.Context, v cbt.Volume) error {
	return w.addVolume(ctx, v, false)
}

// JoinVolume is AddVolume for one that nobody's points wait for: those of the others
// cover it once it was synced.
func (w *Writer) JoinVolume(ctx context.Context, v cbt.Volume) error {
	return w.addVolume(ctx, v, true)
}

func (w *Writer) addVolume(ctx context.Context, v cbt.Volume, joins bool) error {
	if v.ID == (cbt.VolumeID{}) || v.Size <= 0 || v.Size%cbt.SectorBytes != 0 {
		return fmt.Errorf("add volume %q of %d bytes: %w", v.Name, v.Size, ErrOutOfRange)
	}
	_, err := w.control(ctx, &record{kind: KindVolume, volumeID: v.ID, body: encodeBody(volumeBody{ID: v.ID, Name: v.Name, Size: v.Size, Joins: joins})})
	return err
}

// LeaveVolume ends v's part in the group; durable on return. Points of the others go
// on without it, what it held stays readable at the points before, and nothing more
// is recorded of it until it is added again. One that is no part already is left alone.
func (w *Writer) LeaveVolume(ctx context.Context, v cbt.VolumeID) error {
	w.j.mu.Lock()
	old, ok := w.j.volumes[v]
	w.j.mu.Unlock()
	if !ok || old.Left {
		return nil
	}
	_, err := w.control(ctx, &record{kind: KindVolume, volumeID: v, body: encodeBody(volumeBody{ID: v, Name: old.Name, Size: old.Size, Left: true})})
	return err
}

// volumeLocked gives a volume its ordinal; true when nothing changes. How it came into
// the group is not changed by a record that resizes it.
func (w *Writer) volumeLocked(r *record) bool {
	j := w.j
	var b volumeBody
	_ = decodeBody(r.body, &b) // encoded by addVolume or LeaveVolume
	old, ok := j.volumes[b.ID]
	b.Ordinal = old.Ordinal
	if ok && !old.Left && !b.Left {
		b.Joins = old.Joins
	}
	if ok && old == b {
		return true
	}
	if !ok {
		j.ordinals++ // never given again, even if the record is refused
		b.Ordinal = j.ordinals
	}
	if ok && b.Size < old.Size { // what is cut off must not come back when it grows
		cut := cbt.Extent{Offset: b.Size, Length: old.Size - b.Size}
		j.enqueueLocked(&record{kind: KindTrim, volume: old.Ordinal, volumeID: b.ID, extent: cut})
	}
	r.volume, r.body = b.Ordinal, encodeBody(b)
	volumes := j.volumes
	r.undo = func() {
		if delete(volumes, b.ID); ok {
			volumes[b.ID] = old
		}
	}
	j.volumes[b.ID] = b
	return false
}

// Mark labels the moment of the call; durable on return. The point may lie in a
// gap: then the mark exists and ErrNoPoint is returned with it.
func (w *Writer) Mark(ctx context.Context, m Mark) (Point, error) {
	at, err := w.control(ctx, &record{kind: KindMark, body: encodeBody(m)})
	if err != nil {
		return Point{}, err
	}
	return w.j.pointAt(ctx, at)
}

// Machine records a machine's definition as of now; durable on return.
func (w *Writer) Machine(ctx context.Context, name string, definition []byte) error {
	_, err := w.control(ctx, &record{kind: KindMachine, body: encodeBody(machineBody{name, definition})})
	return err
}

// WaitDurable returns once all that was recorded before the call survives the loss
// of power.
func (w *Writer) WaitDurable(ctx context.Context) error {
	j := w.j
	j.mu.Lock()
	err, at := w.usableLocked(), j.next-1
	j.mu.Unlock()
	if err != nil {
		return err
	}
	return j.WaitDurable(ctx, Position{w.epoch.ID, at})
}

// ReadHead reads v as of at least all that was answered before the call.
func (w *Writer) ReadHead(ctx context.Context, v cbt.VolumeID, off int64, p []byte) error {
	j := w.j
	j.mu.Lock()
	err, s, epochs := w.usableLocked(), j.written, len(j.branches)
	vol, ok := j.volumes[v]
	l := append(Lineage(nil), j.lineage...)
	j.mu.Unlock()
	if err != nil {
		return fmt.Errorf("read head: %w", err)
	}
	if !ok {
		return fmt.Errorf("read head: volume %s: %w", v, ErrUnknownVolume)
	}
	if err := j.waitIndexed(ctx, epochs, s); err != nil {
		return fmt.Errorf("read head: %w", err)
	}
	l[len(l)-1].Last = max(s, l[len(l)-1].First)
	return j.reader(l).readAt(ctx, vol, p, off)
}
