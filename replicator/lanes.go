package replicator

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/replicator/transport"
)

const (
	minPieceBytes = 8 << 10
	// busyShare is how long of the time lanes may wait for pieces and count as busy.
	busyShare = 0.25
	// idleCredit is what a flow that pauses keeps of its turn.
	idleCredit = 1 << 20
)

// lanes are those of one session, at the sending end, and the flows that share them. A
// lane that has nothing to do takes the next piece of the flow that has had the least
// for its weight. A lane that fails takes nothing with it: its pieces go over another.
type lanes struct {
	conn     transport.Conn
	now      func() time.Time
	patience time.Duration
	chose    func(lanes int) // told of every change of what is wanted; must not block

	mu        sync.Mutex // guards all below, and the flows
	work      *sync.Cond // a lane waits for a piece
	room      *sync.Cond // a flow waits for room
	turn      *sync.Cond // a lane waits to be wanted
	flows     []*flow
	live      []*lane
	plan      lanePlan
	wanted    int // lanes that get pieces: the first of live
	opening   int
	idle      time.Duration // that lanes waited for pieces since the last tick
	ticked    uint64        // bytes that had been read at the last tick
	tickedAt  time.Time
	lostBytes uint64 // of the connections, at the last tick
	read      uint64 // bytes of flows that have ended
	pipe      pipe
	rtt       time.Duration // at the last tick
	err       error
}

// lane is one way for pieces.
type lane struct {
	to     transport.SendLane
	opened time.Time
	since  time.Time // waiting for a piece; zero: at work
}

func newLanes(conn transport.Conn, o Options, most int) *lanes {
	l := &lanes{conn: conn, now: o.Now, patience: o.StallTimeout, chose: func(int) {}, plan: newLanePlan(cmp.Or(most, o.MaxConnections)), wanted: 1}
	l.work, l.room, l.turn = sync.NewCond(&l.mu), sync.NewCond(&l.mu), sync.NewCond(&l.mu)
	return l
}

// begin has a session start with what the one before it had found to be enough.
func (l *lanes) begin(lanes int) {
	l.plan.begin(lanes)
	l.wanted = l.plan.lanes
}

// flow begins what an opening carries. The replica has room for window bytes.
func (l *lanes) flow(open uint64, id journal.Identity, weight int, window int64) *flow {
	f := &flow{lanes: l, open: open, group: id, weight: float64(max(weight, 1)), window: window}
	l.mu.Lock()
	defer l.mu.Unlock()
	f.err = l.err
	for i, other := range l.flows { // it makes up for nothing that it missed
		if i == 0 || other.virtual < f.virtual {
			f.virtual = other.virtual
		}
	}
	l.flows = append(l.flows, f)
	return f
}

// find is the flow of an opening.
func (l *lanes) find(open uint64) *flow {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range l.flows {
		if f.open == open {
			return f
		}
	}
	return nil
}

// look lets flows look at the clock again.
func (l *lanes) look() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.room.Broadcast()
}

func (l *lanes) wakeAllLocked() {
	l.work.Broadcast()
	l.room.Broadcast()
	l.turn.Broadcast()
}

// pieceBytesLocked is how large pieces of f are: small enough that all lanes have some
// of what the window, and the path, have room for.
func (l *lanes) pieceBytesLocked(f *flow) int64 {
	room := f.window / 8
	if l.pipe.bytes > 0 {
		room = min(room, l.pipe.bytes/4)
	}
	return min(max(room/int64(max(len(l.live), 1)), minPieceBytes), maxPieceBytes)
}

// take waits for the next piece for x; nil: there will be none.
func (l *lanes) take(x *lane) *piece {
	l.mu.Lock()
	defer l.mu.Unlock()
	x.since = l.now()
	defer func() {
		l.idle += l.now().Sub(x.since)
		x.since = time.Time{}
	}()
	for {
		at := slices.Index(l.live, x)
		switch {
		case l.err != nil || at < 0 || at >= 2*max(l.wanted, 1): // lost, or far more than are wanted
			return nil
		case at >= l.wanted:
			l.work.Signal() // what it was woken for is another's
			l.turn.Wait()
			continue
		}
		if p := l.nextLocked(x); p != nil {
			p.writers++
			return p
		}
		l.work.Wait()
	}
}

// nextLocked is the piece that goes next.
func (l *lanes) nextLocked(x *lane) *piece {
	if p := l.againLocked(x); p != nil {
		return p
	}
	var best *flow
	for _, f := range l.flows {
		if f.readyLocked() && (best == nil || f.virtual < best.virtual) {
			best = f
		}
	}
	if best != nil && !l.pipe.takes(l.underWayLocked()) {
		l.pipe.limited = true
		return nil
	}
	if best == nil {
		for _, f := range l.flows {
			if p := f.lateLocked(x); p != nil {
				return p
			}
		}
		return nil
	}
	// Who had nothing to send has no claim on what others sent meanwhile.
	for _, f := range l.flows {
		f.virtual = max(f.virtual, best.virtual-idleCredit)
	}
	return best.nextLocked(x)
}

func (l *lanes) wrote(p *piece) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p.writers--
	l.room.Broadcast()
}

// youngLane is how long after its opening a lane that fails was one that the peer does not take.
const youngLane = 2 * time.Second

// lost takes a lane away that fails or is to be closed; what it took goes over the others.
// Instead of one that failed young no other is opened for a while.
func (l *lanes) lost(x *lane, failed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := slices.Index(l.live, x)
	if at < 0 {
		return
	}
	l.live = slices.Delete(l.live, at, at+1)
	if now := l.now(); failed && l.err == nil && now.Sub(x.opened) < youngLane && len(l.live) > 0 {
		l.wanted = l.plan.refused(now, len(l.live))
	}
	for _, f := range l.flows {
		f.lostLocked(x)
	}
	l.wakeAllLocked()
}

// tick looks at what the lanes did since the last one, and says when the next is.
func (l *lanes) tick() time.Duration {
	stats := l.conn.Stats()
	l.mu.Lock()
	defer l.mu.Unlock()
	now, sum, idle := l.now(), l.read, l.idle
	for _, f := range l.flows {
		sum += f.broughtLocked()
	}
	for i, x := range l.live {
		if x.since.IsZero() {
			continue
		}
		if i < l.wanted {
			idle += now.Sub(x.since)
		}
		x.since = now
	}
	v := pathView{rtt: stats.RTT, least: stats.MinRTT, window: float64(stats.Window), lost: stats.Lost > l.lostBytes}
	first, span, gained := l.tickedAt.IsZero(), now.Sub(l.tickedAt), sum-l.ticked
	l.idle, l.ticked, l.tickedAt, l.lostBytes = 0, sum, now, stats.Lost
	pause := max(tickLeast, tickTrips*stats.RTT)
	if v.window == 0 {
		pause = max(tickBlind, 2*tickTrips*stats.RTT)
	}
	if first || span <= 0 {
		return pause
	}
	limited := l.pipe.limited
	l.rtt = v.rtt
	l.pipe.tick(float64(gained)/span.Seconds(), v.rtt, l.plan.floor)
	busy := gained > 0 && idle < time.Duration(float64(span)*busyShare*float64(max(l.wanted, 1)))
	v.light = !busy && !limited || l.pipe.least
	if wanted := l.plan.tick(now, float64(gained)/span.Seconds(), busy, v); wanted != l.wanted {
		l.wanted = wanted
		l.chose(wanted)
		l.wakeAllLocked()
	}
	return pause
}
