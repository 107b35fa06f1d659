package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt/qemu"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/testbed/guest"
	"github.com/novacron/afterimage/testbed/scale"
)

// startWithAgent boots a guest with a real agent on a file system of its own.
func startWithAgent(t *testing.T, d *daemon) (g *guest.Guest, agent string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), guestPatience)
	defer cancel()
	disk := d.path("disk.raw")
	if out, code := tool("mkfs.ext4", "-q", "-b", "4096", "-J", "size=4", "-E", "lazy_itable_init=0,lazy_journal_init=0", disk, fmt.Sprintf("%dK", guestDisk>>10)); code != 0 {
		t.Fatalf("make file system: %s", out)
	}
	image, err := guest.Build(ctx)
	if err == nil {
		image, err = guest.WithAgent(ctx, image)
	}
	if errors.Is(err, guest.ErrNoKernel) || errors.Is(err, guest.ErrNoAgent) {
		scale.Missing(t, err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	agent = d.path("qga")
	g, err = guest.Start(ctx, guest.Config{Image: image, Dir: d.dir, Disks: []guest.Disk{{Path: disk, Node: "disk", Discard: true}}, Extra: guest.AgentArgs(agent)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	if _, err := g.Wait(ctx, "ready "); err != nil {
		t.Fatal(err)
	}
	for { // the agent comes up a moment after
		one, stop := context.WithTimeout(ctx, 2*time.Second)
		_, err := qemu.Agent{Socket: agent}.Thaw(one)
		stop()
		if err == nil {
			return g, agent
		}
		if ctx.Err() != nil {
			t.Fatalf("the agent does not answer: %v", err)
		}
	}
}

// unreplayed reports whether a file system needs its journal replayed, and what e2fsck
// finds that must not write.
func unreplayed(t *testing.T, image []byte) (needsRecovery bool, clean string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	if err := writeSparse(path, image); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(path)
	head, code := tool("dumpe2fs", "-h", path)
	if code != 0 {
		t.Fatalf("dumpe2fs: %s", head)
	}
	if out, code := tool("e2fsck", "-f", "-n", path); code != 0 {
		clean = out
	}
	return strings.Contains(head, "needs_recovery"), clean
}

// An application mark of a machine with a real agent, while it writes files: the file
// system there is clean without its journal being replayed, which no other point of
// the load is. A hook that hangs is cut off, and the guest goes on.
func TestPromise4AppMarkIsCleanWithoutReplay(t *testing.T) {
	scale.Guest(t)
	scale.Tools(t, "mkfs.ext4", "e2fsck", "dumpe2fs")
	d := newDaemon(t, "a")
	g, agent := startWithAgent(t, d)
	configure := func(quiesce string) {
		d.configure(fmt.Sprintf(`site: a
data: %s
groups:
  - name: g
    role: primary
    qemu: {qmp: %s, watchdog_qmp: %s}
    stall_budget: 20s
    quiesce: {agent: %s%s}
    volumes: [{name: disk, size: %d, qemu: {node: disk}}]
`, d.dir, g.Config.QMPPath(0), g.Config.QMPPath(1), agent, quiesce, int64(guestDisk)))
	}
	configure(", frozen: 1m") // the guest may be emulated
	d.startSynced()
	ctx, cancel := context.WithTimeout(t.Context(), guestPatience)
	defer cancel()
	if _, err := g.Ask(ctx, fmt.Sprintf("files slots=%d", guestSlots), "stamped"); err != nil {
		t.Fatal(err)
	}
	more := func() {
		t.Helper()
		if _, err := g.WaitStamped(ctx, g.Stamped()+2); err != nil {
			t.Fatal(err)
		}
	}
	const marks = 3
	for i := range marks {
		more()
		name := fmt.Sprintf("quiet%d", i)
		low := g.Stamped()
		began := time.Now()
		if _, err := d.api.Mark(ctx, control.MarkRequest{Group: "g", Name: name, App: true}); err != nil {
			t.Fatal(err)
		}
		took := time.Since(began)
		images, p, err := d.view("name:" + name)
		if err != nil {
			t.Fatal(err)
		}
		dirty, complaint := unreplayed(t, images["disk"])
		if dirty || complaint != "" {
			t.Errorf("%s, #%d: needs its journal: %v; e2fsck -fn: %s", name, p.Seq, dirty, complaint)
		}
		if err := judgeImage(t.TempDir(), images["disk"], said{low: low, high: g.Stamped() + 1}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		t.Logf("%s took %v at #%d, after %d files", name, took.Round(time.Millisecond), p.Seq, low)
	}
	more()
	images, _, err := d.view("latest")
	if err != nil {
		t.Fatal(err)
	}
	if dirty, _ := unreplayed(t, images["disk"]); !dirty {
		t.Error("a point of a mounted file system needs no journal: the judgement cannot fail")
	}
	d.stop()
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	configure(fmt.Sprintf(", before: [%s, 1h], timeout: 300ms", sleep))
	d.startSynced()
	if p, err := d.api.Mark(ctx, control.MarkRequest{Group: "g", Name: "never", App: true}); err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Errorf("a hook that hangs: %+v, %v", p, err)
	}
	more()
	d.stop()
	configure(", frozen: 1ms") // less than a freeze takes
	d.startSynced()
	if p, err := d.api.Mark(ctx, control.MarkRequest{Group: "g", Name: "hasty", App: true}); err == nil || !strings.Contains(err.Error(), "frozen") {
		t.Errorf("a freeze beyond its limit: %+v, %v", p, err)
	}
	more() // it was thawed
	scale.Counted(t, "app-marks", marks, 3)
}
