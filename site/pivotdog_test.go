package site

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt/qemu"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/testbed/scale"
)

// watchedSite is the variable that has the watchdog of a site which is a process of its own be a
// real one. That of a test's own process would end all tests when the machine is slow.
const watchedSite = "AFTERIMAGE_TEST_WATCHDOG"

// guardDog is the watchdog process of a site.
func guardDog(args []string) int {
	f := flag.NewFlagSet(WatchdogCommand, flag.ContinueOnError)
	pid, stall := f.Int("pid", 0, ""), f.Duration("stall", 0, "")
	err := f.Parse(args)
	if err == nil && os.Getenv(watchedSite) != "" {
		err = Watchdog(context.Background(), *pid, *stall, os.Stdin, os.Stderr)
	} else if err == nil {
		_, err = io.Copy(io.Discard, os.Stdin)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// wrote is how many writes of a machine's guest were answered.
func wrote(t *testing.T, m qemu.Monitor) (n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var disks []struct {
		Stats struct {
			Writes int `json:"wr_operations"`
		} `json:"stats"`
	}
	if err := m.Execute(ctx, "query-blockstats", nil, &disks); err != nil {
		t.Fatal(err)
	}
	for _, d := range disks {
		n += d.Stats.Writes
	}
	return n
}

// A site that hangs, rather than dies, does not hold the guest whose disks became its
// machine's own: the watchdog cuts the tap. Once the site goes on it catches up.
func TestAHungSiteDoesNotHoldTheGuestOfLocalDisks(t *testing.T) {
	scale.Tools(t, "qemu-system-x86_64")
	t.Setenv(watchedSite, "real")
	w, ctx := newWorld(t), context.Background()
	// The budget is long: a watchdog that is held up itself would end the site instead.
	m, k := w.stampedMortal("  stall_budget: 2s\n" + stamper)
	m.awaitRole(recovery.Uncommitted, control.StateSynced)
	dir := filepath.Join(w.dir, "images0")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if moved, err := m.api.MoveDisks(ctx, control.MoveRequest{Group: "web", To: dir, Pivot: true}, quietly); err != nil || moved.Unprotected != "" {
		t.Fatalf("moved: %+v, %v", moved, err)
	}
	k.goesOn()

	signal := func(s syscall.Signal) {
		if err := m.cmd.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
	}
	gaps := func() int {
		ps, err := m.api.Points(ctx, control.PointsQuery{Group: "web"})
		if err != nil {
			return 0 // it is busy with what has just happened to it
		}
		return len(ps.Gaps)
	}
	known := gaps()
	mon, err := qemu.DialQMP(ctx, k.own) // the site cannot be in the middle of using it then
	if err != nil {
		t.Fatal(err)
	}
	signal(syscall.SIGSTOP)
	before := wrote(t, mon)
	await(t, "the guest writes though the site hangs", func() bool { return wrote(t, mon) > before+100 })
	mon.Close()
	if m.dead() {
		t.Error("the watchdog ended the site, and did not cut the tap")
	}
	signal(syscall.SIGCONT)
	await(t, "the gap is known", func() bool { return gaps() > known })
	k.goesOn()
	if !k.level() {
		t.Error("the disks are not the machine's own any more")
	}
}
