package site

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/novacron/afterimage/replicator"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/testbed/scale"
)

// Of two peers one stays away for longer than its hold, by bytes or by time. It is brought
// on by a delta and not by a copy, and shows what that skipped and what is left of it at
// the source, where there is no gap. The other notices nothing: it goes on getting frames,
// its cursor moves with every round, and it skips nothing.
func TestPeerBeyondItsHoldCostsNobodyElse(t *testing.T) {
	scale.Lasting(t, "it writes until a hold has ended, twice")
	t.Parallel()
	for _, c := range []struct {
		name string
		hold config.Hold
	}{
		{"bytes", config.Hold{For: config.Duration(time.Hour), Bytes: 1 << 20}},
		{"time", config.Hold{For: config.Duration(time.Second)}},
	} {
		t.Run(c.name, func(t *testing.T) { beyondHold(t, c.hold) })
	}
}

const (
	heldDisk   = 32 << 20
	heldRegion = 1 << 20 // of the disk, which is written while the peer is away
)

func beyondHold(t *testing.T, hold config.Hold) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	w, ctx := newWorld(t).seats("a", "b", "c"), context.Background()
	cc := w.at("c", "- {name: web, peers: [a]}\n")
	b, c := w.run(w.at("b", "- {name: web, peers: [a]}\n")), w.run(cc)
	ca := w.at("a", "- name: web\n  role: primary\n  peers: [b, c]\n  volumes: [{name: root, size: 32MiB, embedded: {image: root.img}}]\n")
	g := &ca.Groups[0]
	g.Quota, g.Warn = 256<<20, config.DefaultWarn()
	g.History = []config.Rung{{Every: config.EveryWrite, For: config.For(time.Second)}, {Every: config.Every(time.Second), For: config.For(time.Hour)}}
	g.Maintenance = &config.Maintenance{Every: config.Duration(time.Hour), Rate: 1 << 30}
	for i := range ca.Peers {
		if ca.Peers[i].Name == "c" {
			ca.Peers[i].Hold, ca.Peers[i].Coalesce = &hold, &config.Coalesce{Behind: config.Duration(time.Second)}
		}
	}
	a := w.run(ca)
	a.awaitState("web", control.StateSynced)
	l := &load{running: a, rng: rand.New(rand.NewPCG(seed, 4)), size: heldDisk}
	for off := int64(0); off < heldDisk; off += 512 << 10 {
		l.writeAt(off, 512<<10)
	}
	awaitLevel(a, b, "web")
	awaitLevel(a, c, "web")
	held := l.head()
	early := len((&load{running: c}).points().Skipped) // it may have been behind before, on a busy machine
	c.stop()
	frames := b.lagOf("web", "a", "in").MovedFor
	await(t, "the peer that is away is cut off", func() bool {
		for range 100 {
			n := (1 + l.rng.Int64N(4)) * 4096 // frames follow the delta: what is written within a second
			l.writeAt(l.rng.Int64N(heldRegion-n)&^511, n)
		}
		l.maintain()
		awaitLevel(a, b, "web")
		now := b.lagOf("web", "a", "in")
		if now.State != replicator.StateStreaming.String() || now.MovedFor <= frames || now.RPOSeconds == nil {
			t.Fatalf("beside a peer that is away b has %+v, %d bytes before", now, frames)
		}
		frames = now.MovedFor
		return holdFor(l, "c").State == control.HoldLost
	})
	if line := a.groupLine("web"); line.State != control.StateSynced || len(l.points().Gaps) != 0 {
		t.Errorf("the source is %s: %s; gaps %+v", line.State, line.Detail, l.points().Gaps)
	}

	c = w.run(cc)
	awaitLevel(a, c, "web")
	if moved := c.lagOf("web", "a", "in").MovedFor; moved == 0 || moved > heldDisk/2 {
		t.Errorf("%d bytes were taken for a delta of %d, the disk has %d", moved, heldRegion, heldDisk)
	}
	there := &load{running: c, rng: l.rng, size: l.size, writes: l.writes}
	there.restores("latest", l.head())
	there.restores(fmt.Sprintf("#%d", held), held)
	skipped := there.points().Skipped[early:] // by one delta to where frames go on, or another from there
	after, left := held, uint64(0)
	for _, x := range skipped {
		if x.After != after || x.To.Seq <= after || x.To.Seq > l.head() || x.Peer != "a" || x.Left == nil {
			t.Fatalf("skipped %+v, after #%d", skipped, held)
		}
		there.restores(fmt.Sprintf("#%d", x.To.Seq), x.To.Seq)
		after, left = x.To.Seq, left+*x.Left
	}
	if len(skipped) == 0 || left == 0 {
		t.Errorf("skipped %+v, of which %d points are left at the source", skipped, left)
	}
	if d, err := c.Group(ctx, "web"); err != nil || len(d.Skipped) != early+len(skipped) {
		t.Errorf("group show: skipped %+v, %v", d.Skipped, err)
	}
	l.writeAt(0, 4096)
	awaitLevel(a, b, "web")
	awaitLevel(a, c, "web")
	if d, err := b.Points(ctx, control.PointsQuery{Group: "web"}); err != nil || len(d.Skipped) != 0 {
		t.Errorf("b skipped %+v, %v", d.Skipped, err)
	}
	(&load{running: b, rng: l.rng, size: l.size, writes: l.writes}).restores("latest", l.head())
	all := len(there.points().Skipped)
	a.stop() // who does not answer leaves the rest of the list as it is
	if ps := there.points(); len(ps.Skipped) != all || ps.Skipped[0].Left != nil {
		t.Errorf("with the source away: %+v", ps.Skipped)
	}
}

// writeAt writes at a place.
func (l *load) writeAt(off, n int64) {
	l.t.Helper()
	x := written{off: off, n: n, seed: byte(l.rng.Uint32())}
	if err := l.device("web/root").WriteAt(context.Background(), x.data(), x.off, false); err != nil {
		l.t.Fatal(err)
	}
	x.seq = l.head()
	l.writes = append(l.writes, x)
}

// holdFor is what is kept for a peer.
func holdFor(l *load, peer string) control.Hold {
	l.t.Helper()
	d, err := l.Group(context.Background(), "web")
	if err != nil {
		l.t.Fatal(err)
	}
	for _, h := range d.Holds {
		if h.Peer == peer {
			return h
		}
	}
	return control.Hold{}
}
