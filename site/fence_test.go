package site

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/recovery/fence"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// device is a power device: plugs are files in dir that say on or off, and an agent
// answers for them. One that lies says yes to everything.
func device(t *testing.T, dir, name string, lies bool) string {
	t.Helper()
	body := `cd ` + dir + ` || exit 1
case "$action" in
metadata) echo '<resource-agent><actions><action name="off"/><action name="status"/></actions></resource-agent>'; exit 0;;
off) [ -f "$plug" ] || exit 1; echo off > "$plug"; exit 0;;
status) [ -f "$plug" ] || exit 1; read s < "$plug"; [ "$s" = on ] && exit 0; exit 2;;
esac
exit 1`
	if lies {
		body = `[ "$action" = status ] && exit 2; exit 0`
	}
	text := "#!/bin/sh\naction= plug=\nwhile IFS= read -r line; do case \"$line\" in action=*) action=${line#action=};; plug=*) plug=${line#plug=};; esac; done\n" + body + "\n"
	path := filepath.Join(dir, name)
	if err := writeProgram(path, text); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "web"), []byte("on\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// fencedPair is a pair whose primary is gone, with the fence of b as given.
func fencedPair(t *testing.T, w *world, fences string) (a, b *running) {
	t.Helper()
	ca, cb := w.pair("", fences)
	a, b = w.runPair(ca, cb)
	a.awaitState("web", control.StateSynced)
	a.write("web/root", 7, 0, 4096)
	awaitLevel(a, b, "web")
	a.stop()
	return a, b
}

// Promise 12: with two channels that prove it a failover goes on without force and is
// recorded as fenced, with what was seen; the dead site is asked nothing.
func TestFailoverFences(t *testing.T) {
	t.Parallel()
	w, ctx := newWorld(t), context.Background()
	first, second := device(t, w.dir, "fence_one", false), device(t, w.dir, "fence_two", false)
	_, b := fencedPair(t, w, "  fence: {programs: [{path: "+first+", plug: web, timeout: 1m}, {path: "+second+", plug: web, timeout: 1m}]}\n")
	q := control.FailoverRequest{Group: "web", At: "latest"}
	plan, err := b.PlanFailover(ctx, q)
	if err != nil || len(plan.Refused) > 0 || len(plan.Fencing) != 3 || !strings.Contains(plan.Steps[0], first) {
		t.Fatalf("%+v, %v", plan, err)
	}
	if got, _ := os.ReadFile(filepath.Join(w.dir, "web")); string(got) != "on\n" {
		t.Fatal("a plan switched the machine off")
	}
	q.Expect = plan.Digest
	done, err := b.Failover(ctx, q, func(control.Progress) {})
	if err != nil {
		t.Fatal(err)
	}
	if done.Unfenced || done.Proof == nil || done.Proof.Result != fence.Off || done.Times["fence"] == 0 {
		t.Errorf("%+v", done)
	}
	r := reignOf(t, b)
	if r.Unfenced || r.Forced || r.Fence != recovery.FenceProven {
		t.Errorf("recorded as %+v", r)
	}
	if got, _ := os.ReadFile(filepath.Join(w.dir, "web")); string(got) != "off\n" {
		t.Error("the plug is on")
	}
	page, err := os.ReadFile(done.Report)
	if err != nil || !strings.Contains(string(page), done.Proof.Why) {
		t.Errorf("the report does not say what was seen: %v", err)
	}
}

func reignOf(t *testing.T, r *running) recovery.Reign {
	t.Helper()
	g, err := r.Site.group("web")
	if err != nil {
		t.Fatal(err)
	}
	l, release, err := g.await(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	return l.roleNow()
}

// A fence that says yes to everything, one that does not answer, and one that stands
// alone promote nothing: exit 15, with what to do. Force goes on, and is on record with
// what was seen.
func TestUnprovenFenceRefuses(t *testing.T) {
	t.Parallel()
	w, ctx := newWorld(t), context.Background()
	liar := device(t, w.dir, "fence_yes", true)
	_, b := fencedPair(t, w, "  fence: {programs: [{path: "+liar+", plug: web, timeout: 1m}, {path: "+filepath.Join(w.dir, "absent")+", plug: web}]}\n")
	q := control.FailoverRequest{Group: "web", At: "latest", Operator: "op"}
	out, err := b.Failover(ctx, q, func(control.Progress) {})
	f := fault.Of(err)
	if f == nil || f.Code != fault.NotFenced || f.Exit() != fault.ExitSplitBrain || !strings.Contains(f.Advice(), "--force") || !strings.Contains(f.Why, "does not exist") {
		t.Fatalf("%+v, %v", out, err)
	}
	if r := reignOf(t, b); r.Role != recovery.Replica {
		t.Fatalf("promoted all the same: %+v", r)
	}
	q.Force = true
	out, err = b.Failover(ctx, q, func(control.Progress) {})
	if err != nil || !out.Unfenced || out.Proof == nil || out.Proof.Result == fence.Off {
		t.Fatalf("%+v, %v", out, err)
	}
	if r := reignOf(t, b); !r.Unfenced || !r.Forced || r.Operator != "op" {
		t.Errorf("recorded as %+v", r)
	}
}

// A statement of the old site is one channel: with a second one it proves, alone it does
// not, and one that cannot be believed is refused before anything is planned.
func TestStatementOfTheOldSite(t *testing.T) {
	t.Parallel()
	w, ctx := newWorld(t), context.Background()
	one := device(t, w.dir, "fence_one", false)
	a, b := fencedPair(t, w, "  fence: {programs: [{path: "+one+", plug: web, timeout: 1m}]}\n")
	g, err := b.Site.group("web")
	if err != nil {
		t.Fatal(err)
	}
	l, release, err := g.await(ctx)
	if err != nil {
		t.Fatal(err)
	}
	head := l.j.Head()
	release()
	x := fence.Standing{Site: "a", Group: "default/web", Identity: g.id, Head: head.Position, Epoch: head.Number, Machine: "web", How: "seen off", Time: time.Now()}
	text, err := x.Sign(a.self())
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := x.Sign(b.self())
	if err != nil {
		t.Fatal(err)
	}
	q := control.FailoverRequest{Group: "web", At: "latest", Statement: stranger}
	if _, err := b.PlanFailover(ctx, q); fault.Of(err).Code != fault.NotFenced || !strings.Contains(err.Error(), "another key") {
		t.Fatalf("a stranger's statement: %v", err)
	}
	q.Statement = text
	plan, err := b.PlanFailover(ctx, q)
	if err != nil || !slices.Contains(plan.Fencing, "statement of a") {
		t.Fatalf("%+v, %v", plan, err)
	}
	done, err := b.Failover(ctx, q, func(control.Progress) {})
	if err != nil || done.Unfenced || !strings.Contains(done.Proof.Why, "statement of a") {
		b, _ := json.Marshal(done.Proof)
		t.Errorf("%s, %v", b, err)
	}
}

func TestDoctorExaminesFences(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	good, liar := device(t, w.dir, "fence_good", false), device(t, w.dir, "fence_yes", true)
	site := func(fences string) string {
		return examined(t, w.configure("b", "peers: [{name: a}]\ngroups:\n- name: web\n  peers: [a]\n"+fences))
	}
	if got := site(""); !strings.Contains(got, "warning: no fence") {
		t.Errorf("none: %s", got)
	}
	if got := site("  fence: {programs: [{path: " + good + ", plug: web}]}\n"); !strings.Contains(got, "warning: program "+good) || strings.Contains(got, FindingProblem) {
		t.Errorf("one: %s", got)
	}
	if got := site("  fence: {programs: [{path: " + good + ", plug: web}, {path: " + liar + ", plug: web}]}\n"); !strings.Contains(got, "which does not exist | replace it") || !strings.Contains(got, "does not tell its actions") {
		t.Errorf("a liar: %s", got)
	}
	if got := site("  fence: {each: [{machine: web, programs: [{path: " + good + ", plug: web}]}, {machine: db, programs: [{path: " + good + ", plug: nosuch}, {path: " + liar + ", plug: web}]}]}\n"); !strings.Contains(got, "only fence of machine web") || !strings.Contains(got, "problem: fence db: program "+liar) {
		t.Errorf("of each: %s", got)
	}
	if got := site("  fence: {programs: [{path: /nonexistent/fence, plug: web}], libvirt: {uri: 'qemu:///session?socket=/nonexistent'}}\n"); strings.Count(got, "problem: fence") < 2 {
		t.Errorf("absent: %s", got)
	}
	if got, _ := os.ReadFile(filepath.Join(w.dir, "web")); string(got) != "on\n" {
		t.Error("doctor threw a switch")
	}
}
