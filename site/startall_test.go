package site

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
	"github.com/novacron/afterimage/testbed/scale"
)

// tellingProgram is programOf of a machine whose starts are counted.
func (w *world) tellingProgram(name string) {
	w.t.Helper()
	file := filepath.Join(w.dir, "run-"+name)
	if err := writeProgram(file+".new", "#!/bin/sh\necho started >> "+file+".starts\nexec qemu-system-x86_64 \"$@\"\n"); err != nil {
		w.t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		w.t.Fatal(err)
	}
}

// startsOf is how often a machine of tellingProgram was started.
func (w *world) startsOf(name string) int {
	w.t.Helper()
	text, err := os.ReadFile(filepath.Join(w.dir, "run-"+name+".starts"))
	if err != nil && !os.IsNotExist(err) {
		w.t.Fatal(err)
	}
	return strings.Count(string(text), "started")
}

// notice is the alarm of group web that has a text, and its hint.
func (r *running) notice(text string) (control.Notice, bool) {
	r.t.Helper()
	all := r.groupLine("web").Notices
	i := slices.IndexFunc(all, func(n control.Notice) bool { return n.Level == control.Alarm && strings.Contains(n.Text, text) })
	if i < 0 {
		return control.Notice{}, false
	}
	return all[i], true
}

// handToB hands web from a to b, which settles nothing yet.
func handToB(w *world, ca, cb *config.Config) (a, b *running) {
	w.t.Helper()
	a, b = w.runPair(ca, cb)
	w.t.Cleanup(b.endThem)
	a.awaitState("web", control.StateSynced)
	b.awaitState("web", control.StateReceiving)
	a.write("web/root", 1, 0, 4096)
	awaitLevel(a, b, "web")
	if _, err := a.Handover(context.Background(), control.HandoverRequest{Group: "web", Operator: "tester"}, quietly); err != nil {
		w.t.Fatal(err)
	}
	return a, b
}

// Machines that cannot start together are not booted and killed without end: after a few
// tries the site leaves them off, whatever it is restarted, says so, and says by which
// command they are started once that can be.
func TestMachinesAreStartedInVainAFewTimesOnly(t *testing.T) {
	t.Parallel()
	scale.Tools(t, "qemu-system-x86_64")
	w, ctx := newWorld(t), context.Background()
	w.tellingProgram("db")
	w.programOf("web", false)
	ca, cb := w.pair("", machinesOfWeb)
	_, b := handToB(w, ca, cb)
	const text = "NOT started again by themselves"
	var n control.Notice
	await(t, "b gives up", func() (told bool) { n, told = b.notice(text); return told })
	if got := w.startsOf("db"); got != maxVain || b.theyRun() != nil {
		t.Errorf("db was booted %d times; %v run", got, b.theyRun())
	}
	if !strings.Contains(n.Text, "no QEMU is web") || !strings.Contains(n.Hint, "afterimage failover unplanned web --at 'latest'") {
		t.Errorf("told: %+v", n)
	}
	b.stop()
	b = w.run(cb)
	await(t, "b looks at them again", func() bool { return strings.Contains(b.log.String(), errHeld.Error()) })
	if _, told := b.notice(text); !told || w.startsOf("db") != maxVain {
		t.Errorf("after a restart: told %v, db was booted %d times", told, w.startsOf("db"))
	}

	q := control.FailoverRequest{Group: "web", At: "#1", Operator: "tester"}
	if _, err := b.Failover(ctx, q, quietly); !fault.Is(err, fault.NotReplica) || !strings.Contains(fault.Of(err).Advice(), "--at 'latest'") {
		t.Errorf("from another point: %v", err)
	}
	q.At = "latest"
	if _, err := b.Failover(ctx, q, quietly); !fault.Is(err, fault.MachineTrouble) || w.startsOf("db") != maxVain+1 {
		t.Errorf("asked for while it cannot be: %v; db was booted %d times", err, w.startsOf("db"))
	}
	if _, told := b.notice(text); !told {
		t.Error("what a person tried in vain is tried on")
	}
	w.programOf("web", true)
	plan, err := b.PlanFailover(ctx, q)
	if err != nil || !plan.Resumes || len(plan.Refused) > 0 {
		t.Fatalf("plan: %+v, %v", plan, err)
	}
	epoch := b.groupLine("web").Epoch
	done, err := b.Failover(ctx, q, quietly)
	if err != nil || len(done.Machines) != 2 || done.Report == "" || b.groupLine("web").Epoch != epoch || b.groupLine("web").Role != string(recovery.Primary) {
		t.Errorf("started: %+v, %v", done, err)
	}
	if got := b.theyRun(); !slices.Equal(got, []string{"db", "web"}) {
		t.Errorf("%v run", got)
	}
	await(t, "nothing is told any more", func() bool { _, told := b.notice("in vain"); return !told })
	await(t, "the handover is settled", func() bool {
		l, release := b.lifeOf()
		defer release()
		_, settled, err := l.handedHere()
		return err == nil && settled
	})
	if _, err := b.Failover(ctx, q, quietly); !fault.Is(err, fault.NotReplica) {
		t.Errorf("started once more: %v", err)
	}
}

// A machine that is seen to be unable to start keeps the others from being booted, however
// often that is looked at.
func TestNoMachineIsBootedWhereOneCannotBe(t *testing.T) {
	t.Parallel()
	scale.Tools(t, "qemu-system-x86_64")
	w := newWorld(t)
	w.tellingProgram("db") // and nothing is there to be web
	ca, cb := w.pair("", machinesOfWeb)
	_, b := handToB(w, ca, cb)
	await(t, "b looks at them", func() bool {
		return strings.Contains(b.log.String(), "nothing was started") && strings.Contains(b.log.String(), "start machine web")
	})
	if got := w.startsOf("db"); got != 0 {
		t.Errorf("db was booted %d times", got)
	}
	if _, told := b.notice("in vain"); told {
		t.Error("it is told that machines were started in vain")
	}
	w.programOf("web", true)
	await(t, "both run", func() bool { return slices.Equal(b.theyRun(), []string{"db", "web"}) })
	if got := w.startsOf("db"); got != 1 {
		t.Errorf("db was booted %d times", got)
	}
}
