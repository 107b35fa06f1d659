package site

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
	"github.com/novacron/afterimage/testbed/scale"
)

const bookOfWeb = `runbook: shop
machines: {front: web}
boot:
  - name: all
    steps:
      - start: front
      - script: [{dir}/note, "{mode}"]
        check: [/usr/bin/test, -e, {dir}/noted]
      - prompt: Does it look well?
      - notify: [{dir}/note, told]
      - stop: {machine: front, how: off}
        in: test
`

// book is a request to use bookOfWeb.
func (w *world) book(mode string) control.RunbookRequest {
	w.t.Helper()
	note := filepath.Join(w.dir, "note")
	if err := writeProgram(note, "#!/bin/sh\necho \"$1 $AFTERIMAGE_RUNBOOK\" >> "+w.dir+"/notes\ntouch "+w.dir+"/noted\n"); err != nil {
		w.t.Fatal(err)
	}
	return control.RunbookRequest{File: "shop.yml", Text: []byte(strings.ReplaceAll(bookOfWeb, "{dir}", w.dir)), Mode: mode, At: "latest", Operator: "tester"}
}

func (w *world) notes() string {
	b, _ := os.ReadFile(filepath.Join(w.dir, "notes"))
	return string(b)
}

func stepStates(r control.RunbookRun) string {
	var out []string
	for _, s := range r.Steps {
		out = append(out, s.State)
	}
	return r.State + ": " + strings.Join(out, " ")
}

const bookThatAsksFirst = `runbook: shop
machines: {front: web}
boot:
  - name: all
    steps:
      - prompt: Now?
      - start: front
`

// Promise: the loss is known before. What -1ms comes to is looked up once: a run that
// asks in between, and is answered when more was written, is brought to the point that was
// confirmed, which nothing thins meanwhile.
func TestARunIsBroughtToThePointThatWasConfirmed(t *testing.T) {
	t.Parallel()
	scale.Tools(t, "qemu-system-x86_64")
	w, ctx := newWorld(t), context.Background()
	ca, cb := w.pair("", machineOfWeb)
	a, b := w.runPair(ca, cb)
	a.awaitState("web", control.StateSynced)
	a.write("web/root", 1, 0, 4096)
	awaitLevel(a, b, "web")
	w.program(`exec qemu-system-x86_64 "$@"`)
	quiet := func(control.Progress) {}
	for _, mode := range []string{"test", "unplanned"} {
		if mode == "unplanned" {
			a.stop()
		}
		q := control.RunbookRequest{File: "shop.yml", Text: []byte(bookThatAsksFirst), Mode: mode, At: "-1ms", Operator: "tester", Force: true}
		plan, err := b.PlanRunbook(ctx, q)
		if err != nil || plan.Points["web"] == "" {
			t.Fatalf("plan: %+v, %v", plan, err)
		}
		if mode == "test" { // it would mean another point now
			a.write("web/root", 2, 0, 4096)
			awaitLevel(a, b, "web")
			if again, err := b.PlanRunbook(ctx, q); err != nil || again.Digest == plan.Digest {
				t.Fatalf("planned anew: %+v, %v; before: %+v", again, err, plan)
			}
			stale := q
			stale.Expect = plan.Digest
			if _, err := b.RunRunbook(ctx, stale, quiet); !fault.Is(err, fault.PlanStale) {
				t.Errorf("another point than was confirmed: %v", err)
			}
		}
		q.Expect, q.Points = plan.Digest, plan.Points
		run, err := b.RunRunbook(ctx, q, quiet)
		if !fault.Is(err, fault.RunAsks) {
			t.Fatalf("%s: %+v, %v", mode, run, err)
		}
		if got := b.pinsOf("web"); !slices.Equal(got, []string{"run " + run.Run + " " + plan.Points["web"]}) {
			t.Errorf("pinned while it waits: %q", got)
		}
		if mode == "test" {
			a.write("web/root", 3, 0, 4096)
			awaitLevel(a, b, "web")
		} else {
			t.Cleanup(b.endMachine)
		}
		done, err := b.ResumeRun(ctx, control.RunRequest{Run: run.Run, Step: 1, Answer: "yes"}, quiet)
		if err != nil {
			t.Fatalf("%s answered: %s, %v", mode, stepStates(done), err)
		}
		if mode == "test" && !strings.Contains(done.Steps[1].Output, "as of "+plan.Points["web"]+" over") {
			t.Errorf("the drill began at another point than %s: %q", plan.Points["web"], done.Steps[1].Output)
		}
		if p := b.promotion(); mode == "unplanned" && p.Order.At != plan.Points["web"] {
			t.Errorf("promoted at %s, confirmed was %s", p.Order.At, plan.Points["web"])
		}
		if got := b.pinsOf("web"); len(got) > 0 {
			t.Errorf("pinned after the run: %q", got)
		}
	}
	if _, err := b.PlanRunbook(ctx, control.RunbookRequest{File: "shop.yml", Text: []byte(bookThatAsksFirst), Mode: "planned", At: "-5m"}); !fault.Is(err, fault.Usage) {
		t.Errorf("a planned one at a moment: %v", err)
	}
}

// pinsOf are the pins of a group here, name and point.
func (r *running) pinsOf(group string) []string {
	r.t.Helper()
	points, err := r.Points(context.Background(), control.PointsQuery{Group: group})
	if err != nil {
		r.t.Fatal(err)
	}
	var out []string
	for _, p := range points.Pins {
		out = append(out, p.Name+" "+seqText(p.Point))
	}
	return out
}

// TestTheSameRunbookDrillsAndFailsOver: a drill that loses its daemon in the middle is
// resumed, and then the file is used in earnest.
func TestTheSameRunbookDrillsAndFailsOver(t *testing.T) {
	t.Parallel()
	scale.Tools(t, "qemu-system-x86_64")
	w, ctx := newWorld(t), context.Background()
	ca, cb := w.pair("", machineOfWeb+"runbooks: {programs: [{dir}/note, /usr/bin/test]}\n")
	a, b := w.runPair(ca, cb)
	a.awaitState("web", control.StateSynced)
	a.write("web/root", 1, 0, 4096)
	awaitLevel(a, b, "web")
	w.program(`exec qemu-system-x86_64 "$@"`)
	quiet := func(control.Progress) {}

	plan, err := b.PlanRunbook(ctx, w.book("test"))
	if err != nil || plan.Expected != nil || !slices.Equal(plan.Groups, []string{"web"}) || len(plan.Steps) != 6 {
		t.Fatalf("plan: %+v, %v", plan, err)
	}
	run, err := b.RunRunbook(ctx, w.book("test"), quiet)
	if !fault.Is(err, fault.RunAsks) || !strings.Contains(err.Error(), "Does it look well?") {
		t.Fatalf("drill: %+v, %v", run, err)
	}
	if got := stepStates(run); got != "asking: done done asking waiting waiting waiting" {
		t.Errorf("where it asks: %s", got)
	}
	if _, err := b.TestFailover(ctx, control.DrillRequest{Group: "web", At: "latest"}, quiet); !fault.Is(err, fault.OperationBusy) {
		t.Errorf("a drill of a machine that a run holds: %v", err)
	}
	b.stop() // the drill's machine goes with it
	b = w.run(cb)
	b.awaitState("web", control.StateReceiving)
	b.nothingLeft()
	if _, err := b.ResumeRun(ctx, control.RunRequest{Run: run.Run}, quiet); !fault.Is(err, fault.RunAsks) {
		t.Fatalf("resumed: %v", err)
	}
	if _, err := b.ResumeRun(ctx, control.RunRequest{Run: run.Run, Step: 3, Answer: "done"}, quiet); !fault.Is(err, fault.Usage) {
		t.Errorf("a wrong answer: %v", err)
	}
	done, err := b.ResumeRun(ctx, control.RunRequest{Run: run.Run, Step: 3, Answer: "yes"}, quiet)
	if err != nil || stepStates(done) != "done: done done done done done done" || done.RTO == nil {
		t.Fatalf("answered: %s, %v", stepStates(done), err)
	}
	b.nothingLeft()
	// The script's check found it done when the drill was renewed.
	if got := w.notes(); got != "test shop\ntold shop\n" {
		t.Errorf("programs ran: %q", got)
	}

	a.stop()
	q := w.book("unplanned")
	plan, err = b.PlanRunbook(ctx, q)
	if err != nil || len(plan.Refused) == 0 || len(plan.Failover) != 1 || !plan.Failover[0].Loss.Known || plan.Expected == nil {
		t.Fatalf("plan of the failover: %+v, %v", plan, err)
	}
	if _, err := b.RunRunbook(ctx, q, quiet); !fault.Is(err, fault.NotFenced) {
		t.Errorf("without force: %v", err)
	}
	q.Force, q.Expect = true, "other"
	if _, err := b.RunRunbook(ctx, q, quiet); !fault.Is(err, fault.PlanStale) {
		t.Errorf("another plan: %v", err)
	}
	q.Expect = plan.Digest
	run, err = b.RunRunbook(ctx, q, quiet)
	if !fault.Is(err, fault.RunAsks) {
		t.Fatalf("failover: %v", err)
	}
	t.Cleanup(b.endMachine)
	done, err = b.ResumeRun(ctx, control.RunRequest{Run: run.Run, Step: 3, Answer: "yes"}, quiet)
	if err != nil || stepStates(done) != "done: done done done done" {
		t.Fatalf("failover answered: %s, %v", stepStates(done), err)
	}
	if p := b.promotion(); !p.Order.Forced || p.Order.Operator != "tester" {
		t.Errorf("promotion %+v", p)
	}
	if all, err := b.Runs(ctx); err != nil || len(all) != 2 || all[1].Mode != "unplanned" {
		t.Errorf("runs %+v, %v", all, err)
	}
	if _, err := b.ResumeRun(ctx, control.RunRequest{Run: run.Run}, quiet); !fault.Is(err, fault.RunOver) {
		t.Errorf("a run that is over: %v", err)
	}
	if _, err := b.PlanRunbook(ctx, w.book("planned")); err != nil {
		t.Errorf("starting where the group is primary: %v", err)
	}
}

func TestAWrongRunbookIsRefusedBeforeAnything(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, cb := w.pair("", machineOfWeb)
	s := newSite(cb, Options{}.withDefaults())
	for text, code := range map[string]fault.Code{
		"runbook: [": fault.RunbookSyntax,
		"runbook: x\nmachines: {a: web}\nbot: []\n":                                                                                   fault.RunbookKey,
		"runbook: x\nmachines: {a: web}\nboot: [{name: b, steps: [{strat: a}]}]\n":                                                    fault.RunbookStep,
		"runbook: x\nmachines: {a: web}\nboot: [{name: b, steps: [{start: c}]}]\n":                                                    fault.RunbookMachine,
		"runbook: x\nmachines: {a: mail}\nboot: [{name: b, steps: [{start: a}]}]\n":                                                   fault.RunbookGroup,
		"runbook: x\nmachines: {a: web}\nboot: [{name: b, after: c, steps: [{start: a}]}, {name: c, after: b, steps: [{ping: x}]}]\n": fault.RunbookCycle,
		"runbook: x\nmachines: {a: web}\nboot: [{name: b, steps: [{script: [/bin/sh]}]}]\n":                                           fault.RunbookProgram,
		"runbook: x\nmachines: {a: default/web}\nboot: [{name: b, steps: [{tcp: x}]}]\n":                                              fault.RunbookValue,
	} {
		_, err := s.CheckRunbook(context.Background(), control.RunbookRequest{File: "x.yml", Text: []byte(text)})
		if !fault.Is(err, code) || fault.Of(err).Evidence == nil || !strings.Contains(err.Error(), "line ") {
			t.Errorf("%q: %v, want %s", text, err, code)
		}
	}
	for id, want := range map[string]fault.Code{"x": fault.RunUnknown, "../x": fault.RunUnknown} {
		if _, err := s.RunDetail(context.Background(), id); !fault.Is(err, want) {
			t.Errorf("run %q: %v", id, err)
		}
	}
}
