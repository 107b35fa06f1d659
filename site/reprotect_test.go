package site

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// splitPair is two sites that both reigned: a wrote 0x12 and b 0x22 after what they
// share, and both know it.
func splitPair(w *world) (a, b *running) {
	w.t.Helper()
	a, b = levelPair(w)
	a.stop()
	failOver(w.t, b, control.FailoverRequest{})
	b.awaitRole("web", recovery.Uncommitted, control.StateSynced)
	b.write("web/root", 0x22, 4096, 4096)
	a = w.run(a.cfg)
	a.awaitState("web", control.StateHalted)
	b.awaitState("web", control.StateHalted)
	a.write("web/root", 0x12, 0, 512)
	return a, b
}

// The old primary comes back, follows the new one from the fork on, keeps what it lost
// as a branch, and becomes primary again with nothing lost on the way home.
func TestReprotectAndFailback(t *testing.T) {
	t.Parallel()
	w, ctx := newWorld(t), context.Background()
	a, b := splitPair(w)
	q := control.DecisionRequest{Verb: control.VerbReprotect, Group: "web", Operator: "tester"}
	if _, err := b.Decide(ctx, q, quietly); !fault.Is(err, fault.RoleForbids) {
		t.Errorf("reprotect before the commit: %v", err)
	}
	if _, err := a.Decide(ctx, control.DecisionRequest{Verb: control.VerbCommit, Group: "web"}, quietly); !fault.Is(err, fault.RoleForbids) {
		t.Errorf("commit at a primary: %v", err)
	}
	decide(t, b, control.VerbCommit, "")
	plan, err := b.PlanDecision(ctx, q)
	if err != nil || len(plan.Sides) != 2 || len(plan.Refused) > 0 {
		t.Fatalf("plan of a reprotect: %+v, %v", plan, err)
	}
	lost := a.groupLine("web")
	d, err := b.Decide(ctx, q, quietly)
	if err != nil || !slices.Equal(d.Following, []string{"a"}) {
		t.Fatalf("reprotect: %+v, %v", d, err)
	}
	a.awaitRole("web", recovery.Replica, control.StateReceiving)
	b.awaitRole("web", recovery.Primary, control.StateSynced)
	b.write("web/root", 0x23, 8192, 4096)
	awaitLevel(b, a, "web")
	a.showsAt("#"+itoa(lost.Epoch)+"."+itoa(lost.Seq), 0x12)
	a.showsAt("latest", 0x11)

	back, err := b.Handover(ctx, control.HandoverRequest{Group: "web"}, quietly)
	if err != nil {
		t.Fatal(err)
	}
	a.awaitRole("web", recovery.Primary, control.StateSynced)
	b.awaitRole("web", recovery.Replica, control.StateReceiving)
	if back.To != "a" {
		t.Errorf("handed back: %+v", back)
	}
	a.reads("web/root", 0x11, 0, 4096) // its image had 0x12 there, in the branch it left
	a.reads("web/root", 0x22, 4096, 4096)
	a.reads("web/root", 0x23, 8192, 4096)
	a.reads("web/root", 0x11, 12288, 4096)
}

// A split brain is shown with both histories, and either side may be kept, decided at
// either; the other stays readable.
func TestResolveKeepsOneOfTwoHistories(t *testing.T) {
	t.Parallel()
	for _, x := range []struct{ at, keep string }{{"a", "a"}, {"a", "b"}, {"b", "a"}, {"b", "b"}} {
		t.Run("at "+x.at+" keep "+x.keep, func(t *testing.T) {
			w, ctx := newWorld(t), context.Background()
			a, b := splitPair(w)
			sites := map[string]*running{"a": a, "b": b}
			at, kept, left := sites[x.at], sites[x.keep], a
			if x.keep == "a" {
				left = b
			}
			was := left.groupLine("web")
			q := control.DecisionRequest{Verb: control.VerbResolve, Group: "web", Keep: x.keep, Operator: "tester"}
			if x.at == "a" && x.keep == "b" { // nobody would reign if b went back on it then
				if _, err := at.Decide(ctx, q, quietly); !fault.Is(err, fault.RoleForbids) {
					t.Errorf("before the commit there: %v", err)
				}
				decide(t, b, control.VerbCommit, "")
			}
			plan, err := at.PlanDecision(ctx, q)
			if err != nil || len(plan.Sides) != 2 || len(plan.Refused) > 0 || !strings.Contains(strings.Join(plan.Steps, "\n"), "kept") {
				t.Fatalf("plan: %+v, %v", plan, err)
			}
			for _, s := range plan.Sides {
				if s.Kept != (s.Site == x.keep) || len(s.History) < 2 || s.Beyond == 0 {
					t.Errorf("side %+v", s)
				}
			}
			given := decide(t, at, control.VerbResolve, x.keep)
			tellsWhatIsLeft(t, given, plan, x.at, x.keep)
			kept.awaitRole("web", recovery.Primary, control.StateSynced)
			left.awaitRole("web", recovery.Replica, control.StateReceiving)
			kept.write("web/data", 0x55, 0, 4096)
			awaitLevel(kept, left, "web")
			head, branch := byte(0x12), byte(0x11)
			if x.keep == "b" {
				head, branch = branch, head
			}
			left.showsAt("latest", head)
			left.showsAt("#"+itoa(was.Epoch)+"."+itoa(was.Seq), branch)
			kept.reads("web/root", head, 0, 512)
		})
	}
}

// tellsWhatIsLeft holds the report of a resolve to what was planned: what is not kept, and
// where it lies, and nothing that a failover would say.
func tellsWhatIsLeft(t *testing.T, given, plan control.Decision, at, keep string) {
	t.Helper()
	page, err := os.ReadFile(given.Report)
	if err != nil {
		t.Fatal(err)
	}
	text := string(page)
	for _, s := range []string{"never heard", "not heard since", "New epoch", "by force", "none by this decision"} {
		if strings.Contains(text, s) {
			t.Errorf("the report of a resolve says %q", s)
		}
	}
	for _, s := range plan.Sides {
		told := fmt.Sprintf("%d records of %s", s.Beyond, s.Site)
		if want := !s.Kept && at == keep; strings.Contains(text, told) != want {
			t.Errorf("the report at %s of keeping %s says %q: %v", at, keep, told, !want)
		}
	}
	if at == keep {
		return
	}
	if loss := fmt.Sprintf("%d writes", plan.Loss.Writes); plan.Loss.Writes == 0 || !strings.Contains(text, loss) {
		t.Errorf("the report at %s of keeping %s does not say %q", at, keep, loss)
	}
}

func TestResolveRefuses(t *testing.T) {
	t.Parallel()
	w, ctx := newWorld(t), context.Background()
	a, b := levelPair(w)
	for _, x := range []struct {
		at   *running
		keep string
		code fault.Code
	}{{a, "nobody", fault.PeerUnknown}, {a, "b", fault.RoleForbids}, {b, "b", fault.NotPrimary}} {
		_, err := x.at.Decide(ctx, control.DecisionRequest{Verb: control.VerbResolve, Group: "web", Keep: x.keep}, quietly)
		if !fault.Is(err, x.code) {
			t.Errorf("at %s keep %s: %v", x.at.cfg.Site, x.keep, err)
		}
	}
	if g := a.groupLine("web"); g.Role != string(recovery.Primary) {
		t.Errorf("role %s", g.Role)
	}
}

// A commit policy decides when nobody does, also when the daemon was away meanwhile.
func TestCommitPolicyOutlivesTheDaemon(t *testing.T) {
	t.Parallel()
	for policy, role := range map[string]recovery.Role{"commit": recovery.Primary, "rollback": recovery.Replica} {
		t.Run(policy, func(t *testing.T) {
			w := newWorld(t)
			a, b := levelPair(w)
			a.stop()
			failOver(t, b, control.FailoverRequest{Policy: policy, PolicySeconds: 3600})
			b.awaitRole("web", recovery.Uncommitted, control.StateSynced)
			b.stop()
			l := w.offline(b.cfg)
			r, _, err := recovery.RecallReign(l)
			if err != nil || string(r.Policy.Mode) != policy {
				t.Fatalf("policy %+v, %v", r.Policy, err)
			}
			r.Policy.At = r.Since // its time came while nobody was there
			if err := recovery.RememberReign(l, r); err != nil {
				t.Fatal(err)
			}
			l.close()
			b = w.run(b.cfg)
			await(t, "the policy is carried out", func() bool { return b.groupLine("web").Role == string(role) })
		})
	}
}

// stopped is the journal of a site that does not run.
type stopped struct {
	*journal.Journal
	close func()
}

func (w *world) offline(c *config.Config) stopped {
	w.t.Helper()
	j, err := journal.Open(filepath.Join(c.Data, "groups", "default", "web"), journal.Options{})
	if err != nil {
		w.t.Fatal(err)
	}
	return stopped{j, func() {
		if err := j.Close(); err != nil {
			w.t.Error(err)
		}
	}}
}
