package replicator

import (
	"fmt"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
)

// hello opens a connection, from both ends. The version used is the lower of
// the two maxima; it must reach the higher of the two minima.
type hello struct {
	minVersion, maxVersion   uint16
	incompatible, compatible uint64
	instance                 cbt.ID // this life of the replicator
	site                     string // for people; trust rests on the pin
}

func (*hello) kind() messageType { return typeHello }

func (m *hello) pack(p *packer) {
	p.u16(m.minVersion)
	p.u16(m.maxVersion)
	p.u64(m.incompatible)
	p.u64(m.compatible)
	p.raw(m.instance[:])
	p.text(m.site, maxNameBytes)
}

func (m *hello) unpack(p *parser) {
	m.minVersion, m.maxVersion = p.u16(), p.u16()
	m.incompatible, m.compatible = p.u64(), p.u64()
	copy(m.instance[:], p.take(16))
	m.site = p.text(maxNameBytes)
}

// openGroup asks the peer to take a group's frames; it carries the source's history.
type openGroup struct {
	tenant, group string
	head          journal.EpochID
	branches      []journal.Branch
	relayed       bool // by a site that receives it itself; later than the others
}

func (*openGroup) kind() messageType { return typeOpen }

func (m *openGroup) pack(p *packer) {
	p.text(m.tenant, maxNameBytes)
	p.text(m.group, maxNameBytes)
	p.raw(m.head[:])
	p.branches(m.branches)
	if m.relayed {
		p.u16(relayedOpening)
	}
}

func (m *openGroup) unpack(p *parser) {
	m.tenant, m.group = p.text(maxNameBytes), p.text(maxNameBytes)
	copy(m.head[:], p.take(16))
	m.branches = p.branches()
	m.relayed = p.follows(relayedOpening)
}

// accept answers openGroup: the replica's history and what of it is durable.
type accept struct {
	head     journal.EpochID
	durable  journal.Cursor
	branches []journal.Branch
	window   int64 // bytes that may be on their way, and not be read
}

func (*accept) kind() messageType { return typeAccept }

func (m *accept) pack(p *packer) {
	p.raw(m.head[:])
	p.cursor(m.durable)
	p.branches(m.branches)
	p.u64(uint64(m.window))
}

func (m *accept) unpack(p *parser) {
	copy(m.head[:], p.take(16))
	m.durable = p.cursor()
	m.branches = p.branches()
	m.window = int64(p.u64())
}

// taken says how much of what an opening carries has been read: there is room for a
// window of bytes after position.
// piece beyond the window no sooner. It tells as well how many bytes of pieces have come,
// in whatever order and however often, and what is there up to known: all but missing.
type taken struct {
	position, come, known int64
	missing               []stretch
}

// stretch is from one position to another.
type stretch struct{ from, to int64 }

func (*taken) kind() messageType { return typeTaken }
func (m *taken) pack(p *packer) {
	p.u64(uint64(m.position))
	p.u64(uint64(m.come))
	p.u64(uint64(m.known))
	p.u16(uint16(len(m.missing)))
	for _, s := range m.missing {
		p.u64(uint64(s.from))
		p.u64(uint64(s.to))
	}
}

func (m *taken) unpack(p *parser) {
	m.position, m.come = int64(p.u64()), comeUnknown
	if len(p.b) == 0 {
		return
	}
	m.come, m.known = int64(p.u64()), int64(p.u64())
	n := int(p.u16())
	if p.err == nil && n > maxMissing {
		p.err = fmt.Errorf("%d missing stretches, at most %d", n, maxMissing)
	}
	for p.err == nil && len(m.missing) < n {
		m.missing = append(m.missing, stretch{int64(p.u64()), int64(p.u64())})
	}
}

// maxMissing stretches are told at once.
const maxMissing = 64

// comeUnknown is of a replica that does not tell.
const comeUnknown = -1

// refuse ends an opening, from either end, with its sender's history as evidence.
type refuse struct {
	code     Code
	text     string
	head     journal.EpochID
	branches []journal.Branch
}

func (*refuse) kind() messageType { return typeRefuse }

func (m *refuse) pack(p *packer) {
	p.u16(uint16(m.code))
	p.text(m.text, maxTextBytes)
	p.raw(m.head[:])
	p.branches(m.branches)
}

func (m *refuse) unpack(p *parser) {
	m.code = Code(p.u16())
	m.text = p.text(maxTextBytes)
	copy(m.head[:], p.take(16))
	m.branches = p.branches()
}

// heartbeat says what the source held at a moment of its clock: everything
// captured until at is at or before head; a relay's at is none of its own (relay.go),
// and 0 where it knows of none. safe is the newest such moment of which
// the source knows that the peer holds it all (0: none).
type heartbeat struct {
	at       int64 // source's clock, ns
	head     journal.Position
	headTime time.Time // of that record
	bytes    int64     // journal.Head.Bytes
	durable  journal.Cursor
	safe     int64 // source's clock, ns
	origin   origin
}

func (*heartbeat) kind() messageType { return typeHeartbeat }

func (m *heartbeat) pack(p *packer) {
	p.nanos(m.at)
	p.position(m.head)
	p.time(m.headTime)
	p.u64(uint64(m.bytes))
	p.cursor(m.durable)
	p.nanos(m.safe)
	if m.origin.relayed() {
		m.origin.pack(p)
	}
}

func (m *heartbeat) unpack(p *parser) {
	m.at = p.nanos()
	m.head = p.position()
	m.headTime = p.time()
	m.bytes = int64(p.u64())
	m.durable = p.cursor()
	m.safe = p.nanos()
	m.origin = unpackOrigin(p)
}

// ack says what is durable at the replica, and which heartbeat it has heard.
type ack struct {
	durable journal.Cursor
	heard   int64 // newest heartbeat.at received
	at      int64 // replica's clock, ns
}

func (*ack) kind() messageType { return typeAck }

func (m *ack) pack(p *packer) {
	p.cursor(m.durable)
	p.nanos(m.heard)
	p.nanos(m.at)
}

func (m *ack) unpack(p *parser) {
	m.durable = p.cursor()
	m.heard = p.nanos()
	m.at = p.nanos()
}

// ping and pong measure the offset of the two clocks (RFC 5905, section 8).
type ping struct{ sent int64 }

func (*ping) kind() messageType  { return typePing }
func (m *ping) pack(p *packer)   { p.nanos(m.sent) }
func (m *ping) unpack(p *parser) { m.sent = p.nanos() }

type pong struct {
	sent     int64 // of the ping, its sender's clock
	received int64 // when the ping came, this end's clock
	answered int64 // when the pong left
}

func (*pong) kind() messageType { return typePong }

func (m *pong) pack(p *packer) {
	p.nanos(m.sent)
	p.nanos(m.received)
	p.nanos(m.answered)
}

func (m *pong) unpack(p *parser) {
	m.sent, m.received, m.answered = p.nanos(), p.nanos(), p.nanos()
}

// offer tells a replica that a delta will bring it on, from what it holds.
type offer struct {
	after journal.Position
	to    journal.Cursor
	time  time.Time // of the record that it leads to
}

func (*offer) kind() messageType { return typeOffer }

func (m *offer) pack(p *packer) {
	p.position(m.after)
	p.cursor(m.to)
	p.time(m.time)
}

func (m *offer) unpack(p *parser) {
	m.after = p.position()
	m.to = p.cursor()
	m.time = p.time()
}

// landingPlace answers an offer: where the delta lands (journal.DeltaPlace).
type landingPlace struct {
	run    uint64
	epochs uint32
}

func (*landingPlace) kind() messageType { return typePlace }

func (m *landingPlace) pack(p *packer) {
	p.u64(m.run)
	p.u32(m.epochs)
}

func (m *landingPlace) unpack(p *parser) { m.run, m.epochs = p.u64(), p.u32() }

// landedDelta says that a delta is durable and verified at the replica, which goes on
// from at.
type landedDelta struct{ at journal.Cursor }

func (*landedDelta) kind() messageType  { return typeLanded }
func (m *landedDelta) pack(p *packer)   { p.cursor(m.at) }
func (m *landedDelta) unpack(p *parser) { m.at = p.cursor() }

// bye ends the connection.
type bye struct {
	code Code
	text string
}

func (*bye) kind() messageType { return typeBye }

func (m *bye) pack(p *packer) {
	p.u16(uint16(m.code))
	p.text(m.text, maxTextBytes)
}

func (m *bye) unpack(p *parser) {
	m.code = Code(p.u16())
	m.text = p.text(maxTextBytes)
}
