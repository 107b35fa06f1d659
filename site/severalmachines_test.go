package site

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/recovery/fence"
	"github.com/novacron/afterimage/recovery/witness"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
	"github.com/novacron/afterimage/testbed/scale"
)

// machinesOfWeb are two machines of one group: db, then web.
const machinesOfWeb = `  machine:
    name: db
    binary: "{dir}/run-db"
    disks: [{volume: root, id: disk0}]
    args: ["-machine", "none", "-nodefaults", "-no-user-config", "-display", "none"]
    besides:
      - name: web
        binary: "{dir}/run-web"
        disks: [{volume: data, id: disk0}]
        args: ["-machine", "none", "-nodefaults", "-no-user-config", "-display", "none"]
`

// programOf makes the program of one of them run, or not.
func (w *world) programOf(name string, works bool) {
	w.t.Helper()
	text := "#!/bin/sh\necho no QEMU is " + name + " >&2; exit 1\n"
	if works {
		text = "#!/bin/sh\nexec qemu-system-x86_64 \"$@\"\n"
	}
	file := filepath.Join(w.dir, "run-"+name)
	if err := os.WriteFile(file+".new", []byte(text), 0o700); err != nil {
		w.t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		w.t.Fatal(err)
	}
}

// theyRun names the group's machines that run.
func (r *running) theyRun() []string {
	r.t.Helper()
	var out []string
	for _, m := range r.machineFor(r.groups[0], r.groups[0].cfg.Machine).Each() {
		if _, err := m.Process(); err == nil {
			out = append(out, m.Name)
		} else if !errors.Is(err, recovery.ErrNotRunning) {
			r.t.Fatal(err)
		}
	}
	return out
}

func (r *running) endThem() {
	r.t.Helper()
	if err := r.machineFor(r.groups[0], r.groups[0].cfg.Machine).End(context.Background()); err != nil {
		r.t.Error(err)
	}
}

// A group of several machines is drilled, failed over, repeated, rewound and rolled back as
// one: all of them or none, each told of, none left behind.
func TestAGroupOfSeveralMachinesIsOne(t *testing.T) {
	scale.Tools(t, "qemu-system-x86_64")
	w, ctx := newWorld(t), context.Background()
	ca, cb := w.pair("", machinesOfWeb)
	a, b := w.runPair(ca, cb)
	t.Cleanup(b.endThem)
	a.awaitState("web", control.StateSynced)
	a.write("web/root", 1, 0, 4096)
	awaitLevel(a, b, "web")
	quiet := func(control.Progress) {}
	w.programOf("db", true)
	w.programOf("web", false)

	drill := control.DrillRequest{Group: "web", At: "latest", Operator: "tester"}
	if _, err := b.TestFailover(ctx, drill, quiet); !fault.Is(err, fault.MachineTrouble) || !strings.Contains(err.Error(), "no QEMU is web") {
		t.Errorf("a drill of which one does not start: %v", err)
	}
	b.nothingLeft()
	w.programOf("web", true)
	if d, err := b.TestFailover(ctx, drill, quiet); err != nil || d.Machine != "drill-db, drill-web" || len(d.Left) != 0 {
		t.Errorf("a drill: %+v, %v", d, err)
	}
	b.nothingLeft()

	a.stop()
	w.programOf("web", false)
	q := control.FailoverRequest{Group: "web", At: "latest", Force: true, Operator: "tester"}
	plan, err := b.PlanFailover(ctx, q)
	if err != nil || plan.Machine != "db, web" || !slices.ContainsFunc(plan.Steps, func(s string) bool { return strings.Contains(s, "start machines db, web, in this order") }) {
		t.Fatalf("plan: %+v, %v", plan, err)
	}
	if _, err := b.Failover(ctx, q, quiet); !fault.Is(err, fault.MachineTrouble) || !strings.Contains(err.Error(), "start machine web") || !strings.Contains(err.Error(), "none is left running") {
		t.Fatalf("one does not start: %v", err)
	}
	if got := b.theyRun(); got != nil {
		t.Fatalf("%v are left running", got)
	}
	w.programOf("web", true)
	done, err := b.Failover(ctx, q, quiet)
	if err != nil || len(done.Machines) != 2 || done.Machines[1].Name != "web" || done.Machines[1].PID == 0 || done.PID != done.Machines[0].PID {
		t.Fatalf("repeated: %+v, %v", done, err)
	}
	page, err := os.ReadFile(done.Report)
	if err != nil || !strings.Contains(string(page), "<td>db, UUID") || !strings.Contains(string(page), "<td>web, UUID") {
		t.Errorf("the report does not tell of each: %v", err)
	}
	detail := func(want string) {
		t.Helper()
		d, err := b.Group(ctx, "web")
		if err != nil || d.Machine != "db, web" || d.MachineState != want {
			t.Errorf("told: %q is %q, not %q: %v", d.Machine, d.MachineState, want, err)
		}
		if len(d.Seen) != 2 || d.Seen[0].State != control.MachineRuns || d.Seen[0].PID == 0 || (d.Seen[1].State == control.MachineRuns) != (want == control.MachineRuns) {
			t.Errorf("of each: %+v", d.Seen)
		}
	}
	detail(control.MachineRuns)
	if _, err := b.MoveDisks(ctx, control.MoveRequest{Group: "web", To: t.TempDir(), Pivot: true}, quiet); !fault.Is(err, fault.Usage) || !strings.Contains(err.Error(), "machines db, web share") {
		t.Errorf("handed to one of them: %v", err)
	}

	web := b.machineFor(b.groups[0], b.groups[0].cfg.Machine).Each()[1]
	if err := web.End(ctx); err != nil { // it died
		t.Fatal(err)
	}
	detail(control.MachinePartly)
	w.programOf("web", false)
	if _, err := b.Failover(ctx, q, quiet); !fault.Is(err, fault.MachineTrouble) || !strings.Contains(err.Error(), "db ran before") {
		t.Errorf("the one that died does not start: %v", err)
	}
	if got := b.theyRun(); !slices.Equal(got, []string{"db"}) {
		t.Errorf("one ran before and was to go on: %v", got)
	}
	w.programOf("web", true)
	again, err := b.Failover(ctx, q, quiet)
	if err != nil || len(again.Machines) != 2 || again.Machines[0].PID != done.Machines[0].PID || !again.Machines[0].Adopted || again.Machines[1].Adopted {
		t.Fatalf("the one that died is started, and only that: %+v, %v", again, err)
	}

	rewound, err := b.Rewind(ctx, control.RewindRequest{Group: "web", At: "latest", Operator: "tester"}, quiet)
	if err != nil || rewound.Machine != "db, web" || !rewound.Started || !slices.Equal(b.theyRun(), []string{"db", "web"}) {
		t.Errorf("rewound: %+v, %v; %v run", rewound, err, b.theyRun())
	}
	if d, err := b.Decide(ctx, control.DecisionRequest{Verb: control.VerbRollback, Group: "web", Operator: "tester"}, quiet); err != nil || b.theyRun() != nil {
		t.Errorf("rolled back: %+v, %v; %v run", d, err, b.theyRun())
	}
}

// A fence proves all machines that the history names, or it is none: nothing is switched
// and nothing promoted where one of them is left out.
func TestAFenceLeavesNoMachineOut(t *testing.T) {
	w, ctx := newWorld(t), context.Background()
	one, two := device(t, w.dir, "fence_one", false), device(t, w.dir, "fence_two", false)
	plug := func(name string) string {
		b, err := os.ReadFile(filepath.Join(w.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(b))
	}
	if err := os.WriteFile(filepath.Join(w.dir, "db"), []byte("on\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	of := func(name string) string {
		return "{machine: " + name + ", programs: [{path: " + one + ", plug: " + name + ", timeout: 1m}, {path: " + two + ", plug: " + name + ", timeout: 1m}]}"
	}
	ca, cb := w.pair("", machinesOfWeb+"  fence: {each: ["+of("db")+", "+of("web")+"]}\n")
	a, b := w.runPair(ca, cb)
	a.awaitState("web", control.StateSynced)
	tell := func(names string) {
		t.Helper()
		l, release := a.lifeOf()
		defer release()
		if err := l.reigning().writer.Machine(ctx, companyKey, []byte(names)); err != nil {
			t.Fatal(err)
		}
		a.write("web/root", 7, 0, 4096)
		awaitLevel(a, b, "web")
	}
	tell(`["db","web","app"]`)
	marks := b.groups[0].marks()
	for _, m := range b.machineFor(b.groups[0], b.groups[0].cfg.Machine).Each() {
		if !slices.Contains(marks, witness.Mark(filepath.Join(m.Dir, "qemu.pid"))) || !slices.Contains(marks, witness.Program(m.Binary)) {
			t.Errorf("the watchdog does not know machine %s: %q", m.Name, marks)
		}
	}
	q := control.FailoverRequest{Group: "web", At: "latest", NoMachine: true}
	quiet := func(control.Progress) {}
	plan, err := b.PlanFailover(ctx, control.FailoverRequest{Group: "web", At: "latest"})
	if err != nil || !strings.Contains(strings.Join(plan.Warnings, ";"), "machines db, web, app, and only db, web starts here") {
		t.Errorf("the plan: %+v, %v", plan, err)
	}
	live := b.fenceOf(t)
	if _, ok := live.(unprovable); !ok || len(live.Names()) != 6 {
		t.Errorf("the fence of two for three: %v", live)
	}
	a.stop()
	_, err = b.Failover(ctx, q, quiet)
	if f := fault.Of(err); f == nil || f.Code != fault.NotFenced || !strings.Contains(f.Why, "machines app of the group are not in each:") || plug("db") != "on" || plug("web") != "on" {
		t.Fatalf("two of three: %v; db is %s, web is %s", err, plug("db"), plug("web"))
	}
	if r := reignOf(t, b); r.Role != recovery.Replica {
		t.Fatalf("promoted all the same: %+v", r)
	}
	if err := os.WriteFile(filepath.Join(w.dir, "app"), []byte("on\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	more := b.groups[0].cfg.Fence.Each[0]
	more.Machine, more.Programs = "app", slices.Clone(more.Programs)
	for i := range more.Programs {
		more.Programs[i].Plug = "app"
	}
	b.groups[0].cfg.Fence.Each = append(b.groups[0].cfg.Fence.Each, more)
	done, err := b.Failover(ctx, q, quiet)
	if err != nil || done.Unfenced || done.Proof == nil || done.Proof.Result != fence.Off {
		t.Fatalf("all three: %+v, %v", done, err)
	}
	for _, name := range []string{"db", "web", "app"} {
		if plug(name) != "off" || !strings.Contains(done.Proof.Why, name+": it is seen off by") {
			t.Errorf("%s is %s: %s", name, plug(name), done.Proof.Why)
		}
	}
}

func (r *running) fenceOf(t *testing.T) prover {
	t.Helper()
	l, release := r.lifeOf()
	defer release()
	f, err := l.fence(control.FailoverRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// A site that captures several machines says in its history which, once, and that they are
// several no more.
func TestTheHistoryTellsTheMachines(t *testing.T) {
	w := newWorld(t)
	c := w.configure("a", `groups:
- name: web
  role: primary
  machines: [{name: one, qemu: {qmp: "{dir}/1"}}, {name: two, qemu: {qmp: "{dir}/2"}}]
  volumes: [{name: a, size: 1MiB, machine: one, qemu: {node: d}}, {name: b, size: 1MiB, machine: two, qemu: {node: d}}]
`)
	for life := range 3 {
		want, told := []string{"one", "two"}, 1
		if life == 2 {
			c.Groups[0].Machines, c.Groups[0].Volumes, want, told = c.Groups[0].Machines[:1], c.Groups[0].Volumes[:1], nil, 2
		}
		a := w.run(c)
		await(t, "it reigns", func() bool {
			l, release, err := a.groups[0].use()
			if err != nil {
				return false // it is being opened
			}
			defer release()
			return l.reigning() != nil
		})
		l, release := a.lifeOf()
		head := journal.Point{Position: l.j.Head().Position}
		if got, err := l.recordedMachines(head); err != nil || !slices.Equal(got, want) {
			t.Errorf("the history names %v, %v", got, err)
		}
		n := 0
		hs, err := l.j.Happenings(context.Background(), time.Time{}, time.Time{})
		for _, h := range hs {
			if h.Kind == journal.KindMachine && h.Detail == companyKey {
				n++
			}
		}
		if err != nil || n != told {
			t.Errorf("it says so %d times, %v", n, err)
		}
		if said := l.shutFirst(); !strings.Contains(said, "shut each machine of the group down first") {
			t.Errorf("in the way of a handover: %s", said)
		}
		err = l.tappedInputs(context.Background(), new(recovery.RewindInputs))
		if f := fault.Of(err); f == nil || f.Code != fault.RewindElsewhere || !strings.Contains(f.Advice(), "Fail it over") {
			t.Errorf("a rewind where they are captured: %v", err)
		}
		release()
		a.stop()
	}
}

// A handover starts all machines of the group at its taker, and one that runs still,
// whichever it is, keeps the group from being handed on.
func TestAHandoverIsOfAllMachines(t *testing.T) {
	scale.Tools(t, "qemu-system-x86_64")
	w, ctx := newWorld(t), context.Background()
	w.programOf("db", true)
	w.programOf("web", true)
	ca, cb := w.pair("", machinesOfWeb)
	a, b := w.runPair(ca, cb)
	t.Cleanup(b.endThem)
	a.awaitState("web", control.StateSynced)
	b.awaitState("web", control.StateReceiving)
	a.write("web/root", 1, 0, 4096)
	awaitLevel(a, b, "web")
	if _, err := a.Handover(ctx, control.HandoverRequest{Group: "web", Operator: "tester"}, quietly); err != nil {
		t.Fatal(err)
	}
	await(t, "both machines run at b", func() bool { return len(b.theyRun()) == 2 })
	b.awaitRole("web", recovery.Primary, control.StateSynced)
	a.awaitRole("web", recovery.Replica, control.StateReceiving)
	await(t, "the handover is settled", func() bool {
		l, release := b.lifeOf()
		defer release()
		_, settled, err := l.handedHere()
		return err == nil && settled
	})
	refused := func() string {
		t.Helper()
		p, err := b.PlanHandover(ctx, control.HandoverRequest{Group: "web"})
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(p.Refused, "; ")
	}
	for _, m := range b.machineFor(b.groups[0], b.groups[0].cfg.Machine).Each() {
		if got := refused(); !strings.Contains(got, "machine "+m.Name+" runs here") {
			t.Errorf("with %v running: %q", b.theyRun(), got)
		}
		if err := m.End(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if got := refused(); strings.Contains(got, "runs here") {
		t.Errorf("with none running: %q", got)
	}
	l, release := a.lifeOf()
	defer release()
	if got, err := l.recordedMachines(journal.Point{Position: l.j.Head().Position}); err != nil || !slices.Equal(got, []string{"db", "web"}) {
		t.Errorf("the other site was told of %v, %v", got, err)
	}
}
