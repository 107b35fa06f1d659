package site

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// three is a group at a, its primary, and at b and c, which know each other and are sent
// nothing by each other.
type three struct {
	*seats
	a, b, c *config.Config
}

func newThree(t *testing.T) *three {
	t.Helper()
	w := newWorld(t).seats("a", "b", "c")
	x := &three{seats: w}
	x.b = w.at("b", "- {name: web, peers: [a, c]}\n")
	x.c = w.at("c", "- {name: web, peers: [a, b]}\n")
	x.a = w.at("a", "- name: web\n  role: primary\n  peers: [b, c]\n"+oneDisk)
	return x
}

// stamped is one write for each number from..to: the sector i holds i.
func stamped(r *running, from, to int) {
	r.t.Helper()
	for i := from; i <= to; i++ {
		r.write("web/root", byte(i), int64(i)*512, 512)
	}
}

// stamps is the highest number of a prefix of stamps that the disk holds, and whether
// any lies behind it.
func stamps(r *running) (last int, hole bool) {
	r.t.Helper()
	p := make([]byte, 256*512)
	if err := r.device("web/root").ReadAt(context.Background(), p, 0); err != nil {
		r.t.Fatal(err)
	}
	for i := 1; i < 256; i++ {
		switch there := p[i*512] == byte(i); {
		case there && last == i-1:
			last = i
		case there:
			hole = true
		}
	}
	return last, hole
}

// patiently waits long for peers: nobody in the test is slow for good.
func (x *three) patiently(c *config.Config) *running {
	x.t.Helper()
	return x.runWith(c, Options{HeadPatience: 30 * time.Second})
}

// apart brings c to stamp 20 while b stays at 10, and ends a. b's sessions with a are over.
func (x *three) apart() (b, c *running) {
	x.t.Helper()
	c, b = x.run(x.c), x.run(x.b)
	a := x.run(x.a)
	a.awaitState("web", control.StateSynced)
	stamped(a, 1, 10)
	awaitLevel(a, b, "web")
	awaitLevel(a, c, "web")
	b.stop()
	stamped(a, 11, 20)
	awaitLevel(a, c, "web")
	a.stop()
	x.b.Peers[0].Address, x.c.Peers[0].Address = "", "" // a is dead: nobody waits for it
	return x.patiently(x.b), c
}

// Every reachable peer is asked for its head first, and the furthest tail fetched: what
// arrived at a third site is not lost.
func TestFurthestTailIsFetchedFirst(t *testing.T) {
	t.Parallel()
	x, ctx := newThree(t), context.Background()
	b, c := x.apart()
	q := control.FailoverRequest{Group: "web", At: "latest", Force: true, Operator: "op"}
	for code, odd := range map[fault.Code]control.FailoverRequest{
		fault.PeerUnknown: {Group: "web", At: "latest", Tail: "nobody"},
		fault.Usage:       {Group: "web", At: "latest", Policy: "banana"},
	} {
		if _, err := b.PlanFailover(ctx, odd); !fault.Is(err, code) {
			t.Errorf("planned with %+v: %v", odd, err)
		}
	}
	plan, err := b.PlanFailover(ctx, q)
	if err != nil {
		t.Fatal(err)
	}
	at := c.groupLine("web").Seq
	switch {
	case plan.Tail == nil || plan.Tail.Peer != "c" || plan.Tail.Records != at-plan.Point.Seq || plan.Tail.Seq != at || plan.Tail.Bytes != 10*512:
		t.Fatalf("tail %+v, point %+v, c is at %d", plan.Tail, plan.Point, at)
	case plan.Loss.Writes != 0 || !plan.Loss.Known || plan.Loss.NeverArrived.Bytes != 0:
		t.Errorf("loss once the tail is here: %+v", plan.Loss)
	case len(plan.Peers) != 2 || plan.Peers[0].Reachable || !plan.Peers[1].Reachable || plan.Peers[1].Relation != "peer ahead" || plan.Peers[1].Seq != at:
		t.Errorf("peers %+v", plan.Peers)
	case !strings.HasPrefix(plan.Steps[0], "tail: take the"):
		t.Errorf("steps %q", plan.Steps)
	}
	if got := b.groupLine("web").Seq; got != plan.Point.Seq {
		t.Errorf("a plan fetched records: %d, was %d", got, plan.Point.Seq)
	}
	q.Expect = plan.Digest
	done, err := b.Failover(ctx, q, func(control.Progress) {})
	if err != nil {
		t.Fatal(err)
	}
	if last, hole := stamps(b); last != 20 || hole {
		t.Errorf("the disk holds stamps up to %d, a hole: %v", last, hole)
	}
	if done.Point.Seq != at || done.Loss.Writes != 0 || done.Times["tail"] == 0 || done.Tail == nil {
		t.Errorf("done %+v", done.Plan)
	}
	await(t, "c follows b", func() bool {
		return c.lagOf("web", "b", "in").State == "streaming" && b.groupLine("web").State == control.StateSynced
	})
	if c.groupLine("web").State == control.StateHalted {
		t.Error("halted")
	}
}

// The peer that held more is gone when the failover is carried out: that is said, nothing
// is promoted unasked, and the loss that is told then is what the stamps say.
func TestTailThatDoesNotArriveIsCounted(t *testing.T) {
	t.Parallel()
	x, ctx := newThree(t), context.Background()
	b, c := x.apart()
	q := control.FailoverRequest{Group: "web", At: "latest", Force: true}
	plan, err := b.PlanFailover(ctx, q)
	if err != nil || plan.Tail == nil {
		t.Fatalf("%+v, %v", plan, err)
	}
	q.Expect = plan.Digest
	c.stop()
	await(t, "b has lost c", func() bool { return b.peers.get("c").connections == 0 })
	if _, err := b.Failover(ctx, q, func(control.Progress) {}); !fault.Is(err, fault.PlanStale) {
		t.Fatalf("the plan with c's tail, without c: %v", err)
	}
	b.stop() // what c said is remembered
	b = x.run(x.b)
	b.awaitState("web", control.StateWaiting)
	q.Expect = ""
	if plan, err = b.PlanFailover(ctx, q); err != nil || plan.Tail != nil {
		t.Fatalf("%+v, %v", plan.Tail, err)
	}
	if n := plan.Loss.NeverArrived; n.Records != 10 || n.Bytes != 10*512 || plan.Loss.Writes != 10 || plan.Peers[1].Reachable {
		t.Errorf("never arrived %+v, loss %+v, peers %+v", n, plan.Loss, plan.Peers)
	}
	if s := strings.Join(plan.Warnings, "; "); !strings.Contains(s, "c is not reachable: it may hold more") {
		t.Errorf("warnings %q", s)
	}
	done, err := b.Failover(ctx, q, func(control.Progress) {})
	if err != nil {
		t.Fatal(err)
	}
	last, hole := stamps(b)
	if hole || uint64(20-last) != done.Loss.Writes || done.Loss.Writes != 10 {
		t.Errorf("stamps up to %d of 20, a hole: %v; told loss %+v", last, hole, done.Loss)
	}
}

// A peer that cannot send its tail is said, with what to do; a person may leave it.
func TestTailThatCannotBeSent(t *testing.T) {
	t.Parallel()
	x, ctx := newThree(t), context.Background()
	x.c.Peers[1].Address = "" // c cannot call b
	b, c := x.apart()
	q := control.FailoverRequest{Group: "web", At: "latest", Force: true}
	_, err := b.Failover(ctx, q, func(control.Progress) {})
	f := fault.Of(err)
	if f == nil || f.Code != fault.TailTrouble || !strings.Contains(f.Why, "c knows no address of b") || !strings.Contains(f.Advice(), "--without-tail") {
		t.Fatalf("%v", err)
	}
	if g := b.groupLine("web"); g.Role != "replica" {
		t.Fatalf("promoted all the same: %s", g.Role)
	}
	q.WithoutTail = true
	done, err := b.Failover(ctx, q, func(control.Progress) {})
	if err != nil {
		t.Fatal(err)
	}
	if last, _ := stamps(b); last != 10 || done.Loss.Writes != 10 || !strings.Contains(strings.Join(done.Warnings, ";"), "not fetched") {
		t.Errorf("stamps up to %d, loss %+v, warnings %q", last, done.Loss, done.Warnings)
	}
	if last, _ := c.groupLine("web").Seq, 0; last < done.Point.Seq {
		t.Error("c has lost its tail")
	}
}
