package site

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
	"github.com/novacron/afterimage/testbed/scale"
)

// What a peer that is away lacks is kept for it within its hold, whatever the ladder
// says; beyond it the ladder rules, and the history here has no gap for it. When it is
// back a delta brings it on: what it held is there, what lay between is not.
func TestPeerIsHeldForThenBroughtOn(t *testing.T) {
	scale.Lasting(t, "it writes until a hold has ended")
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	w, ctx := newWorld(t), context.Background()
	ca, cb := w.pair("", "")
	g := &ca.Groups[0]
	g.Volumes = g.Volumes[:1]
	g.Volumes[0].Size = 2 << 20
	g.Quota, g.Warn = 256<<20, config.DefaultWarn()
	g.History = []config.Rung{{Every: config.EveryWrite, For: config.For(time.Second)}, {Every: config.Every(time.Second), For: config.For(time.Hour)}}
	g.Maintenance = &config.Maintenance{Every: config.Duration(time.Hour), Rate: 1 << 30}
	ca.Peers[0].Hold = &config.Hold{For: config.Duration(time.Hour)}
	a, b := w.runPair(ca, cb)
	a.awaitState("web", control.StateSynced)
	l := &load{running: a, rng: rand.New(rand.NewPCG(seed, 3)), size: 2 << 20}
	l.run(200*time.Millisecond, 2*time.Millisecond)
	awaitLevel(a, b, "web")

	hold := func() control.Hold {
		t.Helper()
		d, err := l.Group(ctx, "web")
		if err != nil || len(d.Holds) != 1 {
			t.Fatalf("holds %+v, %v", d.Holds, err)
		}
		return d.Holds[0]
	}
	b.stop()
	l.run(3*time.Second, 2*time.Millisecond)
	l.maintain()
	if h := hold(); h.State != control.HoldKept || h.Behind == 0 || h.Cursor == "" {
		t.Errorf("within its hold the peer is %+v", h)
	}
	b = w.run(cb)
	awaitLevel(l.running, b, "web") // nothing that it lacks was thinned
	level := func() {
		t.Helper()
		await(t, "the site that sends knows that the peer is level", func() bool {
			l.maintain()
			return hold().State == control.HoldLevel
		})
	}
	level()

	held := l.head()
	b.stop()
	l.stop()
	ca.Peers[0].Hold = &config.Hold{For: config.Duration(time.Hour), Bytes: 1 << 20}
	l.running = w.run(ca)
	l.awaitState("web", control.StateSynced)
	await(t, "the peer is cut off", func() bool {
		l.run(500*time.Millisecond, 2*time.Millisecond)
		l.maintain()
		return hold().State == control.HoldLost
	})
	line := l.groupLine("web")
	if line.State != control.StateSynced || len(l.points().Gaps) != 0 {
		t.Errorf("for a peer that is away the group is %s: %s; gaps %+v", line.State, line.Detail, l.points().Gaps)
	}
	if len(line.Notices) == 0 || line.Notices[0].Level != control.Alarm || line.Notices[0].Code != string(fault.HistoryThinned) {
		t.Errorf("notices %+v", line.Notices)
	}
	b = w.run(cb)
	awaitLevel(l.running, b, "web")
	there := &load{running: b, rng: l.rng, size: l.size, writes: l.writes}
	there.restores(fmt.Sprintf("#%d", held), held)
	there.restores("latest", l.head())
	if _, err := b.Points(ctx, control.PointsQuery{Group: "web", At: fmt.Sprintf("#%d", held+1)}); err == nil {
		t.Errorf("record %d, which the peer never had, is a point there", held+1)
	}
	l.run(100*time.Millisecond, 2*time.Millisecond)
	awaitLevel(l.running, b, "web")
	level()

	b.stop() // and comes as one that never had anything
	if err := os.RemoveAll(b.groupDir(cb.Groups[0])); err != nil {
		t.Fatal(err)
	}
	b = w.run(cb)
	awaitLevel(l.running, b, "web")
	(&load{running: b, rng: l.rng, size: l.size, writes: l.writes}).restores("latest", l.head())
}
