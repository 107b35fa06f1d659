package replicator

import "time"

// pipe bounds what a session has under way to about what its path holds. Connections
// that find that out by loss fill the path's queue first, then lose what overflows it;
// what is sent waits behind the queue, and what was lost behind it once more. So the
// bound grows while something waits for it and the round trip says that nothing waits
// in the path, and shrinks while much does. It is a value without a clock of its own.
type pipe struct {
	bytes   int64 // that may be under way; 0: the path tells nothing, and nothing is bounded
	limited bool  // something waited for it since the last tick
	filled  bool  // the path was full once
	least   bool  // bytes cannot be less
	best    float64
}

const (
	pipeFirst = 2 << 20
	// pipeLeast and what comes in pipeDelay may always be under way: a piece counts until
	// it has come whole and the replica has told of it.
	pipeLeast = 1 << 20
	pipeDelay = 20 * time.Millisecond
	// pipeLimit: the window of each group bounds it as well.
	pipeLimit = 1 << 30
	// pipeForgets is what is left of the best goodput at each tick, unless it comes again:
	// half of it after some 30 s on a path of 50 ms. What that had under way without any
	// queue may always be: a round trip is also long where processors are busy, and what
	// shrinks for that sends less and less without making it shorter.
	pipeForgets = 0.995
)

// tick takes in the goodput since the last one, the round trip, and what it is while
// nothing waits in the path.
func (p *pipe) tick(goodput float64, rtt, floor time.Duration) {
	limited := p.limited
	p.limited = false
	if rtt <= 0 || floor <= 0 {
		return
	}
	if p.bytes == 0 {
		p.bytes = pipeFirst
	}
	queued := rtt - floor
	switch {
	case queued > max(floor/2, 5*time.Millisecond):
		p.bytes -= p.bytes / 8
		p.filled = true
	case queued > max(floor/3, 2*time.Millisecond):
		p.filled = true
	case limited && p.filled:
		p.bytes += p.bytes / 8
	case limited:
		p.bytes += p.bytes / 2
	}
	p.best = max(goodput, p.best*pipeForgets)
	least := max(pipeLeast+int64(goodput*pipeDelay.Seconds()), pipeLeast/2+int64(p.best*floor.Seconds()))
	p.least = p.bytes <= least
	p.bytes = min(max(p.bytes, least), pipeLimit)
}

// takes reports that there is room beside what is under way.
func (p *pipe) takes(underWay int64) bool { return p.bytes == 0 || underWay < p.bytes }

// underWayLocked is what all flows have under way.
func (l *lanes) underWayLocked() int64 {
	n := int64(0)
	for _, f := range l.flows {
		n += f.underWayLocked()
	}
	return n
}
