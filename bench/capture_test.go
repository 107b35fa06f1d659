package bench

import (
	"encoding/json"
	"os"
	"testing"
	"time"

	"github.com/novacron/afterimage/testbed/scale"
)

// A short run gives every figure, in one flat object, and leaves nothing behind.
// The figures themselves are for a quiet machine.
func TestCaptureGivesEveryFigure(t *testing.T) {
	scale.Lasting(t, "it measures")
	scale.Tools(t, "fio", "nbdkit", "qemu-storage-daemon")
	// Sockets want a short path.
	dir, err := os.MkdirTemp("", "ai")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	r, err := Capture(t.Context(), CaptureOptions{Dir: dir, Span: 100 * time.Millisecond, Rounds: 1, DiskBytes: 16 << 20})
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var flat map[string]any
	if err := json.Unmarshal(text, &flat); err != nil {
		t.Fatal(err)
	}
	for _, g := range captureGoals {
		if v, ok := flat[g.name].(float64); !ok || v <= 0 {
			t.Errorf("%s is %v", g.name, flat[g.name])
		}
		if f := r.Figures[g.name]; (f.Target != nil) != (g.want != "") {
			t.Errorf("%s: target %v", g.name, f.Target)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
