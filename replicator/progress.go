package replicator

import (
	"math"
	"sync"
	"time"

	"github.com/novacron/afterimage/journal"
)

// progress is one group's replication with one peer in one direction, over all
// connections of this process's life: a Lag and the ledger behind it.
type progress struct {
	clock  lifeClock
	faults *faults

	mu     sync.Mutex // guards all below
	lag    Lag        // without what snapshot computes
	ledger ledger
	left   map[journal.EpochID]journal.Seq // source: how far its history goes along with each earlier epoch
	bytes  int64                           // of the source's newest sample
	safe   time.Time                       // replica: newest proven moment, our clock
	offset offset
	origin origin    // of a relay: what separates it from the primary
	moved  time.Time // when frames or acknowledgements last advanced
}

func newProgress(clock lifeClock, f *faults, d Direction, peer, tenant, group string, id journal.Identity) *progress {
	now := clock.now()
	return &progress{clock: clock, faults: f, moved: now, lag: Lag{Peer: peer, Tenant: tenant, Group: group, Identity: id,
		Direction: d, Since: now}}
}

// enter changes the state; err is why frames do not flow.
func (p *progress) enter(s State, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lag.State != s {
		p.lag.Since = p.clock.now()
	}
	p.lag.State, p.lag.Err, p.lag.Target = s, err, journal.Position{}
	p.lag.Connected = s != StateDisconnected
	p.moved = p.clock.now()
}

// catchUp says that a delta is on its way, which leads to a record.
func (p *progress) catchUp(to journal.Position) {
	p.enter(StateCatchingUp, nil)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lag.Target = to
}

// begin starts a stream after from: what the replica holds durably.
func (p *progress) begin(from journal.Cursor) {
	p.enter(StateStreaming, nil)
	p.mu.Lock()
	defer p.mu.Unlock()
	from = p.onBranch(from)
	if from.Seq < p.lag.Durable.Seq {
		p.ledger.void()
		p.safe = time.Time{}
	}
	p.lag.Durable = from
}

// sampled tells of the source's head; at was read off the clock before head was.
func (p *progress) sampled(at int64, head journal.Head, branches func() []journal.Branch) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sampledLocked(at, head, branches)
}

func (p *progress) sampledLocked(at int64, head journal.Head, branches func() []journal.Branch) {
	if head.Epoch != p.lag.Head.Epoch && !p.faults.keepLeft {
		p.fork(head, branches())
	}
	p.lag.Head, p.bytes = head.Position, head.Bytes
	if at != 0 {
		p.ledger.note(sample{at: at, seq: head.Seq, bytes: head.Bytes})
	}
}

// sampledRelay is sampled at a relay; at 0 proves nothing.
func (p *progress) sampledRelay(at int64, o origin, head journal.Head, branches func() []journal.Branch) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.origin = o.since(p.origin)
	p.sampledLocked(at, head, branches)
}

// fork takes back what the replica holds of a branch that the source has left.
func (p *progress) fork(head journal.Head, branches []journal.Branch) {
	lineage, err := journal.LineageOf(branches, head.Epoch)
	p.left = make(map[journal.EpochID]journal.Seq)
	for _, b := range branches {
		p.left[b.ID] = 0
	}
	for _, i := range lineage {
		p.left[i.Epoch] = i.Last
	}
	delete(p.left, head.Epoch)
	if err == nil && (p.lag.Durable.Seq == 0 || lineage.Holds(p.lag.Durable.Position)) {
		return
	}
	p.lag.Durable = p.onBranch(p.lag.Durable)
	p.ledger.void()
}

// onBranch is what of c the source's own history holds: c itself, or where that left
// the branch which c is of. It went back after it asked for c.
func (p *progress) onBranch(c journal.Cursor) journal.Cursor {
	last, earlier := p.left[c.Epoch]
	if !earlier || c.Seq <= last || p.faults.keepLeft {
		return c
	}
	if last == 0 {
		return journal.Cursor{}
	}
	return journal.Cursor{Position: journal.Position{Epoch: c.Epoch, Seq: last}}
}

// acked tells the source what is durable at the replica and the newest heartbeat
// that it heard. It reports whether the cursor advanced. What was said before the
// source went back, and comes after, tells of a branch that is left.
func (p *progress) acked(durable journal.Cursor, heard int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.onBranch(durable) != durable {
		return false
	}
	advanced := durable.Position != p.lag.Durable.Position
	if advanced {
		p.lag.Durable, p.moved = durable, p.clock.now()
	}
	p.ledger.durable(p.lag.Durable.Seq, heard)
	return advanced
}

// heartbeat is the newest one to send; at was read off the clock before head was.
func (p *progress) heartbeat(at int64, head journal.Head) *heartbeat {
	p.mu.Lock()
	defer p.mu.Unlock()
	h := &heartbeat{at: at, head: head.Position, headTime: head.Time, bytes: head.Bytes, durable: head.Durable, origin: p.origin}
	if p.ledger.known {
		h.safe = p.ledger.proven.at
	}
	return h
}

// heard tells the replica of a heartbeat and of the offset of the source's clock.
func (p *progress) heard(h *heartbeat, arrived time.Time, o offset) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.offset = o
	p.lag.Head, p.bytes = h.head, h.bytes
	p.lag.HeadTime, p.lag.Heard, p.origin = h.headTime, arrived, h.origin.since(p.origin)
	if h.at != 0 {
		p.ledger.note(sample{at: h.at, arrived: arrived, seq: h.head.Seq, bytes: h.bytes})
	}
	if h.safe != 0 {
		p.prove(sample{at: h.safe, arrived: arrived})
	}
	p.advance()
}

// stored tells the replica what is durable here. It reports whether that advanced.
func (p *progress) stored(durable journal.Cursor) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	advanced := durable.Position != p.lag.Durable.Position
	if advanced {
		p.lag.Durable, p.moved = durable, p.clock.now()
	}
	p.advance()
	return advanced
}

func (p *progress) advance() {
	p.ledger.durable(p.lag.Durable.Seq, math.MaxInt64)
	if p.ledger.known {
		p.prove(p.ledger.proven)
	}
}

// prove moves the proven moment to s, as far as the clocks' offset allows.
func (p *progress) prove(s sample) {
	if !p.offset.known() {
		return
	}
	if t := replicaMoment(s, p.offset); p.safe.IsZero() || t.After(p.safe) {
		p.safe = t
	}
}

// measured tells of a better offset.
func (p *progress) measured(o offset) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.offset = o
	if p.lag.Direction == Inbound {
		p.advance()
	}
}

// durable is what the replica holds, as far as is known.
func (p *progress) durable() journal.Position {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lag.Durable.Position
}

// carried counts n bytes on their way.
func (p *progress) carried(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lag.BytesMoved += uint64(n)
	p.moved = p.clock.now()
}

// frame counts a frame that has crossed, of n bytes in the journal.
func (p *progress) frame(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lag.FramesMoved++
	p.lag.JournalBytes += uint64(n)
}

// delta counts n bytes of a delta.
func (p *progress) delta(n int) {
	p.carried(n)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lag.JournalBytes += uint64(n)
}

// stalled reports that the replica is behind and nothing moved for limit.
func (p *progress) stalled(limit time.Duration) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lag.State == StateStreaming && p.lag.Durable.Seq < p.lag.Head.Seq && p.clock.now().Sub(p.moved) > limit
}

// snapshot is the lag now.
func (p *progress) snapshot() Lag {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.snapshotLocked()
}

func (p *progress) snapshotLocked() Lag {
	l := p.lag
	now := p.clock.now()
	l.Records = behind(l.Head.Seq, l.Durable.Seq)
	l.Bytes = p.ledger.behindBytes(l.Head.Seq, p.bytes, l.Durable.Seq)
	l.RPO = UnknownRPO
	switch {
	case l.Direction == Outbound && p.ledger.known:
		l.RPO, l.Known = sourceRPO(p.clock.nanos(now), p.ledger.proven.at), true
	case l.Direction == Inbound && p.faults.sourceClockOnly && p.ledger.known:
		l.RPO, l.Known = time.Duration(p.clock.nanos(now)-p.ledger.proven.at), true
	case l.Direction == Inbound && !p.safe.IsZero():
		l.RPO, l.Known = max(now.Sub(p.safe), 0), true
	}
	if o := p.origin; o.relayed() {
		l.Relayed, l.Primary = true, Primary{Head: o.head, Time: o.headTime, Heard: p.heardAtRelay(o.heard, l.Heard)}
		l.Records, l.Bytes = l.Records+o.records, l.Bytes+o.bytes
	}
	if p.offset.known() {
		l.ClockOffset, l.ClockError = p.offset.ahead(p.clock), p.offset.marginAt(now)
	}
	return l
}

// heardAtRelay is when a relay was told, on our clock; zero while that is not known.
func (p *progress) heardAtRelay(told int64, arrived time.Time) time.Time {
	switch {
	case told == 0:
		return time.Time{}
	case p.lag.Direction == Outbound: // this site is the relay
		return p.clock.at(told)
	case !p.offset.known():
		return time.Time{}
	}
	return replicaMoment(sample{at: told, arrived: arrived}, p.offset)
}
