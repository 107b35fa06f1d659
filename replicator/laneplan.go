package replicator

import "time"

const (
	tickLeast = 100 * time.Millisecond
	tickTrips = 4 // round trips between two looks at the goodput
	// tickBlind is what there is between two looks where the path tells nothing.
	tickBlind = 250 * time.Millisecond
	// helps is the gain for which more lanes are kept, and hurts what is left of the
	// goodput when fewer are not.
	helps = 1.08
	hurts = 0.95
	// fills is the gain for which they are kept on a path that they have just filled.
	fills = 1.02
	// misses are how often doubling may bring nothing before it ends: the goodput of a
	// few connections over a lossy path jumps about.
	misses = 2
	// looks are how often a trial may fall short before it counts as one that did: many
	// connections that start at once first fill the path's queue and step on each other.
	looks = 5

	holdFirst = 10 * time.Second // before a number that did not help is tried again
	holdLimit = 5 * time.Minute
	idleAfter = 30 * time.Second // lanes that nobody needs are closed

	longTrip  = 10 * time.Millisecond
	longLanes = 16
)

// lanePlan decides how many connections a session uses, from what the path gave: loss
// makes one connection slow long before the link is full, and several fill it. It
// begins with one, some on a long path, or what filled the path before, and doubles them while what is sent
// wants more room than their windows leave, the path is not full, and more bring more.
// It goes back to what was best when they do not, tries fewer now and then, and ends
// with one when nothing is sent. Where the connections know nothing of their path, that
// they are busy is taken for want of room, and what they bring for all there is to know.
// It is a value without a clock of its own.
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
	sentAt   time.Time
	neededAt time.Time // more than half of the lanes

	floor   time.Duration // round trip while nothing waits in the path
	ceiling float64       // goodput of the path when it was full
	fullAt  time.Time
	window  float64 // at the last tick
}

type trial int

const (
	noTrial trial = iota
	more
	fewer
)

// pathView is what a session's connections know of their path at a tick; zero: nothing.
type pathView struct {
	rtt, least time.Duration // of now, and the least that a connection saw
	window     float64       // bytes that may be under way together
	lost       bool          // something was since the last tick
	light      bool          // what was sent is no reason for a queue in it
}

const (
	// roomy is how many times what is under way has to fit into the windows. A piece that
	// finds its lane's window full waits for a round trip, and all that follow with it.
	roomy = 4
	// ample is when half of the lanes would do.
	ample = 20
	// looksTold are looks where the path tells that it is not full.
	looksTold = 2
	holdTold  = 500 * time.Millisecond
	// cheap are so few lanes that, while there is no queue, more are not judged: what one
	// brings falls with its first loss, and would be held against two.
	cheap = 16
	// filling is the share of what a full path brought that counts as full as well.
	filling = 0.95
	// ceilingLasts: a path changes.
	ceilingLasts = time.Minute
	// floorTicks is in how many ticks, about, a round trip that stays longer though little
	// is sent counts as the path's own.
	floorTicks = 100
)

func newLanePlan(limit int) lanePlan {
	return lanePlan{limit: max(limit, 1), lanes: 1, hold: holdFirst}
}

// lanesFor is how many connections a session begins with where nobody knows its path but
// for a round trip: on a long one each takes many of them to find out what it may send,
// and what is written meanwhile waits.
func lanesFor(rtt time.Duration) int {
	if rtt < longTrip {
		return 1
	}
	return longLanes
}

// begin has p start with so many, which filled the path a while ago.
func (p *lanePlan) begin(lanes int) { p.lanes = min(max(lanes, 1), p.limit) }

// tick takes in the goodput since the last tick, in bytes per second, whether the lanes
// were busy all the time, and what they know of the path. It gives the number of lanes
// from now on.
func (p *lanePlan) tick(now time.Time, goodput float64, busy bool, v pathView) int {
	if busy || goodput > 0 || p.sentAt.IsZero() {
		p.sentAt = now
	}
	full := p.full(now, goodput, v)
	need := goodput * v.rtt.Seconds()
	tight := busy || v.window > 0 && v.window < roomy*need
	if tight || v.window < ample*need || p.neededAt.IsZero() {
		p.neededAt = now
	}
	growing := v.window > 0 && !v.lost && v.window > 1.1*p.window // by itself: no loss holds it back
	p.window = v.window
	switch {
	case now.Sub(p.sentAt) >= idleAfter:
		*p = lanePlan{limit: p.limit, lanes: 1, hold: holdFirst, sentAt: p.sentAt}
	case p.settling:
		p.settling = false
	case p.trial == more:
		p.judgeMore(now, goodput, tight, full, v.window > 0)
	case p.trial == fewer:
		p.judgeFewer(now, goodput, busy)
	case p.lanes > 1 && now.Sub(p.neededAt) >= idleAfter:
		p.lanes, p.neededAt = p.lanes/2, now
	case tight && !growing && !now.Before(p.next):
		p.try(now, goodput, full || p.reached(now, goodput, busy), v.window > 0)
	}
	return p.lanes
}

// full reports that what is sent waits in the path, and remembers what the path gave.
func (p *lanePlan) full(now time.Time, goodput float64, v pathView) bool {
	if v.rtt <= 0 || v.least <= 0 {
		return false
	}
	switch {
	case p.floor == 0:
		p.floor = min(v.least, v.rtt)
	case v.rtt < p.floor:
		p.floor = v.rtt
	case v.light:
		p.floor += (v.rtt - p.floor) / floorTicks
	}
	if v.rtt < p.floor+max(p.floor/4, time.Millisecond) {
		return false
	}
	if now.Sub(p.fullAt) > ceilingLasts {
		p.ceiling = 0
	}
	p.ceiling, p.fullAt = max(p.ceiling, goodput), now
	return true
}

// reached reports that busy lanes bring about what the path gave when it was full.
func (p *lanePlan) reached(now time.Time, goodput float64, busy bool) bool {
	return busy && p.ceiling > 0 && now.Sub(p.fullAt) <= ceilingLasts && goodput >= filling*p.ceiling
}

// try begins a trial, but of more on a path that is full. Where nobody knows whether it
// is, every second one is of fewer; elsewhere too many do no harm: pipe bounds them all.
func (p *lanePlan) try(now time.Time, goodput float64, full, known bool) {
	p.best, p.bestAt, p.missed = goodput, p.lanes, 0
	switch {
	case full:
	case p.down && !known && p.lanes > 1:
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

func (p *lanePlan) judgeMore(now time.Time, goodput float64, tight, full, known bool) {
	p.looked++
	most := looks
	if known && !full {
		most = looksTold
	}
	switch {
	case !tight: // there is room now, whatever is sent
		p.trial, p.hold, p.down = noTrial, holdFirst, false
		return
	case goodput >= p.best*helps, full && goodput >= p.best*fills:
		p.best, p.bestAt, p.missed, p.hold = goodput, p.lanes, 0, holdFirst
	case known && !full && p.lanes < cheap:
		p.best, p.bestAt = goodput, p.lanes
	case p.looked < most:
		return
	default:
		p.missed++
	}
	if !full && p.missed < misses && p.lanes < p.limit {
		p.change(2 * p.lanes)
		return
	}
	if known { // too many do no harm, and as loss comes and goes they are wanted again
		p.trial, p.next = noTrial, now.Add(holdTold)
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
