package site

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/site/control"
)

func TestPlanAfterARestartKnowsTheSourcesHead(t *testing.T) {
	t.Parallel()
	w, ctx := newWorld(t), context.Background()
	ca, cb := w.pair("", "")
	a, b := w.runPair(ca, cb)
	a.awaitState("web", control.StateSynced)
	a.write("web/root", 1, 0, 4096)
	awaitLevel(a, b, "web")
	l, release := b.lifeOf()
	await(t, "the head is remembered", func() bool {
		h := l.recalled("a")
		return h != nil && h.Head.Seq == l.j.Head().Seq
	})
	release()
	a.stop()
	b.stop()

	q := control.FailoverRequest{Group: "web", At: "latest"}
	b = w.run(cb)
	b.awaitState("web", control.StateWaiting)
	plan, err := b.PlanFailover(ctx, q)
	if err != nil {
		t.Fatal(err)
	}
	if !plan.Loss.Known || plan.Loss.Writes != 0 || plan.Loss.Unheard <= 0 || plan.Peers[0].Seq == 0 {
		t.Errorf("loss %+v, peers %+v", plan.Loss, plan.Peers)
	}
	if text := strings.Join(plan.Warnings, "; "); strings.Contains(text, "was ever heard") || !strings.Contains(text, "since it was last heard") {
		t.Errorf("warnings %q", text)
	}

	// The source was ahead when it was last heard.
	l, release = b.lifeOf()
	h := l.recalled("a")
	h.Head.Seq, h.Bytes, h.Heard = l.j.Head().Seq+7, 7<<12, time.Now().Add(-time.Minute)
	if err := l.j.Remember(headKey("a"), h); err != nil {
		t.Fatal(err)
	}
	release()
	b.stop()
	b = w.run(cb)
	b.awaitState("web", control.StateWaiting)
	if plan, err = b.PlanFailover(ctx, q); err != nil {
		t.Fatal(err)
	}
	if n := plan.Loss.NeverArrived; n.Records != 7 || n.Bytes != 7<<12 || plan.Loss.Unheard < 60 {
		t.Errorf("never arrived %+v, unheard %g s", n, plan.Loss.Unheard)
	}
}

func TestNewsOfAHead(t *testing.T) {
	at := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	e := journal.EpochID(cbt.NewID())
	head := func(seq journal.Seq, after time.Duration) recovery.SourceHead {
		return recovery.SourceHead{Head: journal.Position{Epoch: e, Seq: seq}, Heard: at.Add(after)}
	}
	was := head(5, 0)
	for _, c := range []struct {
		name string
		was  *recovery.SourceHead
		now  recovery.SourceHead
		want bool
	}{
		{name: "first", now: was, want: true},
		{name: "moved", was: &was, now: head(6, time.Second), want: true},
		{name: "stands still", was: &was, now: head(5, noteStill-1)},
		{name: "stands still for long", was: &was, now: head(5, noteStill), want: true},
	} {
		if got := news(c.was, c.now); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}
