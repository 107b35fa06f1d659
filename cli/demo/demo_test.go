package demo

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/novacron/afterimage/testbed/scale"
)

// program builds afterimage as a user would run it.
func program(t *testing.T) string {
	t.Helper()
	exe := filepath.Join(t.TempDir(), "afterimage")
	out, err := exec.Command("go", "build", "-o", exe, "github.com/novacron/afterimage/cli/afterimage").CombinedOutput()
	if err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return exe
}

// tell runs the demo and fails with its lines and the sites' logs.
func tell(t *testing.T, o Options) Result {
	t.Helper()
	dir, err := os.MkdirTemp("", "aidemo") // sockets' paths must stay short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	ctx, stop := context.WithTimeout(t.Context(), 4*time.Minute)
	defer stop()
	o.Executable, o.Dir, o.Progress = program(t), dir, t.Output()
	r, err := Run(ctx, o)
	if err != nil {
		for _, site := range []string{"a", "b"} {
			log, _ := os.ReadFile(filepath.Join(dir, site, "daemon.log"))
			t.Logf("log of site %s:\n%s", site, log)
		}
		t.Fatal(err)
	}
	for _, f := range []string{r.Report, r.Plot} {
		if st, err := os.Stat(f); err != nil || st.Size() == 0 {
			t.Errorf("%s: %v", f, err)
		}
	}
	if !r.Verified || r.Lost != r.ReportedLoss || r.Lost == 0 || r.Writes < 1000 || len(r.Checks) != 12 {
		t.Errorf("%+v", r)
	}
	return r
}

// Promises 3, 4, 9 and 11 as a user meets them: the demo's claims hold, with an
// embedded volume.
func TestDemo(t *testing.T) {
	tell(t, Options{Load: 5 * time.Second})
}

// The same with a real guest: tapped while it runs, killed with its daemon, booted at
// the other site from its history, every stamp up to the reported point in it; and
// the moment before the attack by name, by time and by seq.
func TestDemoGuest(t *testing.T) {
	scale.Guest(t)
	r := tell(t, Options{Load: 5 * time.Second, QEMU: true})
	t.Logf("RTO %.2f s, %d of %d writes lost, %d reported", r.RTO, r.Lost, r.Writes, r.ReportedLoss)
}
