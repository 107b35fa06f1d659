package site

import (
	"context"
	"testing"
	"time"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/replicator"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// A limit that is set at run time is shown, bounded in time, and given back.
func TestLimitsAreSetAndShown(t *testing.T) {
	t.Parallel()
	w, ctx := newWorld(t), context.Background()
	ca, cb := w.pair("", "")
	ca.Peers[0].BWLimit, ca.Peers[0].TZ = "10M", "UTC"
	a, b := w.runPair(ca, cb)
	a.awaitState("web", control.StateSynced)
	awaitLevel(a, b, "web") // it is being sent
	shown := func() control.Limited {
		t.Helper()
		s, err := a.Status(ctx)
		if err != nil || len(s.Peers) != 1 || s.Peers[0].Limit != s.Peers[0].Limited.BytesPerSecond {
			t.Fatalf("peers %+v, %v", s.Peers, err)
		}
		return s.Peers[0].Limited
	}
	if l := shown(); l.BytesPerSecond != 10<<20 || l.Set || l.Schedule != "10M" {
		t.Errorf("by the configuration: %+v", l)
	}
	if l, err := a.Limit(ctx, control.LimitRequest{Peer: "b", BytesPerSecond: 5 << 20, ForSeconds: 7200}); err != nil || !l.Set || l.Until.IsZero() || l != shown() {
		t.Errorf("set: %+v, %+v, %v", l, shown(), err)
	}
	if l, err := a.Limit(ctx, control.LimitRequest{Peer: "b", Schedule: true}); err != nil || l.Set || l.BytesPerSecond != 10<<20 {
		t.Errorf("given back: %+v, %v", l, err)
	}
	if l, err := a.Limit(ctx, control.LimitRequest{Group: "web", BytesPerSecond: 1 << 20}); err != nil || l.Group != "web" || l.BytesPerSecond != 1<<20 {
		t.Errorf("of a group: %+v, %v", l, err)
	}
	for _, q := range []control.LimitRequest{{Peer: "x"}, {Group: "x"}, {Peer: "b", BytesPerSecond: -1}} {
		if _, err := a.Limit(ctx, q); !fault.Is(err, fault.PeerUnknown) && !fault.Is(err, fault.GroupUnknown) && !fault.Is(err, fault.ConfigValue) {
			t.Errorf("%+v: %v", q, err)
		}
	}
}

// What a person set outlives the daemon, no longer than it was set for; what was given
// back to the timetable stays there.
func TestLimitsOutliveTheDaemon(t *testing.T) {
	t.Parallel()
	w, ctx := newWorld(t), context.Background()
	ca, cb := w.pair("", "")
	ca.Peers[0].BWLimit, ca.Peers[0].TZ = "10M", "UTC"
	a, b := w.runPair(ca, cb)
	a.awaitState("web", control.StateSynced)
	awaitLevel(a, b, "web")
	of := func(a *running, group string) (l control.Limited) {
		t.Helper()
		var r replicator.Allowed
		await(t, "the group is sent", func() bool {
			id := journal.Identity{}
			if group != "" {
				id = a.groups[0].id
			}
			var err error
			r, err = a.repl.Allowed("b", id)
			return err == nil
		})
		return limitedOf("b", group, r)
	}
	for _, q := range []control.LimitRequest{{Peer: "b", BytesPerSecond: 5 << 20, ForSeconds: 7200}, {Group: "web", BytesPerSecond: 3 << 20}} {
		if _, err := a.Limit(ctx, q); err != nil {
			t.Fatal(err)
		}
	}
	until := of(a, "").Until
	a.stop()
	a = w.run(ca)
	if l := of(a, ""); l.BytesPerSecond != 5<<20 || !l.Set || !l.Until.Equal(until) {
		t.Errorf("after a restart: %+v, it was set until %s", l, until)
	}
	if l := of(a, "web"); l.BytesPerSecond != 3<<20 || !l.Set || !l.Until.IsZero() {
		t.Errorf("of the group, after a restart: %+v", l)
	}
	if _, err := a.Limit(ctx, control.LimitRequest{Group: "web", Schedule: true}); err != nil {
		t.Fatal(err)
	}
	a.stop()
	a = w.runWith(ca, Options{Now: func() time.Time { return time.Now().Add(3 * time.Hour) }})
	if l := of(a, ""); l.BytesPerSecond != 10<<20 || l.Set {
		t.Errorf("three hours later: %+v", l)
	}
	if l := of(a, "web"); l.Set {
		t.Errorf("of the group, given back: %+v", l)
	}
}
