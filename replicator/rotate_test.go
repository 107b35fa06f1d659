package replicator

import (
	"testing"
)

// A site changes its key under a session that goes on; the peer accepts both keys
// meanwhile, and the old one no more once it has seen the new.
func TestAKeyIsChangedWhileFramesFlow(t *testing.T) {
	p := newPair(t)
	old, next := p.source.o.Identity, mustIdentity(t)
	var pinned, dropped int
	p.replica.o.Successor = func(peer string, pin Pin) error {
		p.replica.note(func() { pinned++ })
		return p.replica.rep.SetPeers([]Peer{{Name: peer, Pin: old.Pin(), AlsoPins: []Pin{pin}}})
	}
	p.replica.o.Seen = func(peer string, pin Pin) {
		if pin == next.Pin() && p.replica.rep.peerByPin(old.Pin()) != nil {
			p.replica.note(func() { dropped++ })
			if err := p.replica.rep.SetPeers([]Peer{{Name: peer, Pin: pin}}); err != nil {
				t.Error(err)
			}
		}
	}
	confirmed := make(chan Pin, 16)
	p.source.o.Confirmed = func(_ string, pin Pin) { confirmed <- pin }
	p.up()
	p.load(10, 1, 100)
	p.caughtUp()
	begun := 0
	p.source.note(func() { begun = p.source.streaming })
	p.source.rep.Announce(next.Pin())
	if got := <-confirmed; got != next.Pin() {
		t.Fatalf("confirmed %v, announced %v", got, next.Pin())
	}
	p.load(10, 1, 100)
	p.caughtUp()
	p.source.note(func() {
		if p.source.streaming != begun {
			t.Error("an announcement ended the session")
		}
	})
	if err := p.source.rep.SetIdentity(next); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the old key is dropped", func() bool {
		return p.replica.rep.peerByPin(old.Pin()) == nil && p.replica.rep.peerByPin(next.Pin()) != nil
	})
	p.load(10, 1, 100)
	p.caughtUp()
	p.replica.note(func() {
		if pinned != 1 || dropped != 1 {
			t.Errorf("pinned %d times, dropped %d times, want once each", pinned, dropped)
		}
	})
}

// What a peer says of its next key gives it nothing that is another's.
func TestANextKeyThatIsTakenIsRefused(t *testing.T) {
	p := newPair(t)
	other := mustIdentity(t)
	p.replica.o.Peers = append(p.replica.o.Peers, Peer{Name: "c", Pin: other.Pin()})
	p.replica.o.Successor = func(string, Pin) error {
		t.Error("the site was asked to pin a key that is taken")
		return nil
	}
	p.up()
	p.load(1, 1, 8)
	p.caughtUp()
	a := p.replica.rep.peerByPin(p.source.o.Identity.Pin())
	for _, pin := range []Pin{other.Pin(), p.replica.o.Identity.Pin(), {}} {
		if err := p.replica.rep.succeed(a, pin); err == nil {
			t.Errorf("pin %v is accepted", pin)
		}
	}
	if err := p.replica.rep.succeed(a, p.source.o.Identity.Pin()); err != nil {
		t.Errorf("the present key again: %v", err)
	}
	if err := p.replica.rep.SetPeers(nil); err != nil {
		t.Fatal(err)
	}
	if err := p.replica.rep.succeed(a, mustIdentity(t).Pin()); err == nil {
		t.Error("a peer that was removed changes its key")
	}
}
