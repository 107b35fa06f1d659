package journal

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal/journaltest"
)

// driver puts a journal through an author's operations and holds what it gives back
// to their states. One operation is a second of its clock.
type driver struct {
	t     testing.TB
	o     Options // with the clock
	now   *clock
	depth int   // writes that may be under way
	fold  int64 // Maintenance.FoldBytes; negative: Maintain is not called
	every int   // Maintain is called after each so many operations as well; 0: only when one says so
	vols  []cbt.Volume

	j        *running
	w        *Writer
	flight   []underWay
	moments  []moment           // records whose state is known, in order
	maybe    []moment           // what was under way when the journal failed
	own      bool               // operations may be refused: the states are the driver's own
	state    *journaltest.State // of own
	unsynced bool               // there are no points now
	pins     map[string]moment  // by name
	held     []heldView
	horizon  time.Time // points before it may be gone, but for pins and views
}

// underWay is a record that has its seq and no answer.
type underWay struct {
	cbt.Pending
	at   Position
	op   *journaltest.Op // nil: it changes no state
	time time.Time       // no later than the record's
}

// moment is a record and what a read of it must show.
type moment struct {
	at    Position
	state *journaltest.State
	time  time.Time

	outside bool // it is no point: not all volumes were synced
}

type heldView struct {
	*View
	moment
}

// newDriver begins a journal of volumes of the given sizes.
func newDriver(t testing.TB, o Options, sizes []int64) (*driver, error) {
	d := &driver{t: t, now: &clock{now: fixedTime}, o: o, depth: 4, fold: 1, pins: make(map[string]moment)}
	d.o.Now = d.now.Now
	for i, n := range sizes {
		d.vols = append(d.vols, volume(fmt.Sprintf("v%d", i), n))
	}
	if err := d.open(); err != nil {
		return nil, err
	}
	return d, d.begin(Position{}, journaltest.Empty(sizes...))
}

// begin forks an epoch at parent, where the group is in state s.
func (d *driver) begin(parent Position, s *journaltest.State) error {
	w, err := d.j.BeginEpoch(soon(d.t), "a", parent, 0)
	if err != nil {
		return err
	}
	d.w, d.state, d.unsynced = w, s, true
	for i, v := range d.vols {
		v.Size = s.Sizes()[i]
		if err := w.AddVolume(soon(d.t), v); err != nil {
			return err
		}
	}
	for _, v := range d.vols {
		if err := d.record(cbt.Event{Kind: cbt.EventSynced, Volume: v.ID}, nil); err != nil {
			return err
		}
	}
	if err = d.land(); err == nil {
		d.unsynced = false
		d.note(s)
	}
	return err
}

// note makes the head, which is settled, a moment of state s.
func (d *driver) note(s *journaltest.State) {
	d.state = s
	d.moments = append(d.moments, moment{at: d.j.Head().Position, state: s, time: d.now.Now(), outside: d.unsynced})
}

func (d *driver) resize(v cbt.Volume, op journaltest.Op) error {
	v.Size = op.Size
	err := d.w.AddVolume(soon(d.t), v)
	if err == nil {
		d.note(d.after(op))
	}
	return err
}

// record gives ev to the journal; op, if not nil, is what it does to the state.
func (d *driver) record(ev cbt.Event, op *journaltest.Op) error {
	began := d.now.Now()
	p, err := recordInTurn(soon(d.t), d.w, ev)
	if err != nil {
		return err
	}
	d.flight = append(d.flight, underWay{p, Position{d.w.epoch.ID, p.(pendingRecord).seq}, op, began})
	if len(d.flight) > d.depth {
		return d.settle()
	}
	return nil
}

// settle waits for the oldest record under way.
func (d *driver) settle() error {
	u := d.flight[0]
	d.flight = d.flight[1:]
	err := u.Wait(soon(d.t))
	switch {
	case errors.Is(err, ErrFull):
		d.unsynced = true
	case u.op == nil:
	case err == nil:
		d.state = d.after(*u.op)
		d.moments = append(d.moments, moment{at: u.at, state: d.state, time: u.time, outside: d.unsynced})
	default:
		d.state = d.after(*u.op)
		d.maybe = append(d.maybe, moment{at: u.at, state: d.state, time: u.time})
	}
	return err
}

// after is the state after op.
func (d *driver) after(op journaltest.Op) *journaltest.State {
	if !d.own {
		return op.After
	}
	switch op.Kind {
	case journaltest.Write, journaltest.Fill, journaltest.Zero, journaltest.Trim, journaltest.Resize:
		return d.state.Then(op)
	case journaltest.Fork:
		return d.pins[op.Name].state
	}
	return d.state
}

// land waits for all that is under way.
func (d *driver) land() error {
	var errs []error
	for len(d.flight) > 0 {
		errs = append(errs, d.settle())
	}
	return errors.Join(errs...)
}

var eventKinds = map[journaltest.Kind]cbt.EventKind{
	journaltest.Write: cbt.EventWrite, journaltest.Fill: cbt.EventFill, journaltest.Zero: cbt.EventZero, journaltest.Trim: cbt.EventTrim,
}

// do puts the journal through op.
func (d *driver) do(op journaltest.Op) error {
	d.now.step(time.Second)
	v := d.vols[op.Volume]
	if k, ok := eventKinds[op.Kind]; ok {
		return d.record(cbt.Event{Kind: k, Volume: v.ID, Extent: cbt.Extent{Offset: op.Off, Length: op.Len}, Data: op.Data}, &op)
	}
	if err := d.land(); err != nil {
		return err
	}
	switch op.Kind {
	case journaltest.Resize:
		v.Size = op.Size
		return d.resize(v, op)
	case journaltest.Break:
		if err := d.record(cbt.Event{Kind: cbt.EventGap, Volume: v.ID, Cause: cbt.CauseStall}, nil); err != nil {
			return err
		}
		return errors.Join(d.record(cbt.Event{Kind: cbt.EventSynced, Volume: v.ID}, &op), d.land())
	case journaltest.Mark, journaltest.Pin:
		return d.mark(op)
	case journaltest.Flush:
		return d.w.WaitDurable(soon(d.t))
	case journaltest.Fork:
		return d.begin(d.pins[op.Name].at, d.after(op))
	case journaltest.Reopen:
		if err := d.reopen(); err != nil {
			return err
		}
		return d.begin(Position{}, d.after(op))
	case journaltest.Hold:
		m := moment{at: d.j.Head().Position, state: d.after(op), time: d.now.Now()}
		view, err := d.j.View(soon(d.t), Point{Position: m.at})
		d.held = append(d.held, heldView{view, m})
		return err
	case journaltest.Release:
		h := d.held[0]
		d.held = d.held[1:]
		return errors.Join(d.compare(h.View, h.moment), h.Close())
	case journaltest.Maintain:
		return d.maintain(op.Ladder)
	}
	return nil
}

func (d *driver) mark(op journaltest.Op) error {
	site := op.Kind == journaltest.Pin && len(d.pins)%2 == 0 // a pin of this site; else one of the group's
	p, err := d.w.Mark(soon(d.t), Mark{Name: op.Name, Pin: op.Kind == journaltest.Pin && !site})
	if d.own && errors.Is(err, ErrNoPoint) {
		return nil
	}
	if err == nil && site {
		_, err = d.j.Pin(soon(d.t), op.Name, p, false)
	}
	if err != nil {
		return err
	}
	m := moment{at: p.Position, state: d.after(op), time: d.now.Now()}
	d.moments = append(d.moments, m)
	if op.Kind == journaltest.Pin {
		d.pins[op.Name] = m
	}
	return nil
}

// reopen closes the journal and opens it again.
func (d *driver) reopen() error {
	var errs []error
	for _, h := range d.held {
		errs = append(errs, h.Close())
	}
	d.held = nil
	j := d.j
	d.j, d.w = nil, nil
	if err := errors.Join(append(errs, j.end())...); err != nil {
		return err
	}
	return d.open()
}

// open opens the journal and lets it run.
func (d *driver) open() error {
	j, err := Open("j", d.o)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	r := &running{Journal: j, t: d.t, stop: stop, done: make(chan error, 1)}
	go func() { r.done <- j.Run(ctx) }()
	d.j = r
	return nil
}

// ladders are what Maintain is asked for: everything; a minute of it, and then less;
// next to nothing.
var ladders = []Retention{
	{},
	{Ladder: []Rung{{0, time.Minute}, {10 * time.Second, 5 * time.Minute}, {time.Minute, 0}}},
	{Ladder: []Rung{{0, 5 * time.Second}, {time.Hour, time.Hour}}},
}

func (d *driver) maintain(ladder int) error {
	if d.fold < 0 {
		return nil
	}
	r := ladders[ladder]
	if len(r.Ladder) > 0 { // from now on points may be gone, whatever becomes of the call
		if h := d.now.Now().Add(-r.Ladder[0].For); h.After(d.horizon) {
			d.horizon = h
		}
	}
	_, err := d.j.Maintain(soon(d.t), Maintenance{Retention: r, FoldBytes: d.fold})
	return err
}

// must says that m has to be a point: it is young enough, pinned, or looked at.
func (d *driver) must(m moment) bool {
	if m.outside || !m.time.Before(d.horizon) {
		return !m.outside
	}
	for _, p := range d.pins {
		if p.at == m.at {
			return true
		}
	}
	for _, h := range d.held {
		if h.at == m.at {
			return true
		}
	}
	return false
}

// check holds the journal to a moment; gone says that it is no point any more,
// which must is asked about.
func (d *driver) check(j *Journal, m moment) (isGone bool, err error) {
	v, err := j.View(soon(d.t), Point{Position: m.at})
	if gone(err) && !d.must(m) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	return false, errors.Join(d.compare(v, m), v.Close())
}

// gone reports that there is no such point, or not any more.
func gone(err error) bool { return errors.Is(err, ErrNoPoint) || errors.Is(err, ErrReclaimed) }

// compare holds a view to a state: sizes, bytes, and what is said to be zero.
func (d *driver) compare(v *View, m moment) error {
	if n := len(v.Volumes()); n != len(d.vols) {
		return fmt.Errorf("at record %s there are %d volumes", m.at, n)
	}
	for i, vol := range d.vols {
		got := make([]byte, m.state.Sizes()[i])
		if err := v.ReadAt(context.Background(), vol.ID, got, 0); err != nil {
			return fmt.Errorf("at record %s: %w", m.at, err)
		}
		if at := m.state.Differs(i, got); at >= 0 {
			return fmt.Errorf("at record %s volume %d differs from the model at %d", m.at, i, at)
		}
		if err := checkStatus(v, vol.ID, got); err != nil {
			return fmt.Errorf("at record %s volume %d: %w", m.at, i, err)
		}
	}
	return nil
}

// checkStatus holds the runs of a volume to its bytes.
func checkStatus(v *View, vol cbt.VolumeID, got []byte) error {
	runs, err := v.Status(context.Background(), vol, cbt.Extent{Length: int64(len(got))})
	end := int64(0)
	for _, r := range runs {
		if r.Offset != end || r.Length <= 0 {
			return fmt.Errorf("status has a hole at %d", end)
		}
		if end = r.End(); !r.Data && !allZero(got[r.Offset:end]) {
			return fmt.Errorf("status calls %v zero", r.Extent)
		}
	}
	if err == nil && end != int64(len(got)) {
		err = fmt.Errorf("status ends at %d", end)
	}
	return err
}

// run puts the journal through ops, looking back now and then.
func (d *driver) run(rng *rand.Rand, ops []journaltest.Op) error {
	for i, op := range ops {
		err := d.do(op)
		if err == nil && d.every > 0 && i%d.every == 0 {
			err = errors.Join(d.land(), d.maintain(i/d.every%len(ladders)))
		}
		if err == nil && op.Kind == journaltest.Look {
			_, err = d.check(d.j.Journal, d.moments[rng.IntN(len(d.moments))])
		}
		if err != nil {
			return fmt.Errorf("operation %d, %v: %w", i, op, err)
		}
	}
	return d.land()
}

// end closes the journal.
func (d *driver) end() error {
	for _, h := range d.held {
		_ = h.Close() // what it showed was not asked for
	}
	d.held = nil
	return d.j.end()
}
