package site

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
	"github.com/novacron/afterimage/testbed/scale"
)

const machineOfWeb = `  machine:
    name: web1
    binary: "{dir}/qemu"
    disks: [{volume: root, id: disk0}]
    args: ["-machine", "none", "-nodefaults", "-no-user-config", "-display", "none", "-chardev", "file,id=s,path={serial}"]
`

// program makes the machine's binary a script.
func (w *world) program(text string) {
	w.t.Helper()
	file := filepath.Join(w.dir, "qemu")
	if err := writeProgram(file+".new", "#!/bin/sh\n"+text+"\n"); err != nil {
		w.t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		w.t.Fatal(err)
	}
}

// endMachine ends the machine as a power cut would, if it runs.
func (r *running) endMachine() {
	r.t.Helper()
	l, release := r.lifeOf()
	defer release()
	m, err := l.machine(l.cfg.Machine).Attach(context.Background())
	if err != nil {
		r.t.Errorf("the machine is not there: %v", err)
		return
	}
	if err := m.Kill(context.Background()); err != nil {
		r.t.Error(err)
	}
	closeMachine(m)
}

func (r *running) promotion() recovery.Promotion {
	r.t.Helper()
	l, release := r.lifeOf()
	defer release()
	p, _, err := recovery.Newest(l.j)
	if err != nil {
		r.t.Fatal(err)
	}
	return p
}

func TestRepeatedFailoverStartsTheMachineThatIsMissing(t *testing.T) {
	t.Parallel()
	w, ctx := newWorld(t), context.Background()
	ca, cb := w.pair("", machineOfWeb)
	a, b := w.runPair(ca, cb)
	a.awaitState("web", control.StateSynced)
	a.write("web/root", 1, 0, 4096)
	awaitLevel(a, b, "web")
	a.stop()
	q := control.FailoverRequest{Group: "web", At: "latest", Force: true, Operator: "tester"}
	quiet := func(control.Progress) {}

	first, err := b.Failover(ctx, q, quiet)
	if f := fault.Of(err); f == nil || f.Code != fault.MachineTrouble || !strings.Contains(f.Advice(), "repeat the same command") {
		t.Fatalf("without the machine's program: %v", err)
	}
	if _, err := os.Stat(first.Report); err != nil {
		t.Errorf("a failover that failed when it stood left no report: %v", err)
	}
	if text := textOfNotices(b.groupLine("web").Notices); !strings.Contains(text, "the last failover, ") || !strings.Contains(text, "did not hold") {
		t.Errorf("status does not tell that it failed: %q", text)
	}
	promoted := b.promotion()
	b.write("web/root", 2, 4096, 4096) // the epoch stands, and somebody uses its disks
	plan, err := b.PlanFailover(ctx, q)
	if err != nil {
		t.Fatal(err)
	}
	if !plan.Resumes || len(plan.Refused) != 0 || plan.Machine != "web1" || len(plan.Steps) != 1 || !plan.Loss.Known || plan.Point.Seq != first.Point.Seq {
		t.Errorf("plan of a repeat: %+v", plan)
	}
	if _, err := b.PlanFailover(ctx, control.FailoverRequest{Group: "web", At: "-5m"}); !fault.Is(err, fault.NotReplica) || !strings.Contains(fault.Of(err).Advice(), "--at latest") {
		t.Errorf("a repeat to another point: %v", err)
	}
	if _, err := b.PlanFailover(ctx, control.FailoverRequest{Group: "web", At: "latest", NoMachine: true}); !fault.Is(err, fault.NotReplica) {
		t.Errorf("a repeat without a machine: %v", err)
	}

	w.program("echo this is no QEMU >&2; exit 1")
	if _, err = b.Failover(ctx, q, quiet); !fault.Is(err, fault.MachineTrouble) || !strings.Contains(err.Error(), "this is no QEMU") {
		t.Fatalf("with a broken program: %v", err)
	}

	scale.Tools(t, "qemu-system-x86_64")
	w.program(`exec qemu-system-x86_64 "$@"`)
	stalePlan := control.FailoverRequest{Group: "web", At: "latest", Expect: "other"}
	if _, err := b.Failover(ctx, stalePlan, quiet); !fault.Is(err, fault.PlanStale) {
		t.Errorf("another plan than the one shown: %v", err)
	}
	q.Force, q.Expect = false, plan.Digest // what forced it is on record already
	done, err := b.Failover(ctx, q, quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.endMachine)
	if !done.Started || done.PID == 0 || !done.Resumes || !done.Unfenced || len(done.Exports) != 2 {
		t.Errorf("repeated: %+v", done)
	}
	if _, err := os.Stat(done.Report); err != nil {
		t.Error(err)
	}
	if _, err := b.Failover(ctx, q, quiet); !fault.Is(err, fault.NotReplica) || !strings.Contains(err.Error(), "web1 runs") {
		t.Errorf("repeated with the machine running: %v", err)
	}

	b.endMachine() // it died
	again, err := b.Failover(ctx, control.FailoverRequest{Group: "web", At: "latest"}, quiet)
	if err != nil || !again.Started || again.PID == done.PID {
		t.Errorf("after its death: %+v, %v", again, err)
	}
	if p := b.promotion(); p != promoted {
		t.Errorf("a repeat promoted again: %+v, before %+v", p, promoted)
	}
	b.reads("web/root", 2, 4096, 4096)
	reports, err := b.Reports(ctx)
	if err != nil || len(reports) != 4 { // two that failed, two that held
		t.Fatalf("reports: %+v, %v", reports, err)
	}
	for _, r := range reports {
		f, err := b.ExportReport(ctx, control.ReportRequest{Name: r.Name})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := VerifyReport(f.File, "", ""); err != nil && !fault.Is(err, fault.EvidenceUnanchored) {
			t.Errorf("report %s: %v", r.Name, err)
		}
	}
}

// A site that was killed between promotion and machine finishes the first by itself
// and the second when told to; while the group is halted only by force.
func TestRepeatAfterARestart(t *testing.T) {
	t.Parallel()
	w, ctx := newWorld(t), context.Background()
	ca, cb := w.pair("", machineOfWeb)
	a, b := w.runPair(ca, cb)
	a.awaitState("web", control.StateSynced)
	a.write("web/root", 1, 0, 4096)
	awaitLevel(a, b, "web")
	a.stop()
	q := control.FailoverRequest{Group: "web", At: "latest", Force: true}
	if _, err := b.Failover(ctx, q, func(control.Progress) {}); !fault.Is(err, fault.MachineTrouble) {
		t.Fatal(err)
	}
	b.stop()
	b = w.run(cb)
	b.awaitState("web", control.StateSynced)
	plan, err := b.PlanFailover(ctx, q)
	if err != nil || !plan.Resumes || !plan.Loss.Known {
		t.Fatalf("plan after a restart: %+v, %v", plan, err)
	}
	w.run(ca)
	b.awaitState("web", control.StateHalted)
	q.Force = false
	if _, err := b.Failover(ctx, q, func(control.Progress) {}); !fault.Is(err, fault.PeerDiverged) {
		t.Errorf("in a split brain: %v", err)
	}
}
