package site

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// quietly hears of progress and says nothing.
func quietly(control.Progress) {}

func (r *running) awaitRole(name string, role recovery.Role, state string) {
	r.t.Helper()
	await(r.t, name+" at "+r.cfg.Site+" is "+string(role)+" and "+state, func() bool {
		g := r.groupLine(name)
		return g.Role == string(role) && g.State == state
	})
}

// levelPair is two sites, b level with what a holds: 0x11 in the first 64 KiB of root.
func levelPair(w *world) (a, b *running) {
	w.t.Helper()
	ca, cb := w.pair("", "")
	a, b = w.runPair(ca, cb)
	a.awaitState("web", control.StateSynced)
	b.awaitState("web", control.StateReceiving)
	a.write("web/root", 0x11, 0, 64<<10)
	awaitLevel(a, b, "web")
	return a, b
}

// A planned failover there and back: nothing is lost, the old primary follows at once,
// and its own image is brought to what was written meanwhile.
func TestPlannedFailoverThereAndBack(t *testing.T) {
	t.Parallel()
	w, ctx := newWorld(t), context.Background()
	a, b := levelPair(w)
	q := control.HandoverRequest{Group: "web", Operator: "tester"}
	plan, err := a.PlanHandover(ctx, q)
	if err != nil || plan.From != "a" || plan.To != "b" || len(plan.Refused) > 0 {
		t.Fatalf("plan %+v, %v", plan, err)
	}
	q.Expect = "other"
	if _, err := a.Handover(ctx, q, quietly); !fault.Is(err, fault.PlanStale) {
		t.Errorf("another plan than the one shown: %v", err)
	}
	q.Expect = plan.Digest
	done, err := a.Handover(ctx, q, quietly)
	if err != nil {
		t.Fatal(err)
	}
	b.awaitRole("web", recovery.Primary, control.StateSynced)
	a.awaitRole("web", recovery.Replica, control.StateReceiving)
	if done.Last.Seq != a.seqBefore(done.Epoch) || done.Chain == "" {
		t.Errorf("handed over at %+v, chain %q", done.Last, done.Chain)
	}
	b.reads("web/root", 0x11, 0, 64<<10)
	b.write("web/root", 0x22, 4096, 8192)
	b.write("web/data", 0x33, 1<<20, 4096)
	awaitLevel(b, a, "web")

	// Home again, asked for at the site that is to have it.
	back, err := a.Handover(ctx, control.HandoverRequest{Group: "web", Operator: "tester"}, quietly)
	if err != nil {
		t.Fatal(err)
	}
	if back.From != "b" || back.To != "a" || back.Epoch <= done.Epoch {
		t.Errorf("handed back: %+v", back)
	}
	a.awaitRole("web", recovery.Primary, control.StateSynced)
	b.awaitRole("web", recovery.Replica, control.StateReceiving)
	a.reads("web/root", 0x11, 0, 4096)
	a.reads("web/root", 0x22, 4096, 8192)
	a.reads("web/data", 0x33, 1<<20, 4096)
	a.write("web/root", 0x44, 0, 512)
	awaitLevel(a, b, "web")
	for _, v := range detailOf(a, "web").Volumes {
		if v.Kind != kindEmbedded {
			t.Errorf("volume %s is %s after the way home, want its image", v.Name, v.Kind)
		}
	}
}

// seqBefore is the last record before an epoch, once that is known here.
func (r *running) seqBefore(epoch uint64) (last uint64) {
	r.t.Helper()
	await(r.t, fmt.Sprintf("epoch %d is at %s", epoch, r.cfg.Site), func() bool {
		for _, b := range detailOf(r, "web").Branches {
			if b.Epoch == epoch {
				last = b.First - 1
				return true
			}
		}
		return false
	})
	return last
}

func detailOf(r *running, name string) control.GroupDetail {
	r.t.Helper()
	d, err := r.Group(context.Background(), name)
	if err != nil {
		r.t.Fatal(err)
	}
	return d
}

// What cannot be planned is refused, and leaves the primary as it was.
func TestPlannedFailoverIsRefused(t *testing.T) {
	t.Parallel()
	w, ctx := newWorld(t), context.Background()
	a, b := levelPair(w)
	if _, err := a.Handover(ctx, control.HandoverRequest{Group: "web", To: "nobody"}, quietly); !fault.Is(err, fault.PeerUnknown) {
		t.Errorf("to nobody: %v", err)
	}
	b.stop()
	await(t, "the peer is known to be away", func() bool {
		p, err := a.PlanHandover(ctx, control.HandoverRequest{Group: "web"})
		return err == nil && len(p.Refused) > 0
	})
	if _, err := a.Handover(ctx, control.HandoverRequest{Group: "web"}, quietly); !fault.Is(err, fault.HandoverTrouble) {
		t.Errorf("to a peer that is away: %v", err)
	}
	a.write("web/root", 0x55, 0, 512)
	a.reads("web/root", 0x55, 0, 512)
	if g := a.groupLine("web"); g.Role != string(recovery.Primary) {
		t.Errorf("role %s", g.Role)
	}
}

func decide(t *testing.T, r *running, verb, keep string) control.Decision {
	t.Helper()
	d, err := r.Decide(context.Background(), control.DecisionRequest{Verb: verb, Group: "web", Keep: keep, Operator: "tester"}, quietly)
	if err != nil {
		t.Fatalf("%s at %s: %v", verb, r.cfg.Site, err)
	}
	return d
}

func failOver(t *testing.T, r *running, q control.FailoverRequest) control.FailedOver {
	t.Helper()
	q.Group, q.Force = "web", true
	if q.At == "" {
		q.At = "latest"
	}
	done, err := r.Failover(context.Background(), q, quietly)
	if err != nil {
		t.Fatal(err)
	}
	return done
}

// A failover is rolled back: the old primary goes on with what it has, the new one
// follows it, and what was written meanwhile stays readable as a branch.
func TestFailoverIsRolledBack(t *testing.T) {
	t.Parallel()
	w, ctx := newWorld(t), context.Background()
	a, b := levelPair(w)
	a.stop()
	done := failOver(t, b, control.FailoverRequest{})
	b.awaitRole("web", recovery.Uncommitted, control.StateSynced)
	b.write("web/root", 0x77, 0, 4096)
	left := b.groupLine("web").Seq
	plan, err := b.PlanDecision(ctx, control.DecisionRequest{Verb: control.VerbRollback, Group: "web"})
	if err != nil || plan.Loss == nil || plan.Loss.Writes != 1 || plan.Loss.Bytes != 4096 {
		t.Fatalf("plan of a rollback: %+v, %v", plan, err)
	}
	decide(t, b, control.VerbRollback, "")
	a = w.run(a.cfg)
	a.awaitRole("web", recovery.Primary, control.StateSynced)
	a.reads("web/root", 0x11, 0, 64<<10)
	a.write("web/root", 0x12, 0, 512)
	b.awaitRole("web", recovery.Replica, control.StateReceiving)
	awaitLevel(a, b, "web")
	b.showsAt("#"+itoa(done.Epoch)+"."+itoa(left), 0x77)
	b.showsAt("latest", 0x12)
	a.reads("web/root", 0x11, 512, 4096)
}

// showsAt compares the first sector of root at a point.
func (r *running) showsAt(at string, fill byte) {
	r.t.Helper()
	to := filepath.Join(r.t.TempDir(), "root")
	if _, err := r.Restore(context.Background(), control.RestoreRequest{Group: "web", At: at, To: to + "/", Format: control.FormatSparse}, quietly); err != nil {
		r.t.Fatalf("restore %s at %s: %v", at, r.cfg.Site, err)
	}
	b, err := os.ReadFile(filepath.Join(to, "root.raw"))
	if err != nil {
		r.t.Fatal(err)
	}
	if !bytes.Equal(b[:512], bytes.Repeat([]byte{fill}, 512)) {
		r.t.Errorf("at %s %s shows % x, want %#x", at, r.cfg.Site, b[:8], fill)
	}
}

func itoa(n uint64) string { return strconv.FormatUint(n, 10) }
