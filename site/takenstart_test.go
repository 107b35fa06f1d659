package site

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/testbed/scale"
)

// The taker dies when the group is its own and the machine is still to be started: the
// next life starts it, no life after that does it again, and the report is there.
func TestATakerThatDiesBeforeItsMachineStartsItOnce(t *testing.T) {
	t.Parallel()
	scale.Tools(t, "qemu-system-x86_64")
	w, ctx := newWorld(t), context.Background()
	ca, cb := w.pair("", machineOfWeb)
	w.program(`echo started >> "` + w.dir + `/starts"; exec qemu-system-x86_64 "$@"`)
	starts := func() int {
		text, _ := os.ReadFile(filepath.Join(w.dir, "starts")) // none yet
		return strings.Count(string(text), "started")
	}
	a, b := w.runPair(ca, cb)
	a.awaitState("web", control.StateSynced)
	b.stop()
	died := make(chan struct{})
	b = w.runWith(cb, Options{passed: func(step string) {
		if step == "machine is to be started" {
			close(died)
			runtime.Goexit()
		}
	}})
	a.write("web/root", 0x11, 0, 4096)
	awaitLevel(a, b, "web")
	if _, err := a.Handover(ctx, control.HandoverRequest{Group: "web", Operator: "tester"}, quietly); err != nil {
		t.Fatal(err)
	}
	<-died
	b.awaitRole("web", recovery.Primary, control.StateSynced)
	if n := starts(); n != 0 {
		t.Fatalf("started %d times before it died", n)
	}
	b.stop()
	b = w.run(cb)
	reported := func() int {
		rs, err := b.Reports(ctx)
		n := 0
		for _, r := range rs {
			if r.Kind == "handover" && r.Held {
				n++
			}
		}
		if err != nil {
			return -1
		}
		return n
	}
	await(t, "the machine runs and it is reported", func() bool { return starts() == 1 && reported() == 1 })
	b.stop()
	b = w.run(cb)
	b.awaitRole("web", recovery.Primary, control.StateSynced)
	b.endMachine()
	b.stop()
	b = w.run(cb)
	b.awaitRole("web", recovery.Primary, control.StateSynced)
	b.stop()
	if n := starts(); n != 1 {
		t.Errorf("started %d times", n)
	}
}
