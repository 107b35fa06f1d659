package replicator

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
)

// A site that receives a group may send it on (Group.Relay), frame for frame and with or
// without its key. What it says of the lag is never about itself: it cannot know when
// something was captured, only what it was told by whom it receives from.
//
//	primary A ── at: A's clock ──→ relay B ── at: until when B has all of A ──→ C
//
// A heartbeat of a relay carries as its moment the newest one of which it is proven that
// all captured until then is durable here (progress.safe), on this site's clock, and none
// while nothing is proven. Whoever follows on a relay so counts from the primary's
// clock, each step's margin of error added; and that which separates the relay itself from
// the primary is added to what separates the relay from it.
//
// Only one session at a time appends to a group. A primary's ends a relay's; a relay's
// is refused while another site sends (ErrSourced), and where it comes from a site that
// gets the group from here, for nothing could ever come of that. So a site may have several
// ways, and falls back on one when the better one ends.
//
// Relays may form diamonds and rings. Of the two ways of a diamond one flows. A relay that
// is behind whom it calls is no source that lost history: a replica refuses it until it is
// ahead (ErrSourced), a primary, to which a ring leads back, always (ErrNotReplica). Where
// all of a ring have lost the primary, no moment and no record comes to be that it did not
// tell of: each can only give what it has.

// ErrSourced: a relay offered a group that comes from another site.
var ErrSourced = errors.New("the group comes from another site")

// origin is what a relay knows of the primary that its history comes from.
type origin struct {
	site     cbt.ID // of the relay's process, so that it is never all zero; zero: not relayed
	head     journal.Position
	headTime time.Time // of that record
	heard    int64     // relay's clock, ns: when it was told of head
	records  uint64    // after what is durable at the relay
	bytes    int64
}

func (o origin) relayed() bool { return o.site != cbt.ID{} }

// since is o, or what was known before it of a primary that o says nothing of: a relay
// that was restarted and has not heard of it yet.
func (o origin) since(was origin) origin {
	if o.relayed() && o.head.IsZero() && was.relayed() {
		o.head, o.headTime, o.heard, o.records, o.bytes = was.head, was.headTime, 0, was.records, was.bytes
	}
	return o
}

func (o origin) pack(p *packer) {
	p.raw(o.site[:])
	p.position(o.head)
	p.time(o.headTime)
	p.nanos(o.heard)
	p.u64(o.records)
	p.u64(uint64(o.bytes))
}

// relayedOpening follows on an opening of a relay.
const relayedOpening = 1

// follows takes v, if that is what comes next: a primary sends nothing there, and nor
// does a version that knows of no relays.
func (p *parser) follows(v uint16) bool {
	if p.err != nil || len(p.b) < 2 || binary.LittleEndian.Uint16(p.b) != v {
		return false
	}
	p.u16()
	return true
}

// unpackOrigin reads what follows on a heartbeat of a relay.
func unpackOrigin(p *parser) (o origin) {
	if p.err != nil || len(p.b) < len(o.site) || cbt.ID(p.b[:len(o.site)]) == (cbt.ID{}) {
		return o
	}
	copy(o.site[:], p.take(16))
	o.head = p.position()
	o.headTime = p.time()
	o.heard = p.nanos()
	o.records, o.bytes = p.u64(), int64(p.u64())
	if p.err == nil && (o.bytes < 0 || o.heard < 0) {
		p.err = errors.New("a negative lag of a relay")
	}
	return o
}

// passOn is what this site, receiving, can say of the source to whom it sends on, given
// that its own history ends in epoch. at is the moment until which it has everything, by
// its clock; 0: none is known of this history.
func (p *progress) passOn(by cbt.ID, epoch journal.EpochID) (at int64, o origin) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.snapshotLocked()
	o = origin{site: by, head: l.Head, headTime: l.HeadTime, records: l.Records, bytes: l.Bytes}
	heard := l.Heard
	if l.Relayed {
		o.head, o.headTime, heard = l.Primary.Head, l.Primary.Time, l.Primary.Heard
	}
	if !heard.IsZero() {
		o.heard = p.clock.nanos(heard)
	}
	// A source that went back, or another one: until its frames come, the history here is
	// not the one that it speaks of.
	if p.safe.IsZero() || p.lag.Head.Epoch != epoch {
		return 0, o
	}
	return p.clock.nanos(p.safe), o
}

// upstream is who this site has a group from; nil: it had it from nobody in this
// process's life.
func (r *Replicator) upstream(id journal.Identity) *progress {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sources[id]
}

// sourced notes whose frames a group goes on with. What was said to others' lag before is
// over: they send no more, or what they do send excludes this, and is told as a conflict.
func (r *Replicator) sourced(id journal.Identity, p *progress) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sources[id] = p
	for k, other := range r.inbound {
		if k.id == id && other != p && !other.halted() {
			delete(r.inbound, k)
			delete(r.held, k)
		}
	}
}

func (p *progress) halted() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lag.State == StateHalted
}

// sampleRelayed is outgroup.sample at a relay: the moment is the source's. It is read
// before the head, which holds at least what was durable at that moment.
func (g *outgroup) sampleRelayed(r *Replicator) (int64, journal.Head) {
	epoch := g.Source.Head().Epoch
	at, o := int64(0), origin{site: r.instance}
	if p := r.upstream(g.Source.Identity()); p != nil {
		at, o = p.passOn(r.instance, epoch)
	}
	if r.faults.relayOwnClock || r.faults.relayUnmarked {
		at = r.clock.nanos(r.clock.now())
	}
	if r.faults.relayUnmarked {
		o = origin{}
	}
	head := g.Source.Head()
	if head.Epoch != epoch {
		at = 0
	}
	g.progress.sampledRelay(at, o, head, g.Source.Branches)
	return at, head
}

// barred says why a relay's opening must not append, nil when it may. r.mu is held.
func (r *Replicator) barredLocked(in *inbound) error {
	if !in.relayed || r.faults.anySource {
		return nil
	}
	if before := r.receiving[in.id]; before != nil && before.peer.Name != in.peer.Name {
		return fmt.Errorf("%w: %s", ErrSourced, before.peer.Name)
	}
	if g := r.outbound[outKey{in.peer.Name, in.id}]; g != nil && g.Relay && g.progress.flowing() {
		return fmt.Errorf("%w: %s gets it from here", ErrSourced, in.peer.Name)
	}
	return nil
}

// flowing reports that the group goes out.
func (p *progress) flowing() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lag.State == StateStreaming || p.lag.State == StateCatchingUp
}
