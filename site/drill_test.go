package site

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
	"github.com/novacron/afterimage/testbed/scale"
)

// nothingLeft fails if a drill left something at the site.
func (r *running) nothingLeft() {
	r.t.Helper()
	if views, err := r.Views(context.Background()); err != nil || len(views) != 0 {
		r.t.Errorf("views are left: %v, %v", views, err)
	}
	if left, err := filepath.Glob(filepath.Join(r.drillsDir(), "*")); err != nil || len(left) != 0 {
		r.t.Errorf("directories are left: %v, %v", left, err)
	}
	g, err := r.group("web")
	if err != nil {
		r.t.Fatal(err)
	}
	if r.drillOf(g) != nil {
		r.t.Error("the drill is still listed")
	}
	m, err := r.machineFor(g, g.cfg.Machine).Isolated(r.drillDir(g))
	if err != nil {
		r.t.Fatal(err)
	}
	if pid, err := m.Process(); !errors.Is(err, recovery.ErrNotRunning) {
		r.t.Errorf("process %d is left, %v", pid, err)
	}
}

// TestADrillLeavesEverythingAsItWas: replication goes on while the machine runs, and
// neither success nor failure leaves anything (promise 13).
func TestADrillLeavesEverythingAsItWas(t *testing.T) {
	t.Parallel()
	scale.Tools(t, "qemu-system-x86_64")
	w, ctx := newWorld(t), context.Background()
	ca, cb := w.pair("", machineOfWeb)
	a, b := w.runPair(ca, cb)
	a.awaitState("web", control.StateSynced)
	a.write("web/root", 1, 0, 4096)
	awaitLevel(a, b, "web")
	q := control.DrillRequest{Group: "web", At: "latest", Operator: "tester"}

	w.program("echo this is no QEMU >&2; exit 1")
	if _, err := b.TestFailover(ctx, q, func(control.Progress) {}); !fault.Is(err, fault.MachineTrouble) || !strings.Contains(err.Error(), "this is no QEMU") {
		t.Errorf("with a broken program: %v", err)
	}
	b.nothingLeft()

	w.program(`exec qemu-system-x86_64 "$@"`)
	before := b.groupLine("web")
	seen := 0
	done, err := b.TestFailover(ctx, q, func(p control.Progress) {
		if !strings.HasPrefix(p.Step, "start ") {
			return
		}
		seen++
		a.write("web/root", 2, 4096, 4096)
		awaitLevel(a, b, "web")
		if views, err := b.Views(ctx); err != nil || len(views) != 1 || !views[0].Scratch {
			t.Errorf("views of the drill: %+v, %v", views, err)
		}
		if _, err := b.TestFailover(ctx, q, func(control.Progress) {}); !fault.Is(err, fault.OperationBusy) {
			t.Errorf("a second drill of the group: %v", err)
		}
	})
	if err != nil || seen != 1 || done.Point.Seq != before.Seq || done.Machine != "drill-web1" || len(done.Left) != 0 {
		t.Fatalf("drill: %+v, %v; %d starts", done, err, seen)
	}
	b.nothingLeft()
	after := b.groupLine("web")
	if after.Role != before.Role || after.EpochID != before.EpochID || after.Seq <= before.Seq || after.State != control.StateReceiving {
		t.Errorf("the group before %+v, after %+v", before, after)
	}
	page, err := os.ReadFile(strings.TrimSuffix(done.Report, ".html") + ".json")
	var report recovery.Report
	if err == nil {
		err = json.Unmarshal(page, &report)
	}
	if err != nil || !strings.HasPrefix(report.Title, "Drill of web") || len(report.Checks) != 3 || slices.ContainsFunc(report.Checks, func(c recovery.Check) bool { return !c.Held }) {
		t.Errorf("report %+v, %v", report.Checks, err)
	}
	if _, err := a.TestFailover(ctx, q, func(control.Progress) {}); !fault.Is(err, fault.MachineAbsent) {
		t.Errorf("where no machine is configured: %v", err)
	}
}

// TestLeftOversOfADrillAreTakenAway: the daemon was killed in the middle of a drill,
// whose machine lives on until the next start.
func TestLeftOversOfADrillAreTakenAway(t *testing.T) {
	t.Parallel()
	scale.Tools(t, "qemu-system-x86_64")
	w, ctx := newWorld(t), context.Background()
	_, cb := w.pair("", machineOfWeb)
	w.program(`exec qemu-system-x86_64 "$@"`)
	s := newSite(cb, Options{}.withDefaults())
	g := s.groups[0]
	m, err := s.machineFor(g, g.cfg.Machine).Isolated(s.drillDir(g))
	if err != nil {
		t.Fatal(err)
	}
	d := &drill{group: g, machine: m}
	if err := s.noteDrill(d); err != nil {
		t.Fatal(err)
	}
	m.Disks = nil
	ran, err := m.Ensure(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer closeMachine(ran)
	b := w.run(cb)
	if err := ran.Wait(ctx); err != nil { // it was killed before the site opened
		t.Fatal(err)
	}
	b.nothingLeft()
	if !strings.Contains(b.log.String(), "left-over of a drill") {
		t.Error("nothing was said of it")
	}
}
