package mode

import (
	"fmt"

	"github.com/novacron/afterimage/cbt"
)

// driver carries the rules' orders out on a truth, one small step at a time, so that
// anything can happen between two of them.
type driver struct {
	*truth
	s       State
	pending Order        // what Next asked for last
	todo    [blocks]bool // what is left to be read
	reading bool
	instant *[blocks]int // cycles: the disk as it was drawn
	early   *[blocks]bool
	verdict Verdict
	names   int
	fault   string // a promise that the driver or the rules break on purpose
}

// event hands e to the rules and carries out a gap at once; other orders are kept.
func (d *driver) event(e Event) error {
	next, order, err := d.s.Next(e)
	if err != nil {
		return err
	}
	d.s = next
	if order == TellGap {
		if e.Kind != Closed || d.fault != "a cycle's interval stays open" {
			d.open, d.moved = false, false
		}
		cause := e.Cause
		if e.Kind == Closed {
			cause = cbt.CauseCycle
		}
		d.gaps = append(d.gaps, cause)
		return d.event(Event{Kind: GapTold})
	}
	if order != Nothing {
		d.pending = order
	}
	return nil
}

func (d *driver) freshBitmap() string {
	d.names++
	name := fmt.Sprintf("b%d", d.names)
	d.bitmaps[name] = &bits{recording: true}
	return name
}

func (d *driver) recall(names ...string) {
	d.memory, d.known = Remembered{Node: d.node, Size: d.size, Granularity: 1, Bitmaps: names}, true
}

// step goes one small step towards the plan. Being idle is none.
func (d *driver) step() error {
	switch {
	case d.reading:
		return d.readOne()
	case d.s.Phase != cbt.StateAttaching && d.s.Phase != cbt.StateSyncing && d.s.Phase != cbt.StateSynced:
		d.tapped, d.instant = false, nil
		d.thawBits(false) // the sweep: a job that an earlier life left
		return d.event(Event{Kind: Attach})
	case d.s.basis == unjudged:
		d.verdict = Judge(d.memory, d.known, d.look())
		if d.fault == "any bitmap is believed" && d.known && len(d.memory.Bitmaps) > 0 {
			d.verdict = Verdict{Trusted: true, Keep: d.memory.Bitmaps}
		}
		for _, n := range d.verdict.Remove {
			delete(d.bitmaps, n)
		}
		if !d.verdict.Trusted {
			d.verdict.Keep = []string{d.freshBitmap()}
			if d.s.Plan == Cycles {
				d.begin([blocks]bool{}, true)
			}
		}
		return d.event(Event{Kind: Judged, Trusted: d.verdict.Trusted, Why: d.verdict.Why})
	case d.s.Plan == PerWrite:
		return d.perWrite()
	}
	return d.cycle()
}

func (d *driver) perWrite() error {
	switch {
	case !d.tapped:
		delta := d.union(d.verdict.Keep)
		if d.fault == "the delta is taken before the tap" {
			if d.early == nil {
				d.early = &delta
				return nil
			}
			delta = *d.early
		}
		d.tapped, d.early = true, nil
		d.begin(delta, d.pending == ReadWhole)
		return d.event(Event{Kind: Tapped})
	case !d.s.whole && !d.open:
		d.recall(append(d.verdict.Keep, d.freshBitmap())...)
		return d.event(Event{Kind: Brought})
	case !d.open:
		return d.mark()
	}
	return nil
}

func (d *driver) cycle() error {
	switch {
	case d.s.basis == byReading:
		d.recall(d.verdict.Keep...)
		return d.event(Event{Kind: Compared})
	case d.s.open: // marked: the cycle's only point
		return d.event(Event{Kind: Closed})
	case d.s.whole:
		return d.mark()
	case d.s.held:
		d.thawBits(true)
		return d.event(Event{Kind: Brought})
	}
	// Several bitmaps, of the per-write tap, are made one first.
	one := d.freshBitmap()
	d.bitmaps[one].dirty = d.union(d.verdict.Keep)
	for _, n := range d.verdict.Keep {
		delete(d.bitmaps, n)
	}
	d.verdict.Keep = []string{one}
	d.recall(one)
	b := d.bitmaps[one]
	frozen, at := b.dirty, d.disk
	b.frozen, d.instant, b.dirty = &frozen, &at, [blocks]bool{}
	d.begin(frozen, false)
	return d.event(Event{Kind: Drawn})
}

// mark opens the interval once the rules agree.
func (d *driver) mark() error {
	if err := d.event(Event{Kind: Mark}); err != nil {
		return err
	}
	d.open, d.moved = true, false
	d.marks++
	return nil
}

// begin sets out to read what is named, or everything.
func (d *driver) begin(named [blocks]bool, all bool) {
	d.todo, d.reading = named, true
	if all {
		for i := range d.todo {
			d.todo[i] = true
		}
	}
}

// readOne records one block of what is left, and ends the reading with the last.
func (d *driver) readOne() error {
	for i, due := range d.todo {
		if due {
			d.todo[i] = false
			d.head[i] = d.disk[i]
			if d.instant != nil && d.fault != "a cycle reads the live disk" {
				d.head[i] = d.instant[i]
			}
			return nil
		}
	}
	d.reading = false
	return nil
}

// stop ends what runs, as the end of an attachment does.
func (d *driver) stop() {
	d.tapped, d.reading, d.instant, d.early = false, false, nil, nil
	d.thawBits(false)
}
