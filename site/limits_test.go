package site

import (
	"context"
	"testing"

	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// A limit that is set at run time is shown, bounded in time, and given back.
func TestLimitsAreSetAndShown(t *testing.T) {
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
