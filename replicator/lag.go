package replicator

import (
	"math"
	"time"

	"github.com/novacron/afterimage/journal"
)

// Direction of a group's frames.
type Direction uint8

// Directions.
const (
	Outbound Direction = iota + 1 // this site is the source
	Inbound                       // this site is the replica
)

func (d Direction) String() string {
	switch d {
	case Outbound:
		return "out"
	case Inbound:
		return "in"
	}
	return "unknown"
}

// State of a group's replication with one peer.
type State uint8

// States.
const (
	StateDisconnected State = iota // no connection to the peer
	StateOpening                   // histories are being compared
	StateStreaming                 // frames flow
	StateRefused                   // tried again later; Lag.Err says why
	StateHalted                    // *Conflict; a person must decide
	StateCatchingUp                // a delta is on its way; the lag is that of what was held before
)

var stateNames = [...]string{"disconnected", "opening", "streaming", "refused", "halted", "catching-up"}

func (s State) String() string { return stateNames[s] }

// UnknownRPO is shown while nothing is known about a peer.
const UnknownRPO = time.Duration(math.MaxInt64)

// Lag is how far a replica is behind its source. It is never less than the truth.
//
// RPO is the age of the newest moment of which it is known that everything
// captured until then is durable at the replica: an idle group's is about one
// heartbeat, and while the link is down it grows, at both ends. Records and Bytes
// are exact bounds at the source; at the replica they are as of the newest
// heartbeat, since what came after it cannot be known there.
type Lag struct {
	Peer          string
	Tenant, Group string
	Identity      journal.Identity
	Direction     Direction
	State         State
	Connected     bool
	Since         time.Time // of State
	Err           error     // last reason for not streaming, nil while streaming

	Records  uint64
	Bytes    int64
	RPO      time.Duration // UnknownRPO unless Known
	Known    bool          // false until the first moment is proven in this process's life
	Head     journal.Position
	HeadTime time.Time        // of the head's record, by the source's clock; replica only
	Heard    time.Time        // replica: when the newest heartbeat came
	Durable  journal.Cursor   // at the replica
	Relayed  bool             // the source is a relay: RPO, Records and Bytes count from the primary on
	Primary  Primary          // as a relay knows of it
	Target   journal.Position // what a delta that is on its way leads to; zero: there is none

	ClockOffset time.Duration // of the peer's clock before ours
	ClockError  time.Duration // bound of its error; 0 with an unmeasured offset

	FramesMoved, BytesMoved uint64 // sent or received in this process's life
	// JournalBytes is what BytesMoved stands for, as it lies in the journals.
	JournalBytes uint64
}

// Primary is what a relay was told by, or about, the one whose history it sends on.
type Primary struct {
	Head  journal.Position
	Time  time.Time // of that record, by the primary's clock
	Heard time.Time // when the relay was told, our clock, at the earliest; zero: not known
}

// sample is what the source held at a moment of its clock.
type sample struct {
	at      int64     // source's clock, ns; read before the head was
	arrived time.Time // replica only: when it came, our clock
	seq     journal.Seq
	bytes   int64
}

// maxSamples bounds a ledger. Samples beyond it are thinned, which can only make
// the lag shown larger.
const maxSamples = 512

// ledger finds the newest proven moment from what the source held when, and what
// is durable at the replica. It is pure: no clock, no lock.
type ledger struct {
	pending []sample // not proven yet, oldest first
	proven  sample   // the newest proven one
	known   bool
}

// note adds a sample. One that is older than the last is dropped; one with a
// lower seq means that the source went back, and everything pending is void.
func (l *ledger) note(s sample) {
	last := l.proven
	if n := len(l.pending); n > 0 {
		last = l.pending[n-1]
	}
	if (l.known || len(l.pending) > 0) && s.at < last.at {
		return
	}
	if s.seq < last.seq {
		l.pending = l.pending[:0]
	}
	if n := len(l.pending); n > 1 && l.pending[n-1].seq == s.seq && l.pending[n-2].seq == s.seq {
		l.pending[n-1] = s // the same head still: its oldest and its newest moment are enough
		return
	}
	l.pending = append(l.pending, s)
	if len(l.pending) > maxSamples {
		l.thin()
	}
}

// thin drops every second pending sample but the last.
func (l *ledger) thin() {
	kept := l.pending[:0]
	for i, s := range l.pending {
		if i%2 == 1 || i == len(l.pending)-1 {
			kept = append(kept, s)
		}
	}
	l.pending = kept
}

// durable proves every sample that durable covers and that the replica has heard
// of (heard is the newest heartbeat it received). It reports the newest proven
// sample, and whether it is newly so.
func (l *ledger) durable(durable journal.Seq, heard int64) (sample, bool) {
	n := 0
	for n < len(l.pending) && l.pending[n].seq <= durable && l.pending[n].at <= heard {
		n++
	}
	if n == 0 {
		return l.proven, false
	}
	l.proven, l.known = l.pending[n-1], true
	l.pending = append(l.pending[:0], l.pending[n:]...)
	return l.proven, true
}

// void forgets everything: what the replica held is not what it holds now.
func (l *ledger) void() { *l = ledger{} }

// behind is an upper bound of what separates head from the replica.
func behind(head, durable journal.Seq) uint64 {
	if durable >= head {
		return 0
	}
	return uint64(head - durable)
}

// behindBytes bounds the bytes after durable from the newest sample at or before
// it. Without one, all bytes of the source are counted.
func (l *ledger) behindBytes(head journal.Seq, bytes int64, durable journal.Seq) int64 {
	if durable >= head {
		return 0
	}
	base := int64(0)
	if l.known && l.proven.seq <= durable {
		base = l.proven.bytes
	}
	for _, s := range l.pending {
		if s.seq > durable {
			break
		}
		base = max(base, s.bytes)
	}
	return max(bytes-base, 0)
}

// sourceRPO is the age of the proven moment by the clock that stamped it.
func sourceRPO(now, proven int64) time.Duration { return time.Duration(max(now-proven, 0)) }

// replicaMoment is the earliest moment of the replica's clock at which the source
// can have taken s: by the measured offset, but never after s arrived.
func replicaMoment(s sample, o offset) time.Time {
	t := o.earliest(s.at)
	if t.After(s.arrived) {
		return s.arrived
	}
	return t
}
