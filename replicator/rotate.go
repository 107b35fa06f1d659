package replicator

import (
	"crypto/tls"
	"fmt"
	"slices"
)

// A site changes its key while its peers go on: it tells them of the next one over
// sessions that the present one has proven, each pins both, durably, and says so; when
// all have, the site shows the next one alone, and a peer that has seen it drops the
// other:
//
//	the site                                    a peer
//	Announce(next)
//	  ── control: Rotate (next) ─────────────→  Options.Successor: pins it as well
//	  ←─ control: Rotated (next, code) ───────
//	Options.Confirmed; when all have: SetIdentity
//	  ── TLS with the next key ──────────────→  Options.Seen: drops the other pin
//
// An announcement is repeated in every session until SetIdentity, so either end may
// stop at any moment.

// rotate tells of the sender's next key.
type rotate struct{ next Pin }

func (*rotate) kind() messageType  { return typeRotate }
func (m *rotate) pack(p *packer)   { p.raw(m.next[:]) }
func (m *rotate) unpack(p *parser) { copy(m.next[:], p.take(len(m.next))) }

// rotated says whether the sender accepts the peer's next key.
type rotated struct {
	next Pin
	code Code
	text string
}

func (*rotated) kind() messageType { return typeRotated }

func (m *rotated) pack(p *packer) {
	p.raw(m.next[:])
	p.u16(uint16(m.code))
	p.text(m.text, maxTextBytes)
}

func (m *rotated) unpack(p *parser) {
	copy(m.next[:], p.take(len(m.next)))
	m.code = Code(p.u16())
	m.text = p.text(maxTextBytes)
}

// Announce tells all peers, now and in every session to come, of this site's next key;
// the zero Pin ends that.
func (r *Replicator) Announce(next Pin) {
	r.mu.Lock()
	r.successor = next
	links := slices.Clone(r.links)
	r.mu.Unlock()
	for _, l := range links {
		l.announce()
	}
}

// announce tells one peer, if there is something to tell and it understands.
func (l *link) announce() {
	l.r.mu.Lock()
	next := l.r.successor
	l.r.mu.Unlock()
	if !next.IsZero() && l.theirs&featureRotate != 0 {
		l.out.send(message{body: &rotate{next: next}})
	}
}

// announced takes in a peer's next key.
func (l *link) announced(m *rotate) {
	answer := &rotated{next: m.next}
	if err := l.r.succeed(l.peer, m.next); err != nil {
		l.r.o.Log.Warn("next key of peer not accepted", "peer", l.peer.Name, "pin", m.next.String(), "err", err)
		answer.code, answer.text = CodeUnpinned, clipText(err.Error(), maxTextBytes)
	}
	l.out.send(message{body: answer})
}

func (r *Replicator) succeed(p *peer, next Pin) error {
	switch {
	case p.ctx.Err() != nil:
		return ErrRevoked
	case next.IsZero() || next == r.self().pin:
		return fmt.Errorf("pin %s is nobody's, or this site's own", next)
	case slices.Contains(p.pins(), next):
		return nil
	case r.peerByPin(next) != nil:
		return fmt.Errorf("pin %s is that of another peer", next)
	}
	return r.o.Successor(p.Name, next)
}

// confirmed takes in a peer's answer to what was announced.
func (l *link) confirmed(m *rotated) {
	l.r.mu.Lock()
	asked := l.r.successor
	l.r.mu.Unlock()
	switch {
	case m.next != asked || asked.IsZero(): // of an earlier one
	case m.code != CodeNone:
		l.r.o.Log.Warn("peer does not accept this site's next key", "peer", l.peer.Name, "err", m.text)
	default:
		l.r.o.Confirmed(l.peer.Name, m.next)
	}
}

// self is what this site shows.
type self struct {
	cert tls.Certificate
	pin  Pin
}

func (r *Replicator) self() *self { return r.shown.Load() }

// SetIdentity shows another key from now on. All sessions end, and begin anew with it.
func (r *Replicator) SetIdentity(id *Identity) error {
	cert, err := id.certificate()
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.shown.Store(&self{cert, id.Pin()})
	r.successor = Pin{}
	for i, p := range r.peers {
		fresh := r.newPeer(p.Peer)
		fresh.known.Store(p.known.Load())
		fresh.allowance = p.allowance
		r.peers[i] = fresh
		p.revoke(ErrRekeyed)
	}
	close(r.refreshed)
	r.refreshed = make(chan struct{})
	return nil
}
