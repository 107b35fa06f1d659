package replicator

import (
	"slices"
	"time"
)

// What is read in order waits for its latest piece. A lane whose connection lost its
// last packet finds out after a timeout, and after a cut after ever longer ones; one
// that lost much sends it again as slowly as its window has become. So the replica tells
// which pieces it lacks while later ones have come, and what it should have had by then
// goes out once more, over another lane.

const (
	// lateTrips are the round trips after which a piece is late where nothing waits to be
	// sent, and lateWhenBusy where sending it again costs others their turn: a connection
	// sends again what it lost after little more than one.
	lateTrips    = 1.25
	lateWhenBusy = 3
	lateLeast    = 10 * time.Millisecond
	maxRepeats   = 6 // each takes twice as long to be late as the one before
)

// missedLocked notes which pieces the replica has, and what it lacks that is late.
func (f *flow) missedLocked(t *taken) {
	l := f.lanes
	if t.come == comeUnknown || l.rtt <= 0 {
		return
	}
	trips := lateTrips
	if l.pipe.limited || len(f.unsent) > len(l.live) {
		trips = lateWhenBusy
	}
	limit, now, missing := time.Duration(trips*float64(l.rtt))+lateLeast, l.now(), t.missing
	for _, p := range f.flight {
		if p.end() > t.known {
			return
		}
		for len(missing) > 0 && missing[0].to <= p.position {
			missing = missing[1:]
		}
		if p.here = len(missing) == 0 || missing[0].from >= p.end(); p.here {
			continue
		}
		if !p.queued && p.repeats < maxRepeats && now.Sub(p.sentAt) >= limit<<p.repeats {
			p.queued = true
			f.again = append(f.again, p)
			l.work.Signal()
		}
	}
}

// againLocked is a piece to be sent once more over x: before all others, which would
// wait for it at the replica.
func (l *lanes) againLocked(x *lane) *piece {
	for _, f := range l.flows {
		for i, p := range f.again {
			if p.lane == x && len(l.live) > 1 {
				continue
			}
			f.again = slices.Delete(f.again, i, i+1)
			if p.queued = false; p.here { // it came meanwhile
				return l.againLocked(x)
			}
			p.lane = x
			p.repeats++
			f.sentLocked(p)
			return p
		}
	}
	return nil
}
