package replicator

import "time"

const (
	tickLeast = 250 * time.Millisecond
	tickTrips = 8 // round trips between two looks at the goodput
	// helps is the gain for which more lanes are kept, and hurts what is left of the
	// goodput when fewer are not.
	helps = 1.08
	hurts = 0.95
	// misses are how often doubling may bring nothing before it ends: the goodput of a
	// few connections over a lossy path jumps about.
	misses = 2
	// looks are how often a trial may fall short before it counts as one that did: many
	// connections that start at once first fill the path's queue and step on each other.
	looks = 5

	holdFirst = 10 * time.Second // before a number that did not help is tried again
	holdLimit = 5 * time.Minute
	idleAfter = 30 * time.Second // lanes that nobody needs are closed
)

// lanePlan decides how many connections a session uses, from what the path gave: loss
// makes one connection slow long before the link is full, and several fill it. It
// begins with one, doubles them while they are busy and more bring more, goes back to
// what was best when they do not, tries fewer now and then, and ends with one when
// nothing is sent. It is a value without a clock of its own.
type lanePlan struct {
	limit int
	lanes int

	trial    trial
	best     float64 // goodput of bestAt lanes
	bestAt   int
	missed   int
	looked   int  // since the last change
	settling bool // the tick after a change counts for nothing
	next     time.Time
	hold     time.Duration
	down     bool // the next trial is of fewer
	busyAt   time.Time
}

type trial int

const (
	noTrial trial = iota
	more
	fewer
)

func newLanePlan(limit int) lanePlan {
	return lanePlan{limit: max(limit, 1), lanes: 1, hold: holdFirst}
}

// tick takes in the goodput since the last tick, in bytes per second, and whether the
// lanes were busy all the time. It gives the number of lanes from now on.
func (p *lanePlan) tick(now time.Time, goodput float64, busy bool) int {
	if busy || p.busyAt.IsZero() {
		p.busyAt = now
	}
	switch {
	case now.Sub(p.busyAt) >= idleAfter:
		*p = lanePlan{limit: p.limit, lanes: 1, hold: holdFirst, busyAt: p.busyAt}
	case p.settling:
		p.settling = false
	case p.trial == more:
		p.judgeMore(now, goodput)
	case p.trial == fewer:
		p.judgeFewer(now, goodput, busy)
	case busy && !now.Before(p.next):
		p.try(now, goodput)
	}
	return p.lanes
}

// try begins a trial.
func (p *lanePlan) try(now time.Time, goodput float64) {
	p.best, p.bestAt, p.missed = goodput, p.lanes, 0
	switch {
	case p.down && p.lanes > 1:
		p.trial = fewer
		p.change(p.lanes / 2)
	case p.lanes < p.limit:
		p.trial = more
		p.change(2 * p.lanes)
	default:
		p.over(now)
	}
}

func (p *lanePlan) change(lanes int) { p.lanes, p.settling, p.looked = min(lanes, p.limit), true, 0 }

// over ends a trial; the next one goes the other way.
func (p *lanePlan) over(now time.Time) {
	p.trial, p.down = noTrial, !p.down
	p.next = now.Add(p.hold)
	p.hold = min(2*p.hold, holdLimit)
}

func (p *lanePlan) judgeMore(now time.Time, goodput float64) {
	p.looked++
	switch {
	case goodput >= p.best*helps:
		p.best, p.bestAt, p.missed, p.hold = goodput, p.lanes, 0, holdFirst
	case p.looked < looks:
		return
	default:
		p.missed++
	}
	if p.missed < misses && p.lanes < p.limit {
		p.change(2 * p.lanes)
		return
	}
	p.lanes = p.bestAt
	p.over(now)
}

func (p *lanePlan) judgeFewer(now time.Time, goodput float64, busy bool) {
	if p.looked++; busy && goodput < p.best*hurts {
		if p.looked < looks {
			return
		}
		p.lanes = p.bestAt
	}
	p.over(now)
}

// refused says that no more than live lanes can be had now.
func (p *lanePlan) refused(now time.Time, live int) int {
	p.lanes, p.settling = max(live, 1), false
	p.over(now)
	return p.lanes
}
