package qemu

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/nbd"
)

// tap is one attachment to one disk: the device behind a capture export. It
// lives from blockdev-add until it lets go, which it does once and for ever.
// From then on it is a drain: it records nothing, and answers every request at
// once and without an error, until the mirror job has been ended in order. The
// gap has its place before any such answer matters to another disk (Gate), and
// the bitmaps know the writes.
//
// An error would end the job too, but not safely: QEMU 7.2 frees the mirror's
// in_flight_bitmap on every exit by error or by forced cancel while guest writes
// are still under way, and they then clear bits in freed memory (seen by
// valgrind, and as crashes). A job that is cancelled softly drains first.
type tap struct {
	volume cbt.Volume
	node   string // of the target, inside QEMU
	export string
	sink   cbt.Sink
	prompt cbt.Prompt // sink, or nil where it is none
	gate   *Gate
	pulse  *pulse
	faults *faults

	answers *cbt.Meter

	mask cbt.Mask
	seq  sequencer

	// live ends, with a *breakError as its cause, when the tap lets go.
	live context.Context
	end  context.CancelCauseFunc

	journaled atomic.Int64 // bytes given to the sink by writes

	// marking is held while EventSynced takes its place, so that a gap that
	// follows it cannot come before it.
	marking sync.Mutex

	mu        sync.Mutex  // guards what follows
	letting   bool        // the tap has let go
	open      bool        // EventSynced may have its place in the order: a gap is due
	opened    bool        // QEMU has the export
	complete  bool        // every sector is known; changes owe no refill
	comparing *comparison // nil: all that arrives is recorded
	owing     int         // unaligned changes under way that will owe one
	owed      []cbt.Extent
	settled   chan struct{} // signalled when owing falls
	idle      chan struct{} // signalled when ops is empty
	ops       map[uint64]time.Time
	nextOp    uint64
	onLetGo   func(*breakError, bool) // once, with the gate shut if a gap is due
}

var _ nbd.Device = (*tap)(nil)

// letGo ends the tap. If the volume's interval was open the gate is shut before
// any request is answered; onLetGo must see to the gap and open it again.
func (t *tap) letGo(b *breakError) {
	t.mu.Lock()
	if t.letting {
		t.mu.Unlock()
		return
	}
	t.letting = true
	open := t.open
	if open {
		t.gate.hold()
	}
	t.mu.Unlock()
	t.end(b)
	t.onLetGo(b, open)
}

// begin admits a request, and finish or give must follow; or it says that the tap only
// drains any more.
func (t *tap) begin() (op uint64, admitted bool) {
	if late := t.pulse.late(); late > 0 && !t.faults.ignorePause {
		// We were stopped: the watchdog may have cut other disks loose, and what
		// waits in this socket may depend on writes that nobody recorded.
		t.letGo(breakage(cbt.CauseStall, fmt.Errorf("this process stood still for %v", late.Round(time.Millisecond))))
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.letting {
		return 0, false
	}
	t.nextOp++
	t.ops[t.nextOp] = time.Now()
	return t.nextOp, true
}

// finish ends a request that is about to be answered.
func (t *tap) finish(op uint64) {
	t.answers.Answered(time.Since(t.give(op)))
}

// give ends a request here, which began at the given time.
func (t *tap) give(op uint64) (began time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	began = t.ops[op]
	delete(t.ops, op)
	if len(t.ops) == 0 {
		signal(t.idle)
	}
	return began
}

// drained returns once no request is under way. After letGo none begins, so
// nothing of this tap can take a place in the order any more.
func (t *tap) drained(ctx context.Context) error {
	for !t.oldest().IsZero() {
		select {
		case <-t.idle:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// oldest is when the oldest request under way began; zero if there is none.
func (t *tap) oldest() time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	var first time.Time
	for _, at := range t.ops {
		if first.IsZero() || at.Before(first) {
			first = at
		}
	}
	return first
}

// WriteAt records a guest's write; it returns once the record is safe.
func (t *tap) WriteAt(_ context.Context, p []byte, off int64, _ bool) error {
	op, admitted := t.begin()
	if !admitted {
		return nil
	}
	defer t.finish(op)
	return t.answer(t.change(cbt.Extent{Offset: off, Length: int64(len(p))}, func(whole cbt.Extent, edges edges) []cbt.Event {
		data := p
		if edges.any() {
			data = make([]byte, whole.Length)
			copy(data[off-whole.Offset:], p)
			edges.put(whole, cbt.Extent{Offset: off, Length: int64(len(p))}, data)
		}
		return split(cbt.Event{Kind: cbt.EventWrite, Volume: t.volume.ID, Extent: whole, Data: data})
	}))
}

// Zero records that e reads as zeros.
func (t *tap) Zero(_ context.Context, e cbt.Extent, _, _ bool) error {
	op, admitted := t.begin()
	if !admitted {
		return nil
	}
	defer t.finish(op)
	return t.answer(t.change(e, func(whole cbt.Extent, edges edges) []cbt.Event {
		return edges.zeros(t.volume.ID, e, whole)
	}))
}

// Trim records a discard of the whole sectors in e; the rest of it is the
// guest's to forget.
func (t *tap) Trim(_ context.Context, e cbt.Extent, _ bool) error {
	op, admitted := t.begin()
	if !admitted {
		return nil
	}
	defer t.finish(op)
	first := (e.Offset + cbt.SectorBytes - 1) &^ (cbt.SectorBytes - 1)
	end := e.End() &^ (cbt.SectorBytes - 1)
	if first >= end {
		return nil
	}
	return t.answer(t.change(cbt.Extent{Offset: first, Length: end - first}, func(whole cbt.Extent, _ edges) []cbt.Event {
		return []cbt.Event{{Kind: cbt.EventTrim, Volume: t.volume.ID, Extent: whole}}
	}))
}

// Flush has nothing to do: a write is answered when its record is safe, and the
// mirror sends no FLUSH for its guest's.
func (t *tap) Flush(context.Context) error { return nil }

// ReadAt serves the head, for a client that completes blocks by itself.
func (t *tap) ReadAt(ctx context.Context, p []byte, off int64) error {
	whole := cbt.Extent{Offset: off, Length: int64(len(p))}.Round()
	buf := make([]byte, whole.Length)
	if err := t.sink.ReadHead(ctx, t.volume.ID, whole.Offset, buf); err != nil {
		return err
	}
	t.comparison().blank(whole.Offset, buf)
	copy(p, buf[off-whole.Offset:])
	return nil
}

// Status says that all is data; nobody needs more of a capture export.
func (t *tap) Status(_ context.Context, e cbt.Extent) ([]nbd.StatusExtent, error) {
	return []nbd.StatusExtent{{Length: e.Length}}, nil
}

// answer turns a request's failure into the tap's end, and is what QEMU hears.
func (t *tap) answer(err error) error {
	if err != nil && t.live.Err() == nil {
		t.letGo(asBreak(t.journalBreak(err)))
	}
	return nil
}

// change gives the events of one request to e their place and waits until they
// are safe. make sees e in whole sectors and, when e does not end on sectors,
// what the head holds at its edges.
func (t *tap) change(e cbt.Extent, make func(whole cbt.Extent, edges edges) []cbt.Event) error {
	whole := e.Round()
	partial := !e.Aligned()
	comparing := t.comparison()
	s, err := t.seq.enter(t.live, whole, partial || comparing != nil)
	if err != nil {
		return err
	}
	defer t.seq.leave(s)
	var around edges
	if partial {
		defer t.owes(whole)()
		if around, err = t.readEdges(e, whole); err != nil {
			return err
		}
		comparing.blank(whole.Offset, around.first)
		comparing.blank(whole.End()-cbt.SectorBytes, around.last)
	}
	events, err := comparing.reduce(t, make(whole, around))
	if err != nil {
		return err
	}
	if err := t.gate.pass(t.live); err != nil {
		return err
	}
	var pending []cbt.Pending
	record := func() {
		for _, ev := range events {
			var p cbt.Pending
			if p, err = t.sink.Record(t.live, ev); err != nil {
				return
			}
			t.journaled.Add(int64(len(ev.Data)))
			pending = append(pending, p)
		}
	}
	if t.faults.fillUnmasked {
		record()
	} else {
		t.mask.Wrote(whole, record)
	}
	if err != nil {
		return err
	}
	t.seq.place(s)
	return wait(t.live, pending)
}

// owes marks the edge sectors of whole for another read of the live disk if the
// head may not know them yet; the returned func is called when the change ends.
func (t *tap) owes(whole cbt.Extent) func() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.complete {
		return func() {}
	}
	t.owing++
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.owing--
		t.owed = append(t.owed,
			cbt.Extent{Offset: whole.Offset, Length: cbt.SectorBytes},
			cbt.Extent{Offset: whole.End() - cbt.SectorBytes, Length: cbt.SectorBytes})
		signal(t.settled)
	}
}

// debts takes what has to be read again. With nothing owed and nobody owing the
// volume becomes complete.
func (t *tap) debts(ctx context.Context) (due []cbt.Extent, complete bool, err error) {
	for {
		t.mu.Lock()
		due, t.owed = cbt.Union(t.owed), nil
		if len(due) == 0 && t.owing == 0 {
			t.complete = true
		}
		complete = t.complete
		t.mu.Unlock()
		if len(due) > 0 || complete {
			return due, complete, nil
		}
		select {
		case <-t.settled:
		case <-ctx.Done():
			return nil, false, context.Cause(ctx)
		case <-t.live.Done():
			return nil, false, context.Cause(t.live)
		}
	}
}

// markSynced records EventSynced, after which the volume's interval is open.
func (t *tap) markSynced() error {
	if err := t.gate.pass(t.live); err != nil {
		return err
	}
	t.marking.Lock()
	defer t.marking.Unlock()
	t.mu.Lock()
	if t.letting {
		t.mu.Unlock()
		return context.Cause(t.live)
	}
	t.open = true
	t.mu.Unlock()
	p, err := t.sink.Record(t.live, cbt.Event{Kind: cbt.EventSynced, Volume: t.volume.ID})
	if err != nil {
		return err
	}
	return p.Wait(t.live)
}

// marked returns once EventSynced is not on its way to its place, and never will be again.
func (t *tap) marked() {
	if t == nil {
		return
	}
	t.marking.Lock()
	t.mu.Lock()
	defer t.marking.Unlock()
	defer t.mu.Unlock()
}

func wait(ctx context.Context, pending []cbt.Pending) error {
	var errs []error
	for _, p := range pending {
		errs = append(errs, p.Wait(ctx))
	}
	return errors.Join(errs...)
}

// claim gives the export to the first client that asks for it.
func (t *tap) claim() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.opened || t.letting {
		return false
	}
	t.opened = true
	return true
}

// journalBreak is the end of the tap that a failure of the sink means, unless
// the tap had ended already and that is the failure.
func (t *tap) journalBreak(err error) error {
	if t.live.Err() != nil {
		return context.Cause(t.live)
	}
	if b := asBreak(err); b.cause != cbt.CauseTapError {
		return b
	}
	return breakage(cbt.CauseJournal, err)
}
