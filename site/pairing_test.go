package site

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/novacron/afterimage/replicator"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// Two sites whose configurations name each other without pins pair by one token, and
// stay paired over restarts; a peer that is removed is out at once and stays out, until
// it is invited anew.
func TestSitesPairByToken(t *testing.T) {
	t.Parallel()
	w, ctx := newWorld(t), context.Background()
	ca, cb := w.pair("", "")
	ca.Peers[0].Pin, cb.Peers[0].Pin = "", ""
	a, b := w.run(ca), w.run(cb)
	if _, err := a.Invite(ctx, control.InviteRequest{Peer: "x", ForSeconds: 60}); !fault.Is(err, fault.PeerUnknown) {
		t.Errorf("inviting a stranger: %v", err)
	}
	for _, address := range []string{"nonsense", ":7700", "host:0", "host:https", "host:70000"} {
		if _, err := a.Invite(ctx, control.InviteRequest{Peer: "b", ForSeconds: 60, Addresses: []string{address}}); !fault.Is(err, fault.Usage) {
			t.Errorf("inviting to %q: %v", address, err)
		}
	}
	listens := func(r *running) {
		t.Helper()
		await(t, "the site listens", func() bool { return len(r.callable()) > 0 })
	}
	invite := func(d time.Duration) string {
		t.Helper()
		listens(a)
		i, err := a.Invite(ctx, control.InviteRequest{Peer: "b", ForSeconds: d.Seconds()})
		if err != nil || len(i.Addresses) == 0 {
			t.Fatalf("%+v, %v", i, err)
		}
		return i.Token
	}
	listens(b)
	join := func(token string) error {
		_, err := b.Join(ctx, control.JoinRequest{Token: token})
		return err
	}
	if err := join(invite(-time.Second)); !fault.Is(err, fault.TokenTrouble) || !errors.Is(err, replicator.ErrInviteExpired) {
		t.Errorf("an expired token: %v", err)
	}
	old := invite(time.Hour)
	token := invite(time.Hour) // replaces it
	if err := join(old); !fault.Is(err, fault.TokenTrouble) {
		t.Errorf("a token that was replaced: %v", err)
	}
	ca.Listen = a.address()
	a.stop() // what was handed out is good still
	if kept, err := os.ReadFile(filepath.Join(ca.Data, "peers.json")); err != nil || !strings.Contains(string(kept), `"invites"`) || strings.Contains(string(kept), token) {
		t.Errorf("kept of an open invitation: %s, %v", kept, err)
	}
	a = w.run(ca)
	listens(a)
	if err := join(token[:len(token)-1]); !fault.Is(err, fault.TokenTrouble) {
		t.Errorf("half a token: %v", err)
	}
	if err := join(token); err != nil {
		t.Fatal(err)
	}
	awaitLevel(a, b, "web")
	if err := join(token); !fault.Is(err, fault.TokenTrouble) {
		t.Errorf("a used token: %v", err)
	}

	cb.Listen = b.address()
	a.stop()
	b.stop()
	if st, err := os.Stat(filepath.Join(ca.Data, "peers.json")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the peers' keys are kept in %v, %v", st, err)
	}
	a, b = w.run(ca), w.run(cb)
	awaitLevel(a, b, "web")
	a.awaitState("web", control.StateSynced)
	a.write("web/root", 0x11, 0, 4096)
	awaitLevel(a, b, "web")

	if _, err := b.RemovePeer(ctx, control.RemovePeerRequest{Peer: "a"}); err != nil {
		t.Fatal(err)
	}
	await(t, "the sessions end", func() bool {
		s, err := a.Status(ctx)
		return err == nil && s.Peers[0].State == "disconnected" && s.Peers[0].Error != ""
	})
	at := b.groupLine("web").Seq
	a.write("web/root", 0x22, 0, 4096)
	cb.Peers[0].Pin = a.self().Pin().String() // a configuration does not bring it back
	b.stop()
	b = w.run(cb)
	listens(b)
	b.awaitState("web", control.StateWaiting)
	if s, err := b.Status(ctx); err != nil || s.Peers[0].State != "unpaired" {
		t.Errorf("a removed peer is %+v, %v", s.Peers, err)
	}
	if seq := b.groupLine("web").Seq; seq != at {
		t.Errorf("a removed peer brought the group from %d to %d", at, seq)
	}
	if err := join(invite(time.Hour)); err != nil {
		t.Fatal(err)
	}
	awaitLevel(a, b, "web")
}
