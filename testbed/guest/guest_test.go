package guest

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

	"github.com/novacron/afterimage/testbed/scale"
	"github.com/novacron/afterimage/testbed/stamp"
)

const slots = 2048

// boot starts a guest on disks and waits until it is ready.
func boot(t *testing.T, ctx context.Context, c Config) *Guest {
	t.Helper()
	dir, err := os.MkdirTemp("", "ai")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	c.Dir = dir
	began := time.Now()
	g, err := Start(ctx, c)
	if errors.Is(err, ErrNoKernel) {
		scale.Missing(t, err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	ready, err := g.Wait(ctx, "ready ")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s after %v under %s", ready, time.Since(began).Round(time.Millisecond), g.Config.Accel)
	return g
}

func rawDisk(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(16 << 20); err != nil {
		t.Fatal(err)
	}
	return path
}

// report is the host's own look at a disk.
func report(t *testing.T, path string, volume uint32) stamp.Report {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := stamp.Scan(f, volume, slots)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func ask(t *testing.T, ctx context.Context, g *Guest, order, prefix string) string {
	t.Helper()
	line, err := g.Ask(ctx, order, prefix)
	if err != nil {
		t.Fatal(err)
	}
	return line
}

// TestGuestStampsWhatItSays lets a guest write, looks at its disks from outside,
// kills it in the middle of a load, and lets a second guest find what is there.
func TestGuestStampsWhatItSays(t *testing.T) {
	scale.Guest(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	disks := []Disk{{Path: rawDisk(t)}, {Path: rawDisk(t)}}

	g := boot(t, ctx, Config{Disks: disks})
	ask(t, ctx, g, "ping", "pong")
	ask(t, ctx, g, "stamp count=50 slots=2048", "stamped 50")
	if line := ask(t, ctx, g, "wait", "waited"); line != "waited last=50" {
		t.Errorf("the guest says %q", line)
	}
	for i, d := range disks {
		if r := report(t, d.Path, uint32(i)); !r.Whole(50) || r.Max != 50 {
			t.Errorf("volume %d after 50 stamps: %v", i, r)
		}
	}
	if err := g.Send(ctx, "stamp slots=2048"); err != nil {
		t.Fatal(err)
	}
	if _, err := g.WaitStamped(ctx, 200); err != nil {
		t.Fatal(err)
	}
	g.Kill()
	said := g.Stamped()
	var reached [2]uint64
	for i, d := range disks {
		r := report(t, d.Path, uint32(i))
		if !r.Whole(said) {
			t.Errorf("volume %d after kill -9 at stamp %d: %v", i, said, r)
		}
		reached[i] = r.Max
	}
	if reached[0] < reached[1] || reached[0] > reached[1]+1 {
		t.Errorf("volumes reached %v: stamp k is on volume 0 before it goes to volume 1", reached)
	}

	g = boot(t, ctx, Config{Disks: disks, Orders: "verify slots=2048;stamp slots=2048 count=1;wait"})
	line, err := g.Wait(ctx, "verified ")
	if err != nil {
		t.Fatal(err)
	}
	if v, err := ParseVerified(line); err != nil || !v.Whole(said) || v.Max != reached[1] {
		t.Errorf("the second guest finds %+v, %v; want all up to %d", v, err, reached[1])
	}
	if _, err := g.WaitStamped(ctx, reached[0]+1); err != nil {
		t.Errorf("a load goes on after the highest stamp: %v", err)
	}
}

// TestGuestSeesAnAttack plants damage that verify must find.
func TestGuestSeesAnAttack(t *testing.T) {
	scale.Guest(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	path := rawDisk(t)
	g := boot(t, ctx, Config{Disks: []Disk{{Path: path}}, Orders: "stamp count=100 slots=2048;wait"})
	if v, err := g.Verify(ctx, 100, slots); err != nil || !v.Whole(100) {
		t.Fatalf("before the attack: %+v, %v", v, err)
	}
	if v, err := g.Verify(ctx, 101, slots); err != nil || v.Whole(101) || v.Missing != 1 {
		t.Errorf("a stamp that was never written: %+v, %v", v, err)
	}
	ask(t, ctx, g, "attack offset=40960 length=40960 seed=3", "attacked bytes=40960")
	v, err := g.Verify(ctx, 100, slots)
	if want := (Verified{Max: 100, Count: 90, Torn: 10, Missing: 10}); err != nil || v != want {
		t.Errorf("after the attack: %+v, %v, want %+v", v, err, want)
	}
	if _, err := g.Ask(ctx, "stamp rate=fast", "stamped"); !errors.Is(err, ErrConsole) || !strings.Contains(err.Error(), "rate=fast") {
		t.Errorf("an order that makes no sense: %v", err)
	}
	ask(t, ctx, g, "poweroff", "bye")
	if err := g.WaitExit(ctx); err != nil {
		t.Errorf("after poweroff: %v", err)
	}
	if _, err := g.Wait(ctx, "more"); !errors.Is(err, ErrGone) {
		t.Errorf("a guest that is gone: %v", err)
	}
	if r := report(t, path, 0); r.Torn != 10 || r.Count != 90 {
		t.Errorf("the host finds %v", r)
	}
}

// TestGuestRunsFromNBD boots on a disk that a server of QEMU's own serves.
func TestGuestRunsFromNBD(t *testing.T) {
	scale.Guest(t)
	scale.Tools(t, "qemu-nbd")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "ai")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path, sock := rawDisk(t), filepath.Join(dir, "n.sock")
	server := exec.Command("qemu-nbd", "-f", "raw", "-k", sock, "-x", "vm/disk", "-t", path)
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { server.Process.Kill(); server.Wait() }()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for _, err := os.Stat(sock); err != nil; _, err = os.Stat(sock) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("qemu-nbd does not listen")
		}
	}
	g := boot(t, ctx, Config{Disks: []Disk{{Path: "nbd+unix:///vm/disk?socket=" + sock}}})
	ask(t, ctx, g, "stamp count=20 slots=2048", "stamped 20")
	ask(t, ctx, g, "poweroff", "bye")
	if err := g.WaitExit(ctx); err != nil {
		t.Error(err)
	}
	if r := report(t, path, 0); !r.Whole(20) || r.Max != 20 {
		t.Errorf("the host finds %v", r)
	}
}

// A guest starts the system of a disk: its agent runs once all that lies there was read.
func TestSystemDisk(t *testing.T) {
	scale.Tools(t, "qemu-system-x86_64", "mke2fs")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	path := filepath.Join(t.TempDir(), "system.raw")
	err := SystemDisk(ctx, path, 1<<30)
	if errors.Is(err, ErrNoAgent) {
		scale.Missing(t, err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	want := int64(0)
	for _, f := range filesOfAStart() {
		want += int64(len(f.data))
	}
	g := boot(t, ctx, Config{Disks: []Disk{{Path: path}}})
	if got := ask(t, ctx, g, SystemOrder, "started "); got != fmt.Sprintf("started bytes=%d", want) {
		t.Fatalf("%s, want %d", got, want)
	}
}
