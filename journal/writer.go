package journal

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/novacron/afterimage/cbt"
)

// Writer is the primary's pen for one epoch. It is a cbt.Sink; all methods are
// safe for concurrent use. Once a newer epoch is known every call returns
// ErrFenced.
type Writer struct {
	j     *Journal
	epoch Epoch
}

var _ cbt.Sink = (*Writer)(nil)

// BeginEpoch forks a new epoch at parent (zero: the head) and returns when its
// record is durable. Every interval is closed by it; earlier Writers are fenced
// before it begins. Its number is above every one that this journal knows and
// not below atLeast, a number that other sites are known to have used.
func (j *Journal) BeginEpoch(ctx context.Context, site string, parent Position, atLeast uint64) (*Writer, error) {
	w, err := j.beginEpoch(ctx, site, parent, atLeast)
	if err != nil {
		return nil, fmt.Errorf("begin epoch: %w", err)
	}
	return w, nil
}

func (j *Journal) beginEpoch(ctx context.Context, site string, parent Position, atLeast uint64) (*Writer, error) {
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
	j.writer = w // fences the one before
	j.mu.Unlock()
	if err := j.drain(ctx); err != nil {
		return nil, err
	}
	j.mu.Lock()
	n := len(j.branches)
	if parent.IsZero() && n > 0 {
		parent = j.durableLocked().Position
	}
	j.mu.Unlock()
	e := Epoch{Number: atLeast, ID: EpochID(cbt.NewID()), Site: site}
	if !parent.IsZero() {
		chain, err := j.chainOf(parent)
		if err != nil {
			return nil, err
		}
		e.Parent = Cursor{parent, chain}
	} else if n > 0 {
		return nil, fmt.Errorf("%w: the journal is not empty", ErrUnknownParent)
	}
	l, err := j.lineageAt(parent)
	if err != nil {
		return nil, err
	}
	volumes, err := j.volumesIn(l)
	if err != nil {
		return nil, err
	}
	floor, err := j.timeAt(ctx, parent)
	if err != nil {
		return nil, err
	}
	p, err := j.fork(w, e, l, volumes, floor)
	if err != nil {
		return nil, err
	}
	if err := p.Wait(ctx); err != nil {
		return nil, err
	}
	if err := j.WaitDurable(ctx, Position{w.epoch.ID, p.seq}); err != nil {
		return nil, err
	}
	return w, nil
}

// drain waits until all that was recorded is durable and indexed.
func (j *Journal) drain(ctx context.Context) error {
	return j.waitFor(ctx, func() bool {
		return len(j.queue) == 0 && j.next == j.written+1 && j.synced >= j.written && j.indexed >= j.written && j.chained[0].Seq >= j.written
	})
}

// fork makes e the newest epoch and records it.
func (j *Journal) fork(w *Writer, e Epoch, l Lineage, volumes map[cbt.VolumeID]volumeBody, floor time.Time) (pendingRecord, error) {
	j.fileMu.Lock() // nothing is written between the end of one epoch and the start of the next
	defer j.fileMu.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.writer != w {
		return pendingRecord{}, ErrFenced
	}
	if err := j.stoppedLocked(); err != nil {
		return pendingRecord{}, err
	}
	for _, b := range j.branches {
		e.Number = max(e.Number, b.Number+1)
	}
	e.Number = max(e.Number, 1)
	e.Begun = later(floor, j.o.Now())
	if n := len(j.branches); n > 0 {
		if d := j.durableLocked().Cursor; d.Epoch == j.branches[n-1].ID {
			j.branches[n-1].Last = d
		}
	}
	w.epoch = e
	end := j.chained[len(j.chained)-1]
	end.Cursor, end.Start = e.Parent, 0
	end.Epochs = len(j.branches)
	j.branches = append(j.branches, Branch{Epoch: e, Last: e.Parent})
	j.lineage = append(l, Interval{e.ID, e.Number, e.First(), e.Parent.Seq})
	j.chained = []frameEnd{end}
	j.written, j.synced, j.indexed = e.Parent.Seq, e.Parent.Seq, e.Parent.Seq
	j.next, j.lastTime = e.First(), e.Begun
	j.volumes, j.owed = volumes, make(map[cbt.VolumeID]cbt.Cause)
	p := j.addLocked(&record{kind: KindEpoch, body: encodeBody(e)})
	j.broadcastLocked()
	return p, nil
}

// Epoch is the epoch that w writes.
func (w *Writer) Epoch() Epoch { return w.epoch }

// Record gives ev its seq. It blocks only while maxPending bytes are under way,
// and never for events that carry no extent. A refused write (ErrFull) owes its
// volume a gap, which goes before whatever is recorded next.
func (w *Writer) Record(ctx context.Context, ev cbt.Event) (cbt.Pending, error) {
	r, err := recordOf(ev)
	if err != nil {
		return nil, err
	}
	j := w.j
	j.mu.Lock()
	for r.kind.hasPayload() && j.pending > maxPending && j.writer == w && j.stoppedLocked() == nil {
		ch := j.changed
		j.mu.Unlock()
		select {
		case <-ch:
		case <-ctx.Done():
			return nil, fmt.Errorf("record %s: %w", r.kind, ctx.Err())
		}
		j.mu.Lock()
	}
	defer j.mu.Unlock()
	if err := w.usableLocked(); err != nil {
		return nil, fmt.Errorf("record %s: %w", r.kind, err)
	}
	v, ok := j.volumes[ev.Volume]
	if !ok {
		return nil, fmt.Errorf("record %s: volume %s: %w", r.kind, ev.Volume, ErrUnknownVolume)
	}
	if r.kind.hasExtent() && !ev.Extent.Within(v.Size) {
		return nil, fmt.Errorf("record %s: %v of volume %s of %d bytes: %w", r.kind, ev.Extent, v.Name, v.Size, ErrOutOfRange)
	}
	r.volume = v.Ordinal
	if q := j.o.QuotaBytes; q > 0 && r.kind.hasExtent() && j.bytes+j.pending+ev.Extent.Length > q && r.kind.hasPayload() {
		j.owed[ev.Volume] = cbt.CauseDiskFull
		return nil, fmt.Errorf("record %s: quota of %d bytes: %w", r.kind, q, ErrFull)
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
	r := &record{volumeID: ev.Volume, extent: ev.Extent}
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
		return &record{kind: KindSynced, volumeID: ev.Volume}, nil
	case cbt.EventGap:
		return &record{kind: KindGap, volumeID: ev.Volume, body: encodeBody(gapBody{ev.Cause, ev.Detail})}, nil
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
	if v.ID == (cbt.VolumeID{}) || v.Size <= 0 || v.Size%cbt.SectorBytes != 0 {
		return fmt.Errorf("add volume %q of %d bytes: %w", v.Name, v.Size, ErrOutOfRange)
	}
	_, err := w.control(ctx, &record{kind: KindVolume, volumeID: v.ID, body: encodeBody(volumeBody{0, v.ID, v.Name, v.Size})})
	return err
}

// volumeLocked gives a volume its ordinal; true when nothing changes.
func (w *Writer) volumeLocked(r *record) bool {
	j := w.j
	var b volumeBody
	_ = decodeBody(r.body, &b) // encoded by AddVolume
	old, ok := j.volumes[b.ID]
	b.Ordinal = old.Ordinal
	if ok && old == b {
		return true
	}
	if !ok {
		j.ordinals++
		b.Ordinal = j.ordinals
	}
	r.volume, r.body = b.Ordinal, encodeBody(b)
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
