package qemu

import (
	"sync/atomic"
	"time"
)

// pulse notices that this process stood still (stopped, swapped out, starved).
// A loop beats it; whoever is about to act on what waited in a socket asks late.
type pulse struct {
	born  time.Time
	limit time.Duration
	last  atomic.Int64 // of the newest beat, since born
}

func newPulse(limit time.Duration) *pulse {
	return &pulse{born: time.Now(), limit: limit}
}

// beat returns how long the pulse had been late, zero if it was not.
func (p *pulse) beat() time.Duration {
	late := p.late()
	p.last.Store(int64(time.Since(p.born)))
	return late
}

// late is the time since the newest beat if that exceeds the limit, else zero.
func (p *pulse) late() time.Duration {
	d := time.Since(p.born) - time.Duration(p.last.Load())
	if d > p.limit {
		return d
	}
	return 0
}
