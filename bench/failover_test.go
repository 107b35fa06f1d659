package bench

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	product "github.com/novacron/afterimage/site"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/testbed/scale"
)

// daemonConfig makes the test's own program a daemon.
const daemonConfig = "AFTERIMAGE_BENCH_DAEMON"

// runDaemon is the site of a configuration until SIGTERM.
func runDaemon(path string) error {
	c, err := config.Load(path)
	if err != nil {
		return err
	}
	s, err := product.Open(c, product.Options{})
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := s.Run(ctx); err != nil {
		return err
	}
	return s.Close()
}

// A small run: every figure is there with its target, real machines are started from
// journals that a daemon has just opened, and nothing is left behind.
func TestFailoverMeasures(t *testing.T) {
	if scale.Race {
		t.Skip("it measures, and takes as long as a guest's boot")
	}
	scale.Tools(t, "qemu-system-x86_64")
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "ai")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	var steps []string
	r, err := Failover(ctx, FailoverOptions{Dir: dir, Records: 500, Machines: 2, Rounds: 1, DiskBytes: 64 << 20, NoAgent: true, Differ: 4 << 20,
		Daemon: func(ctx context.Context, path string) *exec.Cmd {
			c := exec.CommandContext(ctx, os.Args[0])
			c.Env = append(os.Environ(), daemonConfig+"="+path)
			return c
		},
		Progress: func(step string, _, _ int) { steps = append(steps, step) }})
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var flat map[string]any
	if err := json.Unmarshal(b, &flat); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"rto_to_power_on_seconds", "rto_to_power_on_of_ten_seconds"} {
		if v, ok := flat[name].(float64); !ok || v <= 0 || r.Figures[name].Target == nil {
			t.Errorf("%s: %v", name, flat[name])
		}
	}
	if !slices.Equal(r.Names(), []string{"rto_to_power_on_seconds", "rto_to_power_on_of_ten_seconds", "reprotect_wire_bytes_per_byte_that_differs"}) || len(steps) == 0 {
		t.Errorf("figures %v, steps %v", r.Names(), steps)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	if out, _ := exec.Command("ps", "-eo", "args").Output(); strings.Contains(string(out), dir+"/") {
		t.Error("a process of the run goes on")
	}
}
