package recovery

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"reflect"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/testbed/scale"
)

// replica is a journal with a volume, a mark and writes beyond it.
type replica struct {
	dir     string
	id      *journal.Identity
	vol     cbt.Volume
	content []byte // at the mark
	point   journal.Position
}

func newReplica(t *testing.T) *replica {
	r := &replica{dir: t.TempDir(), id: newIdentity(), vol: volume("data", 1<<20)}
	j := open(t, r.dir, r.id)
	defer j.close(t)
	w := begin(t, j, "source")
	synced(t, w, r.vol)
	rng := rand.New(rand.NewPCG(7, 7))
	r.content = make([]byte, r.vol.Size)
	for range 20 {
		off, p := rng.Int64N(200)*4096, fill(rng, 8192)
		write(t, w, r.vol, off, p)
		copy(r.content[off:], p)
	}
	p, err := w.Mark(testContext(t), journal.Mark{Name: "wanted"})
	must(t, err)
	r.point = p.Position
	for range 5 {
		write(t, w, r.vol, 0, fill(rng, 4096))
	}
	must(t, w.WaitDurable(testContext(t)))
	must(t, RememberReign(j, Reign{Role: Replica, Since: time.Unix(1, 0).UTC()}))
	return r
}

// killed is the directory as kill -9 of its process leaves it: what was written is
// there, what was to be done at the end is not.
func (r *replica) killed(t *testing.T) {
	var dir string
	waitUntil(t, "a copy of one moment", func() bool { // files of the index may go while they are copied
		dir = t.TempDir()
		err := os.CopyFS(dir, os.DirFS(r.dir))
		if !errors.Is(err, os.ErrNotExist) {
			must(t, err)
		}
		return err == nil
	})
	r.dir = dir
}

func (r *replica) order() Order {
	return Order{Group: "g", Site: "here", At: "name:wanted", Point: r.point, EpochAtLeast: 9, Operator: "op", Fence: FenceUnknown, Forced: true}
}

var errPlanted = errors.New("planted")

// failing dies at its n-th operation, before or after its effect.
type failing struct {
	*journal.Journal
	n     int // 0: it lives
	after bool
	asked int
	did   []string
}

func (f *failing) step(what string, do func() error) error {
	f.asked++
	if f.n > 0 && (f.asked > f.n || f.asked == f.n && !f.after) {
		return errPlanted
	}
	f.did = append(f.did, what)
	if err := do(); err != nil || f.asked != f.n {
		return err
	}
	return errPlanted
}

func (f *failing) Remember(key string, v any) error {
	return f.step("remember "+key, func() error { return f.Journal.Remember(key, v) })
}

func (f *failing) BeginEpoch(ctx context.Context, site string, parent journal.Position, atLeast uint64) (w *journal.Writer, err error) {
	err = f.step("begin epoch", func() error {
		waiting := time.NewTicker(time.Millisecond)
		defer waiting.Stop()
		for {
			if w, err = f.Journal.BeginEpoch(ctx, site, parent, atLeast); !errors.Is(err, journal.ErrClosed) {
				return err
			}
			<-waiting.C // Run has not begun
		}
	})
	return w, err
}

// promoted holds the end of a promotion to what an uninterrupted one gives.
func (r *replica) promoted(t *testing.T, j *running, out Promoted) error {
	t.Helper()
	ctx := testContext(t)
	got := make([]byte, r.vol.Size)
	if err := out.Writer.ReadHead(ctx, r.vol.ID, 0, got); err != nil {
		return err
	}
	if !bytes.Equal(got, r.content) {
		return errors.New("the new epoch does not begin with the point's image")
	}
	reign, ok, err := RecallReign(j)
	if err != nil || !ok {
		return fmt.Errorf("role: %v %w", ok, err)
	}
	want := Reign{
		Role: Uncommitted, Epoch: reign.Epoch, ID: reign.ID, Since: reign.Since, Unfenced: true, Fence: FenceUnknown, Forced: true, Operator: "op",
		From: r.point, Chain: reign.Chain, At: "name:wanted", Promotion: out.Promotion.ID,
	}
	if !reflect.DeepEqual(reign, want) || reign.Epoch < 9 || reign.Chain == (journal.Chain{}) {
		return fmt.Errorf("role %+v", reign)
	}
	p, ok, err := Newest(j)
	if err != nil || !ok || p.State != PromotionDone || p.Order != r.order() {
		return fmt.Errorf("promotion %+v, %w", p, err)
	}
	// Between the point and the head there is nothing but epoch records.
	l := j.Lineage()
	owner, ok := l.Owner(r.point.Seq)
	if !ok || owner.Epoch != r.point.Epoch || owner.Last != r.point.Seq {
		return fmt.Errorf("lineage %v does not fork at the point", l)
	}
	since, err := j.Since(ctx, r.point)
	if err != nil || len(since.Volumes) > 0 || since.Records > 3 {
		return fmt.Errorf("beyond the point: %+v, %w", since, err)
	}
	return nil
}

// Promise 13: interrupted at every step, before or after its effect, by an error or
// by kill -9, and run again: it ends as if it had not been.
func TestPromoteCrashMatrix(t *testing.T) {
	steps, cases := 0, 0
	for step := 0; step == 0 || step <= steps; step++ {
		for _, after := range []bool{false, true} {
			for _, kill := range []bool{false, true} {
				r := newReplica(t)
				j := open(t, r.dir, nil)
				f := &failing{Journal: j.Journal, n: step, after: after}
				out, err := Promote(testContext(t), f, r.order(), time.Unix(100, 0).UTC())
				if step == 0 {
					must(t, err)
					must(t, r.promoted(t, j, out))
					steps = len(f.did)
					j.close(t)
					break
				}
				if !errors.Is(err, errPlanted) {
					t.Fatalf("step %d: %v", step, err)
				}
				if kill {
					r.killed(t)
				}
				j.abandon()
				j = open(t, r.dir, nil)
				out, err = Promote(testContext(t), &failing{Journal: j.Journal}, r.order(), time.Unix(200, 0).UTC())
				if err == nil {
					err = r.promoted(t, j, out)
				}
				if err != nil {
					t.Errorf("step %d, after %v, kill %v (did %v): %v", step, after, kill, f.did, err)
				}
				j.abandon()
				cases++
			}
		}
	}
	if steps != 4 {
		t.Errorf("a promotion has %d steps, want 4", steps)
	}
	scale.Counted(t, "recovery-promote-crashes", cases, 16)
}

// What was written in the new epoch before an interrupted run is finished stays.
func TestPromoteResumedKeepsWrites(t *testing.T) {
	r := newReplica(t)
	j := open(t, r.dir, nil)
	f := &failing{Journal: j.Journal, n: 4} // before the outcome
	if _, err := Promote(testContext(t), f, r.order(), time.Unix(100, 0)); !errors.Is(err, errPlanted) {
		t.Fatal(err)
	}
	w := begin(t, j, "here") // a site that does not look for an interrupted promotion
	data := bytes.Repeat([]byte{0xab}, 4096)
	write(t, w, r.vol, 4096, data)
	out, err := Promote(testContext(t), j, r.order(), time.Unix(200, 0))
	must(t, err)
	if !out.Resumed {
		t.Error("it was not resumed")
	}
	got := make([]byte, len(data))
	must(t, out.Writer.ReadHead(testContext(t), r.vol.ID, 4096, got))
	if !bytes.Equal(got, data) {
		t.Error("the write is gone")
	}
	j.close(t)
}

func TestPromoteRefuses(t *testing.T) {
	r := newReplica(t)
	j := open(t, r.dir, nil)
	defer j.close(t)
	ctx := testContext(t)
	o := r.order()
	o.Forced = false
	if _, err := Promote(ctx, j, o, time.Now()); !errors.Is(err, ErrUnfenced) {
		t.Errorf("unfenced and not forced: %v", err)
	}
	if _, ok, _ := Newest(j); ok {
		t.Error("a refused promotion left an intent")
	}
	f := &failing{Journal: j.Journal, n: 2}
	if _, err := Promote(ctx, f, r.order(), time.Now()); !errors.Is(err, errPlanted) {
		t.Fatal(err)
	}
	o = r.order()
	o.Point.Seq--
	if _, err := Promote(ctx, j, o, time.Now()); !errors.Is(err, ErrOtherPromotion) {
		t.Errorf("another point while one is under way: %v", err)
	}
	must(t, Abandon(j, time.Now()))
	out, err := Promote(ctx, j, o, time.Now())
	must(t, err)
	if out.Reign.From != o.Point {
		t.Errorf("promoted from %v", out.Reign.From)
	}
	o.Fence, o.Forced = FenceProven, false
	if out, err = Promote(ctx, j, o, time.Now()); err != nil || out.Reign.Unfenced {
		t.Errorf("with a proven fence: %+v, %v", out.Reign, err)
	}
}
