package site

import (
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/testbed/scale"
)

// halves is what a crash leaves of two sites that were level: their journals, closed.
type halves struct {
	a, b stopped
	head journal.Cursor
	id   cbt.ID
	now  time.Time
}

func (h *halves) ceded(t *testing.T) {
	r := h.draining(t)
	r, err := r.Cede(h.head, 1, h.now)
	mustRemember(t, h.a, r, err)
}

func (h *halves) draining(t *testing.T) recovery.Reign {
	r, _, err := recovery.RecallReign(h.a)
	if err != nil {
		t.Fatal(err)
	}
	r, err = r.Drain(recovery.Handover{ID: h.id, To: "b", Operator: "tester", Since: h.now})
	mustRemember(t, h.a, r, err)
	return r
}

func mustRemember(t *testing.T, at stopped, r recovery.Reign, err error) {
	t.Helper()
	if err == nil {
		err = recovery.RememberReign(at, r)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (h *halves) promotion(state recovery.PromotionState) recovery.Promotion {
	o := recovery.Order{Group: "default/web", Site: "b", At: "latest", Point: h.head.Position, EpochAtLeast: 99, Operator: "tester", Fence: recovery.FenceProven, Handover: h.id, Giver: "a"}
	return recovery.Promotion{ID: cbt.NewID(), State: state, Order: o, Began: h.now}
}

// Promise 11, for a handover over two real sites: whatever was durable at either when
// both died, one of them reigns afterwards and the other follows, with every write.
func TestHandoverIsFinishedOrTakenBackAfterACrash(t *testing.T) {
	t.Parallel()
	n := 0
	for _, x := range []struct {
		name    string
		leave   func(t *testing.T, h *halves)
		primary string
	}{
		{"it drained", func(t *testing.T, h *halves) { h.draining(t) }, "a"},
		{"it was ceded", func(t *testing.T, h *halves) { h.ceded(t) }, "b"},
		{"it was ceded and revoked", func(t *testing.T, h *halves) {
			h.ceded(t)
			if err := h.b.Remember(revokedKey, []cbt.ID{h.id}); err != nil {
				t.Fatal(err)
			}
		}, "a"},
		{"it was ceded, and the peer meant to take it", func(t *testing.T, h *halves) {
			h.ceded(t)
			if err := h.b.Remember(recovery.PromotionKey, h.promotion(recovery.PromotionBegun)); err != nil {
				t.Fatal(err)
			}
		}, "b"},
		{"the peer took it, and nobody here was told", func(t *testing.T, h *halves) {
			h.ceded(t)
			r := recovery.Reign{Role: recovery.Primary, Since: h.now, From: h.head.Position, Took: []cbt.ID{h.id}}
			mustRemember(t, h.b, r, nil)
		}, "b"},
		{"it was ceded from another record than the peer holds", func(t *testing.T, h *halves) {
			h.head.Seq--
			h.ceded(t)
		}, "a"},
		{"the trunk was to be forked anew", func(t *testing.T, h *halves) {
			r, _, err := recovery.RecallReign(h.a)
			if err == nil {
				r, err = r.Renew(recovery.Anew{At: journal.Position{Epoch: h.head.Epoch, Seq: h.head.Seq - 1}, Carry: true, AtLeast: 50, Since: h.now})
			}
			mustRemember(t, h.a, r, err)
		}, "a"},
	} {
		t.Run(x.name, func(t *testing.T) {
			w := newWorld(t)
			a, b := levelPair(w)
			a.stop()
			b.stop()
			h := &halves{a: w.offline(a.cfg), b: w.offline(b.cfg), id: cbt.NewID(), now: time.Now()}
			h.head = h.a.Head().Durable
			if h.b.Head().Durable.Position != h.head.Position || h.a.Head().Position != h.head.Position {
				t.Fatalf("not level: %s and %s", h.head.Position, h.b.Head().Durable.Position)
			}
			x.leave(t, h)
			h.a.close()
			h.b.close()
			b, a = w.run(b.cfg), w.run(a.cfg)
			primary, other := a, b
			if x.primary == "b" {
				primary, other = b, a
			}
			primary.awaitRole("web", recovery.Primary, control.StateSynced)
			other.awaitRole("web", recovery.Replica, control.StateReceiving)
			primary.reads("web/root", 0x11, 0, 64<<10)
			primary.write("web/root", 0x66, 0, 512)
			awaitLevel(primary, other, "web")
			other.showsAt("latest", 0x66)
			n++
		})
	}
	scale.Counted(t, "site-handover-crashes", n, 7)
}
