package site

import (
	"context"
	"errors"
	"os"
	"testing"

	"github.com/novacron/afterimage/recovery/evidence"
	"github.com/novacron/afterimage/replicator"
	"github.com/novacron/afterimage/site/control"
)

// A site changes its key while its peer goes on; a peer that is away is waited for, over
// restarts of both, and neither end forgets what it promised.
func TestASiteChangesItsKey(t *testing.T) {
	t.Parallel()
	w, ctx := newWorld(t), context.Background()
	ca, cb := w.pair("", "")
	ca.Peers[0].Address, cb.Peers[0].Address = cb.Listen, ca.Listen
	a, b := w.run(ca), w.run(cb)
	awaitLevel(a, b, "web")
	old := a.self().Pin()
	sum := evidence.HashOf([]byte("page"))
	if _, err := a.ledger.Append(evidence.Entry{Site: "a", Kind: "drill", Group: "default/web", Name: "first", Report: sum, Page: sum}, a.o.Now()); err != nil {
		t.Fatal(err)
	}

	b.stop()
	r, err := a.Rotate(ctx, control.RotateRequest{})
	if err != nil || r.Pin != old.String() || r.Next == "" || len(r.Waiting) != 1 || r.Waiting[0] != "b" {
		t.Fatalf("with a peer away: %+v, %v", r, err)
	}
	a.stop()
	a = w.run(ca) // it goes on where it was
	if again, err := a.Rotate(ctx, control.RotateRequest{}); err != nil || again.Next != r.Next || again.Pin != old.String() {
		t.Fatalf("after a restart: %+v, %v, want next %s", again, err, r.Next)
	}
	b = w.run(cb)
	await(t, "the key is changed", func() bool { return a.self().Pin().String() == r.Next && a.pairs.rotation() == nil })
	a.awaitState("web", control.StateSynced)
	a.write("web/root", 0x22, 0, 4096)
	awaitLevel(a, b, "web")
	await(t, "the old key is dropped", func() bool {
		p, _ := b.cfg.Peer("a")
		return samePin(b.pairs.of(p).Pin, r.Next)
	})
	a.stop()
	b.stop()
	a, b = w.run(ca), w.run(cb)
	if a.ledgerErr != nil {
		t.Errorf("the ledger does not go on: %v", a.ledgerErr)
	}
	if h, err := a.LedgerHead(ctx); err != nil {
		t.Errorf("the ledger's head: %v", err)
	} else if _, err := b.VouchLedger(ctx, control.TokenRequest{Token: h.Token}); err != nil {
		t.Errorf("the peer does not vouch for a ledger that began with the old key: %v", err)
	}
	if a.self().Pin().String() != r.Next {
		t.Errorf("after a restart the key is %v, want %s", a.self().Pin(), r.Next)
	}
	awaitLevel(a, b, "web")
}

// Crashes at each step of the change leave one key that the peer accepts.
func TestAChangeOfKeyThatIsCutShort(t *testing.T) {
	t.Parallel()
	w, ctx := newWorld(t), context.Background()
	ca, cb := w.pair("", "")
	ca.Peers[0].Address, cb.Peers[0].Address = cb.Listen, ca.Listen
	a, b := w.run(ca), w.run(cb)
	awaitLevel(a, b, "web")

	b.stop()
	r, err := a.Rotate(ctx, control.RotateRequest{})
	if err != nil {
		t.Fatal(err)
	}
	a.stop()
	// The peer has pinned the next key and answered; the answer was lost.
	pb, err := openPairing(cb, b.o.Now)
	if err != nil {
		t.Fatal(err)
	}
	next, err := replicator.ParsePin(r.Next)
	if err != nil {
		t.Fatal(err)
	}
	if err := pb.succeed("a", next); err != nil {
		t.Fatal(err)
	}
	// The site had switched keys, and died before it noted so.
	if err := os.Rename(nextKey(ca), ca.Key); err != nil {
		t.Fatal(err)
	}
	a, b = w.run(ca), w.run(cb)
	if a.self().Pin() != next || a.pairs.rotation() != nil {
		t.Errorf("key %v, rotation %+v; want %v and none", a.self().Pin(), a.pairs.rotation(), next)
	}
	if _, err := os.Stat(nextKey(ca)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a next key is left: %v", err)
	}
	awaitLevel(a, b, "web")
	await(t, "the old key is dropped", func() bool {
		p, _ := b.cfg.Peer("a")
		return samePin(b.pairs.of(p).Pin, r.Next)
	})
}
