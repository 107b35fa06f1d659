package site

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/qemu"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/site/control"
)

// spy notes what qemu.Forget writes, and where.
type spy struct{ key, value string }

func (s *spy) Remember(key string, v any) error {
	b, err := json.Marshal(v)
	s.key, s.value = key, string(b)
	return err
}

func (s *spy) Recall(string, any) (bool, error) { return false, nil }

// bitmaps are the names of a volume's bitmaps in the site log of l.
type bitmaps struct {
	t *testing.T
	v cbt.VolumeID
	spy
}

func bitmapsOf(t *testing.T, g string, volume string) *bitmaps {
	t.Helper()
	b := &bitmaps{t: t, v: cbt.VolumeID(named("volume", "default", g, volume))}
	if err := qemu.Forget(&b.spy, b.v); err != nil {
		t.Fatal(err)
	}
	return b
}

// remember puts names there as a tracker of an earlier reign would have.
func (b *bitmaps) remember(l *life) {
	b.t.Helper()
	if err := l.j.Remember(b.key, map[string]any{"node": "disk0", "size": 1 << 20, "bitmaps": []string{"ai-1", "ai-2"}}); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bitmaps) forgotten(l *life) bool {
	b.t.Helper()
	var raw json.RawMessage
	ok, err := l.j.Recall(b.key, &raw)
	if err != nil {
		b.t.Fatal(err)
	}
	return ok && string(raw) == b.value
}

// lifeOf borrows the open journal of a site's first group until the test's end or
// the returned function.
func (r *running) lifeOf() (*life, func()) {
	r.t.Helper()
	var l *life
	var release func()
	await(r.t, "a journal of site "+r.cfg.Site+" is open", func() (ok bool) {
		var err error
		l, release, err = r.groups[0].use()
		return err == nil
	})
	return l, release
}

func TestPromotionForgetsBitmapsOfEveryVolume(t *testing.T) {
	t.Parallel()
	w, ctx := newWorld(t), context.Background()
	ca, cb := w.pair("", "")
	a, b := w.runPair(ca, cb)
	a.awaitState("web", control.StateSynced)
	a.write("web/root", 1, 0, 4096)
	awaitLevel(a, b, "web")
	a.stop()
	l, release := b.lifeOf()
	defer release()
	root, data := bitmapsOf(t, "web", "root"), bitmapsOf(t, "web", "data")
	root.remember(l)
	data.remember(l)

	// They are forgotten before there is an epoch: also when none comes of it.
	nowhere := journal.Position{Epoch: journal.EpochID(cbt.NewID()), Seq: 1}
	if _, err := l.promoting().BeginEpoch(ctx, "b", nowhere, 9); err == nil {
		t.Fatal("an epoch began at a position that nobody knows")
	}
	if !root.forgotten(l) || !data.forgotten(l) {
		t.Error("bitmaps are remembered when the epoch begins")
	}

	root.remember(l)
	data.remember(l)
	if _, err := b.Failover(ctx, control.FailoverRequest{Group: "web", At: "latest", Force: true}, func(control.Progress) {}); err != nil {
		t.Fatal(err)
	}
	if !root.forgotten(l) || !data.forgotten(l) {
		t.Error("bitmaps are remembered after a failover")
	}
}

func TestFinishedPromotionForgetsBitmaps(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ca, cb := w.pair("", "")
	a, b := w.runPair(ca, cb)
	a.awaitState("web", control.StateSynced)
	awaitLevel(a, b, "web")
	a.stop()
	l, release := b.lifeOf()
	plan, err := l.plan(context.Background(), control.FailoverRequest{Group: "web", At: "latest"})
	if err != nil {
		t.Fatal(err)
	}
	order, err := plan.Order("tester", true)
	if err != nil {
		t.Fatal(err)
	}
	root := bitmapsOf(t, "web", "root")
	root.remember(l)
	err = l.j.Remember(recovery.PromotionKey, recovery.Promotion{ID: cbt.NewID(), State: recovery.PromotionBegun, Order: order, Began: time.Now(), Known: plan.NewEpochNumber - 1})
	if err != nil {
		t.Fatal(err)
	}
	release()
	b.stop()
	b = w.run(cb)
	b.awaitState("web", control.StateSynced)
	l, release = b.lifeOf()
	defer release()
	if !root.forgotten(l) {
		t.Error("bitmaps are remembered after an interrupted promotion was finished")
	}
}

// A reign that goes on at the head keeps them: a restart must cost a delta only.
func TestReignAtTheHeadKeepsBitmaps(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.configure("a", twoGroups)
	s := w.run(c)
	s.awaitState("web", control.StateSynced)
	l, release := s.lifeOf()
	root := bitmapsOf(t, "web", "root")
	root.remember(l)
	release()
	s.stop()
	s = w.run(c)
	s.awaitState("web", control.StateSynced)
	l, release = s.lifeOf()
	defer release()
	if root.forgotten(l) {
		t.Error("a restart forgot the bitmaps")
	}
}
