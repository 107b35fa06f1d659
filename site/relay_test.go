package site

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/novacron/afterimage/replicator"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/testbed/port"
)

// seats are sites that know each other, where each listens at a port of its own.
type seats struct {
	*world
	listen, pin map[string]string
}

func (w *world) seats(names ...string) *seats {
	w.t.Helper()
	s := &seats{w, map[string]string{}, map[string]string{}}
	for _, name := range names {
		pin, err := Pin(w.configure(name, ""))
		if err != nil {
			w.t.Fatal(err)
		}
		s.listen[name], s.pin[name] = port.Address(w.t), pin
	}
	return s
}

// at is the configuration of a site that has all others as peers.
func (s *seats) at(name, groups string) *config.Config {
	s.t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "listen: %s\npeers:\n", s.listen[name])
	for _, peer := range slices.Sorted(func(yield func(string) bool) {
		for n := range s.listen {
			if n != name && !yield(n) {
				return
			}
		}
	}) {
		fmt.Fprintf(&b, "- {name: %s, address: %q, pin: %q}\n", peer, s.listen[peer], s.pin[peer])
	}
	return s.configure(name, b.String()+"groups:\n"+groups)
}

const oneDisk = "  volumes: [{name: root, size: 2MiB, embedded: {image: root.img}}]\n"

// lagOf is what a site shows of a group's way to or from a peer.
func (r *running) lagOf(group, peer, direction string) control.Lag {
	r.t.Helper()
	for _, l := range r.groupLine(group).Lags {
		if l.Peer == peer && l.Direction == direction {
			return l
		}
	}
	return control.Lag{}
}

// Two sites are each the other's replica, for different groups.
func TestTwoSitesSendToEachOther(t *testing.T) {
	t.Parallel()
	w := newWorld(t).seats("a", "b")
	disk := func(name string) string {
		return "  role: primary\n  volumes: [{name: root, size: 2MiB, embedded: {image: " + name + ".img}}]\n"
	}
	a := w.run(w.at("a", "- name: web\n  peers: [b]\n"+disk("web")+"- {name: mail, peers: [b]}\n"))
	b := w.run(w.at("b", "- {name: web, peers: [a]}\n- name: mail\n  peers: [a]\n"+disk("mail")))
	a.awaitState("web", control.StateSynced)
	b.awaitState("mail", control.StateSynced)
	for i := range 20 {
		a.write("web/root", byte(1+i), int64(i)*4096, 4096)
		b.write("mail/root", byte(101+i), int64(i)*8192, 8192)
	}
	awaitLevel(a, b, "web")
	awaitLevel(b, a, "mail")
	for _, x := range []struct {
		at    *running
		group string
		first byte
	}{{b, "web", 1}, {a, "mail", 101}} {
		file := x.at.cfg.Data + "/out"
		if _, err := x.at.Restore(context.Background(), control.RestoreRequest{Group: x.group, At: "latest", To: file, Format: control.FormatRaw}, func(control.Progress) {}); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(file); err != nil || got[0] != x.first || got[4096*15] == 0 {
			t.Errorf("%s at %s begins with % x, %v", x.group, x.at.cfg.Site, got[:4], err)
		}
	}
	for _, r := range []*running{a, b} {
		if st, err := r.Status(context.Background()); err != nil || len(st.Peers) != 1 || st.Peers[0].Groups != 2 {
			t.Errorf("site %s: %+v, %v", r.cfg.Site, st.Peers, err)
		}
	}
}

// A site that has a group from its primary takes it from no relay; when the primary sends
// it no more, it has it from the relay; and when it does again, from the primary. The
// relay tells of those to whom it sends, and keeps what they lack.
func TestRelayIsTheSecondWay(t *testing.T) {
	t.Parallel()
	w, ctx := newWorld(t).seats("a", "b", "c"), context.Background()
	c := w.run(w.at("c", "- {name: web, peers: [a, b]}\n"))
	b := w.run(w.at("b", "- {name: web, peers: [a, c], relay: [c]}\n"))
	ca := w.at("a", "- name: web\n  role: primary\n  peers: [b, c]\n"+oneDisk)
	a := w.run(ca)
	a.awaitState("web", control.StateSynced)
	rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 5))
	l := &load{running: a, rng: rng, size: 2 << 20}
	l.writeOnce()
	awaitLevel(a, b, "web")
	awaitLevel(a, c, "web")
	streams := func(what string, r *running, peer, direction string) {
		t.Helper()
		await(t, what, func() bool { return r.lagOf("web", peer, direction).State == replicator.StateStreaming.String() })
	}
	streams("c has it from a", c, "a", "in")
	await(t, "c has it from nobody else", func() bool {
		l := b.lagOf("web", "c", "out")
		return l.State == replicator.StateRefused.String() && strings.Contains(l.Error, "from another site") && c.lagOf("web", "b", "in").Peer == ""
	})

	if _, err := c.RemovePeer(ctx, control.RemovePeerRequest{Peer: "a"}); err != nil {
		t.Fatal(err)
	}
	streams("c has it from b", c, "b", "in")
	for range 20 {
		l.writeOnce()
	}
	awaitLevel(a, c, "web")
	there := &load{running: c, rng: rng, size: l.size, writes: l.writes}
	there.restores("latest", l.head())
	await(t, "c is level", func() bool {
		x := c.groupLine("web")
		return x.RPOSeconds != nil && x.BehindWrites == 0 && len(x.Lags) == 1
	})
	await(t, "the relay receives, and holds nothing back for c, which lacks nothing", func() bool {
		(&load{running: b}).maintain()
		d, err := b.Group(ctx, "web")
		return err == nil && len(d.Holds) == 1 && d.Holds[0].Peer == "c" && d.Holds[0].State == control.HoldLevel && d.State == control.StateReceiving && d.RPOSeconds != nil
	})

	invited, err := c.Invite(ctx, control.InviteRequest{Peer: "a", ForSeconds: 600})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Join(ctx, control.JoinRequest{Token: invited.Token}); err != nil {
		t.Fatal(err)
	}
	streams("c has it from a again", c, "a", "in")
	await(t, "and not from b", func() bool { return b.lagOf("web", "c", "out").State == replicator.StateRefused.String() })
	for range 20 {
		l.writeOnce()
	}
	awaitLevel(a, c, "web")
	there.writes = l.writes
	there.restores("latest", l.head())
}
