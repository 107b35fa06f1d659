package site

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/novacron/afterimage/recovery"
)

// A relative name is that of a file in the directory of the process which has it open, and
// of nothing else.
func TestARelativeDiskIsWhatItsProcessHasOpen(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	f, err := os.Create("disk.img")
	if err != nil {
		t.Fatal(err)
	}
	if got := openedBy(os.Getpid(), "disk.img"); got != filepath.Join(dir, "disk.img") {
		t.Errorf("open: %q", got)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"disk.img", "gone.img"} { // one that is there, and is not what it has open
		if got := openedBy(os.Getpid(), name); got != "" {
			t.Errorf("%s: %q", name, got)
		}
	}
	for _, name := range []string{"disk.img", "nbd://server/x", `json:{"driver":"raw"}`, "/abs.img", ""} { // nobody runs there
		if got := openedAt(filepath.Join(dir, "qmp"), name); got != name {
			t.Errorf("%s: %q", name, got)
		}
	}
}

// A disk that no lock of this host tells of leaves the question to the socket and the
// processes, and what is signed then does not say that nobody has it open.
func TestDisksWithoutALockDoNotKeepAMachineFromBeingOff(t *testing.T) {
	w, r := tappedAway(t, oneTapped)
	l, _ := r.watched()
	look := func() (string, error) { return l.plainOff(t.Context(), l.cfg.Taps()[0]) }
	lies := func(path string) {
		t.Helper()
		if err := l.j.Remember(driveKey(l.j.Parts()[0].ID), recovery.Drive{Path: path, Format: "raw"}); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(w.dir) // a file of that name here is another one
	if err := os.WriteFile("disk.img", make([]byte, 512), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"disk.img", "gone.img", "nbd://server/x", "rbd:pool/x", `json:{"driver":"raw"}`, filepath.Join(w.dir, "gone.img")} {
		lies(path)
		if how, err := look(); err != nil || strings.Contains(how, "nobody has its disks") || !strings.Contains(how, "disk of root open cannot be told") {
			t.Errorf("%s: %q, %v", path, how, err)
		}
	}
	l.lies(t, w.dir)
	if how, err := look(); err != nil || !strings.Contains(how, "nobody has its disks open") {
		t.Errorf("one that can be asked for: %q, %v", how, err)
	}
	lies(filepath.Join(w.dir, "root.raw", "x")) // not gone: what cannot be looked at
	if _, err := look(); err == nil {
		t.Error("what cannot be looked at counts as off")
	}
}
