package libvirtd

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/novacron/afterimage/testbed/scale"
)

// virsh is the independent judge: it shares no code with our clients.
func TestADaemonOfItsOwnRunsMachines(t *testing.T) {
	scale.Tools(t, "virsh")
	var dir string
	var pid int
	t.Run("life", func(t *testing.T) {
		d := Start(t)
		dir, pid = d.Dir, d.cmd.Process.Pid
		virsh := func(args ...string) string {
			t.Helper()
			out, err := exec.Command("virsh", append([]string{"-c", d.URI}, args...)...).CombinedOutput()
			if err != nil {
				t.Fatalf("virsh %v: %v\n%s", args, err, out)
			}
			return strings.TrimSpace(string(out))
		}
		xml := d.Path("m.xml")
		if err := os.WriteFile(xml, []byte(d.Domain("m", d.Image(t, "a.qcow2", 1<<20))), 0o600); err != nil {
			t.Fatal(err)
		}
		virsh("create", xml)
		if got := virsh("domstate", "m"); got != "running" {
			t.Fatalf("state %q", got)
		}
		if got := virsh("list", "--all", "--name"); got != "m" {
			t.Fatalf("the daemon knows %q: it is not the test's own", got)
		}
	})
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("libvirtd still runs: %v", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left: %v", dir, err)
	}
	if out, err := exec.Command("pgrep", "-f", dir).Output(); err == nil {
		t.Errorf("processes are left: %s", out)
	}
}
