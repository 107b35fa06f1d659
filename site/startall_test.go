package site

import (
	"context"
	"fmt"
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

// killer is a program of a machine that ends the daemon, as kill -9 does, while it is
// started for the first so many times; then it runs.
func (w *world) killer(name string, times int) {
	w.t.Helper()
	file := filepath.Join(w.dir, "run-"+name)
	text := fmt.Sprintf("#!/bin/sh\necho started >> %s.starts\nif [ $(wc -l < %[1]s.starts) -le %d ]; then kill -9 $PPID; exit 1; fi\nexec qemu-system-x86_64 \"$@\"\n", file, times)
	if err := writeProgram(file, text); err != nil {
		w.t.Fatal(err)
	}
}

// cutOff fails web over at a site that dies when db runs and web is about to, so many
// times; it is dead then, and machines are those of it.
func cutOff(t *testing.T, times int) (w *world, m *mortal, machines recovery.Machine) {
	t.Helper()
	scale.Tools(t, "qemu-system-x86_64")
	w = newWorld(t)
	w.tellingProgram("db")
	w.killer("web", times)
	textA, textB := w.pairTexts("", machinesOfWeb)
	cb := w.configure("b", strings.ReplaceAll(textB, "{dir}", w.dir))
	a, b := w.runPair(w.configure("a", textA), cb)
	a.awaitState("web", control.StateSynced)
	a.write("web/root", 1, 0, 4096)
	awaitLevel(a, b, "web")
	machines = b.machineFor(b.groups[0], b.groups[0].cfg.Machine)
	t.Cleanup(func() {
		if err := machines.End(context.Background()); err != nil {
			t.Error(err)
		}
	})
	a.stop()
	b.stop()
	m = w.mortal("b", strings.ReplaceAll(textB, "{dir}", w.dir))
	m.start()
	m.awaitRole("replica", control.StateWaiting)
	q := control.FailoverRequest{Group: "web", At: "latest", Force: true, Operator: "tester"}
	if out, err := m.api.Failover(context.Background(), q, quietly); err == nil {
		t.Fatalf("the daemon did not die: %+v", out)
	}
	await(t, "the daemon is dead", m.dead)
	return w, m, machines
}

// A daemon that is killed when some machines of a failover run and others do not finishes
// that start in its next life, once, and leaves those alone that run.
func TestAStartOfSeveralThatIsCutOffIsFinished(t *testing.T) {
	t.Parallel()
	w, m, machines := cutOff(t, 1)
	db, err := machines.Each()[0].Process()
	if err != nil || machines.RunsWhole() {
		t.Fatalf("it was not cut off: db is process %d, %v", db, err)
	}
	m.start()
	await(t, "all run", machines.RunsWhole)
	if !strings.Contains(m.log.String(), "a has not told yet that it does not run it") {
		t.Error("the peer was not asked first")
	}
	if pid, err := machines.Each()[0].Process(); err != nil || pid != db || w.startsOf("db") != 1 {
		t.Errorf("db was process %d and is %d, %v; it was started %d times", db, pid, err, w.startsOf("db"))
	}
	await(t, "nothing is told of it any more", func() bool {
		g := m.line()
		return g.State == control.StateSynced && !slices.ContainsFunc(g.Notices, func(n control.Notice) bool { return strings.Contains(n.Text, "machines") })
	})
	m.stop()
}

// A daemon that dies of each start tries it a few times only, and then says which of the
// machines runs and which does not.
func TestAStartOfSeveralThatIsAlwaysCutOffIsTold(t *testing.T) {
	t.Parallel()
	w, m, machines := cutOff(t, 100)
	for w.startsOf("web") < maxVain {
		m.start()
		await(t, "the daemon is dead again", m.dead)
	}
	m.start()
	var told control.Notice
	await(t, "it is told", func() bool {
		i := slices.IndexFunc(m.line().Notices, func(n control.Notice) bool { return strings.Contains(n.Text, "db runs, web does not run") })
		if i >= 0 {
			told = m.line().Notices[i]
		}
		return i >= 0
	})
	await(t, "it was about to start them", func() bool { return strings.Contains(m.log.String(), errHeld.Error()) })
	if told.Level != control.Alarm || !strings.Contains(told.Text, "NOT started again") || !strings.Contains(told.Hint, "failover unplanned web --at 'latest'") {
		t.Errorf("told: %+v", told)
	}
	if got := w.startsOf("web"); got != maxVain || w.startsOf("db") != 1 || m.dead() || machines.RunsWhole() {
		t.Errorf("web was started %d times, db %d times", got, w.startsOf("db"))
	}
	w.programOf("web", true)
	q := control.FailoverRequest{Group: "web", At: "latest", Operator: "tester"}
	if out, err := m.api.Failover(context.Background(), q, quietly); err != nil || !out.Started || !machines.RunsWhole() {
		t.Errorf("a person starts them: %+v, %v", out, err)
	}
	m.stop()
}

// Machines whose start was cut off are started by the command that the status names, also
// where the failover was committed and none of them runs.
func TestAStartThatWasCutOffIsRepeatedAsToldOnceCommitted(t *testing.T) {
	t.Parallel()
	w, m, machines := cutOff(t, 1)
	w.programOf("web", false)
	m.start()
	m.awaitRole("uncommitted", control.StateSynced)
	if _, err := m.api.Decide(context.Background(), control.DecisionRequest{Verb: control.VerbCommit, Group: "web", Operator: "tester"}, quietly); err != nil {
		t.Fatal(err)
	}
	if err := machines.End(context.Background()); err != nil {
		t.Fatal(err)
	}
	await(t, "it is told by which command", func() bool {
		return slices.ContainsFunc(m.line().Notices, func(n control.Notice) bool {
			return strings.Contains(n.Text, "db does not run, web does not run") && strings.Contains(n.Hint, "failover unplanned web --at 'latest'")
		})
	})
	w.programOf("web", true)
	q := control.FailoverRequest{Group: "web", At: "latest", Operator: "tester"}
	if out, err := m.api.Failover(context.Background(), q, quietly); err != nil || !out.Started || !machines.RunsWhole() {
		t.Errorf("started by the command: %+v, %v", out, err)
	}
	m.stop()
}
