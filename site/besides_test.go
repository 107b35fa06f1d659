package site

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/novacron/afterimage/site/control"
)

// aside pauses the group web until resume.
func (r *running) aside(reason string) (resume func()) {
	r.t.Helper()
	if _, err := r.Pause(context.Background(), control.PauseRequest{Group: "web", Seconds: 3600, Reason: reason}); err != nil {
		r.t.Fatal(err)
	}
	return func() {
		r.t.Helper()
		if _, err := r.Resume(context.Background(), control.ResumeRequest{Group: "web"}); err != nil {
			r.t.Fatal(err)
		}
	}
}

// awaitInstant waits for a point of an instant after a time.
func (r *running) awaitInstant(after time.Time) {
	r.t.Helper()
	await(r.t, "a cycle is closed", func() bool {
		spans := r.points("web").Spans
		return len(spans) > 0 && spans[len(spans)-1].First.Time.After(after)
	})
}

// awaitKnown waits until the newest point holds all that the guest wrote before, in a group
// that is in a state while it is captured: a tap that had let go of a write, on a machine
// that is busy, has read it by then.
func (r *running) awaitKnown(state string) {
	r.t.Helper()
	if state == control.StateCycles {
		r.awaitInstant(time.Now())
	}
	r.awaitState("web", state)
}

// newestIsDisks holds the newest point to what the disks hold while nobody writes.
func (w *domainWorld) newestIsDisks(r *running) {
	w.t.Helper()
	root, data := w.restored(r, "latest")
	for disk := range 2 { // or qemu-img does not see what QEMU keeps of the image in its memory
		w.virsh("qemu-monitor-command", "web", "--hmp", fmt.Sprintf("qemu-io -d /machine/peripheral/virtio-disk%d/virtio-backend flush", disk))
	}
	live := strings.Fields(w.virsh("domblklist", "web"))
	for target, got := range map[string][]byte{"vda": root, "vdb": data} {
		at := -1
		for i, word := range live {
			if word == target {
				at = i + 1
			}
		}
		raw := filepath.Join(w.dir, "raw")
		if out, err := exec.Command("qemu-img", "convert", "-U", "-O", "raw", live[at], raw).CombinedOutput(); err != nil {
			w.t.Fatalf("qemu-img: %v\n%s", err, out)
		}
		want, err := os.ReadFile(raw)
		if err != nil {
			w.t.Fatal(err)
		}
		if !bytes.Equal(want, got) {
			w.t.Errorf("the newest point differs from %s: %d and %d bytes", target, len(got), len(want))
		}
	}
}
