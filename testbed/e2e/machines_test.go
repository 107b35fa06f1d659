package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt/cbttest"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/testbed/guest"
	"github.com/novacron/afterimage/testbed/scale"
	"github.com/novacron/afterimage/testbed/stamp"
)

// ahead and behind are two machines of one host: behind writes stamp K only once ahead
// has told that K is on its disk.
var machineNames = []string{"ahead", "behind"}

// machinesSlots is how many stamps each of their disks holds.
const machinesSlots = 128

// machines is a site that captures two machines as one group.
type machines struct {
	*daemon
	image  guest.Image
	guests map[string]*guest.Guest
	dirs   map[string]string
	last   uint64 // stamp of both
	budget string
	ahead  string // the QMP socket of the first that the site gets; its own if empty
}

func newMachines(t *testing.T) *machines {
	t.Helper()
	scale.Guest(t)
	x := &machines{daemon: newDaemon(t, "a"), guests: map[string]*guest.Guest{}, dirs: map[string]string{}, budget: "20s"}
	ctx, cancel := context.WithTimeout(t.Context(), guestPatience)
	defer cancel()
	var err error
	if x.image, err = guest.Build(ctx); errors.Is(err, guest.ErrNoKernel) {
		scale.Missing(t, err.Error())
	} else if err != nil {
		t.Fatal(err)
	}
	for _, name := range machineNames {
		dir, err := os.MkdirTemp("", "ai")
		if err != nil {
			t.Fatal(err)
		}
		x.dirs[name] = dir
		t.Cleanup(func() { os.RemoveAll(dir) })
		if err := os.WriteFile(x.disk(name), make([]byte, machinesSlots*stamp.Size), 0o600); err != nil {
			t.Fatal(err)
		}
		x.boot(name)
	}
	for _, name := range machineNames {
		x.ready(name)
	}
	return x
}

func (x *machines) disk(name string) string { return x.dirs[name] + "/disk.raw" }

func (x *machines) boot(name string) {
	x.t.Helper()
	ctx, cancel := context.WithTimeout(x.t.Context(), guestPatience)
	defer cancel()
	g, err := guest.Start(ctx, guest.Config{Image: x.image, Dir: x.dirs[name], Disks: []guest.Disk{{Path: x.disk(name), Node: "disk"}}})
	if err != nil {
		x.t.Fatal(err)
	}
	x.t.Cleanup(func() { g.Close() })
	x.guests[name] = g
}

func (x *machines) ready(name string) {
	x.t.Helper()
	ctx, cancel := context.WithTimeout(x.t.Context(), guestPatience)
	defer cancel()
	if _, err := x.guests[name].Wait(ctx, "ready"); err != nil {
		x.t.Fatal(err)
	}
}

// capture configures the site.
func (x *machines) capture(how string) {
	x.t.Helper()
	text := fmt.Sprintf("site: a\ndata: %s\ngroups:\n  - name: g\n    role: primary\n    stall_budget: %s\n    capture: %s\n    machines:\n", x.dir, x.budget, how)
	volumes := "    volumes:\n"
	for _, name := range machineNames {
		c := guest.Config{Dir: x.dirs[name]}
		qmp := c.QMPPath(0)
		if name == "ahead" && x.ahead != "" {
			qmp = x.ahead
		}
		text += fmt.Sprintf("      - {name: %s, qemu: {qmp: %q, watchdog_qmp: %q}}\n", name, qmp, c.QMPPath(1))
		volumes += fmt.Sprintf("      - {name: %s, size: %d, machine: %s, qemu: {node: disk}}\n", name, machinesSlots*stamp.Size, name)
	}
	x.configure(text + volumes)
}

// stamp makes one machine write the next stamp, and returns once it is on its disk.
func (x *machines) stamp(ctx context.Context, name string, k uint64) error {
	g := x.guests[name]
	err := g.Send(ctx, fmt.Sprintf("stamp slots=%d first=%d count=1", machinesSlots, k))
	if err == nil {
		_, err = g.WaitStamped(ctx, k)
	}
	if err == nil {
		_, err = g.Ask(ctx, "wait", "waited")
	}
	return err
}

// load stamps until the returned func is called, which waits for both machines to have
// the same.
func (x *machines) load() (stop func()) {
	ctx, cancel := context.WithCancel(x.t.Context())
	done := make(chan error, 1)
	go func() {
		for ctx.Err() == nil {
			for _, name := range machineNames {
				if err := x.stamp(x.t.Context(), name, x.last+1); err != nil {
					done <- fmt.Errorf("stamp %d at %s: %w", x.last+1, name, err)
					return
				}
			}
			x.last++
		}
		done <- nil
	}()
	return func() {
		cancel()
		if err := <-done; err != nil {
			x.t.Fatal(err)
		}
	}
}

// judge holds a point to what the machines do.
func (x *machines) judge(at string) (highest uint64) {
	x.t.Helper()
	images, _, err := x.view(at)
	if err != nil {
		x.t.Fatal(err)
	}
	var max []uint64
	for _, name := range machineNames {
		r, err := stamp.Scan(bytes.NewReader(images[name]), 0, machinesSlots)
		if err != nil {
			x.t.Fatal(err)
		}
		if !r.Whole(r.Max) {
			x.t.Fatalf("point %s: %s: %v", at, name, r)
		}
		max = append(max, r.Max)
	}
	if max[1] > max[0] || max[0] > max[1]+1 {
		x.t.Fatalf("point %s: the machines are at stamps %v", at, max)
	}
	return max[0]
}

func (x *machines) spans() []control.Span {
	x.t.Helper()
	ps, err := x.api.Points(x.t.Context(), control.PointsQuery{Group: "g"})
	if err != nil {
		x.t.Fatal(err)
	}
	return ps.Spans
}

func (x *machines) volume(name string) control.Volume {
	x.t.Helper()
	vs := x.group().Volumes
	i := slices.IndexFunc(vs, func(v control.Volume) bool { return v.Name == name })
	if i < 0 || vs[i].Machine != name {
		x.t.Fatalf("volume %s: %+v", name, vs)
	}
	return vs[i]
}

// newestIsDisks holds the newest point to the images, while nobody writes.
func (x *machines) newestIsDisks() {
	x.t.Helper()
	got, p, err := x.view("latest")
	if err != nil {
		x.t.Fatal(err)
	}
	for _, name := range machineNames {
		disk, err := os.ReadFile(x.disk(name))
		if err != nil {
			x.t.Fatal(err)
		}
		if at := firstDifference(disk, got[name]); at >= 0 {
			x.t.Fatalf("the newest point, #%d.%d, differs from the disk of %s at byte %d", p.Epoch, p.Seq, name, at)
		}
	}
}

// Promise 3 over two real machines of a host, captured per write into one order: no
// point shows one ahead of what it depends on. One that is killed ends the points of
// both and nothing else of the other; back, it is read whole and compared.
func TestPromise3TwoMachinesHaveOneOrder(t *testing.T) {
	rng, _ := seeded(t)
	x := newMachines(t)
	x.capture("{mode: per-write}")
	x.startSynced()
	stop := x.load()
	from := x.spans()[0].First
	want := from.Seq + uint64(scale.Scale(200))
	x.within(2*guestPatience, "the machines have written", func(ctx context.Context) bool {
		g, err := x.api.Group(ctx, "g")
		return err == nil && g.Seq > want
	})
	stop()
	open := x.spans()[0]
	points := scale.Scale(200)
	x.judgeSome(rng, open, points)
	x.newestIsDisks()

	since := x.volume("ahead").ModeSince
	x.guests["behind"].Kill()
	x.until("the points have ended", func(ctx context.Context) bool {
		ps, err := x.api.Points(ctx, control.PointsQuery{Group: "g"})
		return err == nil && len(ps.Spans) == 1 && !ps.Spans[0].Open
	})
	x.awaitState(control.StateGap)
	for i, m := range x.group().Machines {
		if want := []string{"per-write", "none"}[i]; m.Name != machineNames[i] || m.Mode != want || m.Volumes != 1 {
			t.Errorf("with one machine gone: %+v, want mode %s", m, want)
		}
	}
	if err := x.stamp(t.Context(), "ahead", x.last+1); err != nil { // the other one goes on
		t.Fatal(err)
	}
	x.guests["behind"].Close()
	x.boot("behind")
	x.ready("behind")
	if err := x.stamp(t.Context(), "behind", x.last+1); err != nil {
		t.Fatal(err)
	}
	x.last++
	x.awaitState(control.StateSynced)
	a, b := x.volume("ahead"), x.volume("behind")
	if !a.ModeSince.Equal(since) {
		t.Errorf("the machine that was not killed is %s since %v, not since %v: %s", a.Mode, a.ModeSince, since, a.Detail)
	}
	if b.Resync == nil || !b.Resync.Full {
		t.Errorf("the machine that was killed: resync %+v", b.Resync)
	}
	x.newestIsDisks()
	x.judgeSome(rng, open, 20)
	stop = x.load()
	began := x.group().Seq
	x.within(guestPatience, "both write on", func(ctx context.Context) bool {
		g, err := x.api.Group(ctx, "g")
		return err == nil && g.Seq > began+20
	})
	stop()
	spans := x.spans()
	x.judgeSome(rng, spans[len(spans)-1], 20)
	t.Logf("%d stamps on both; %d points judged; the killed machine was read again: %d bytes, of which %d were journaled",
		x.last, points+40, b.Resync.Read, b.Resync.Journaled)
	scale.Counted(t, "points-of-two-machines", points+40, 240)

	x.stop()
	x.cycles(t)
}

// judgeSome judges random points of a span.
func (x *machines) judgeSome(rng *rand.Rand, s control.Span, n int) {
	x.t.Helper()
	for range n {
		x.judge(fmt.Sprintf("#%d.%d", s.First.Epoch, s.First.Seq+rng.Uint64N(s.Last.Seq-s.First.Seq+1)))
	}
}

// cycles judges closed bitmap cycles of both machines: each is of one instant of both.
func (x *machines) cycles(t *testing.T) {
	x.capture("{mode: bitmap, every: 100ms}")
	x.start()
	x.awaitState(control.StateCycles)
	before := len(x.spans())
	want := scale.Scale(100)
	stop := x.load()
	x.within(2*guestPatience, "cycles are closed", func(ctx context.Context) bool {
		ps, err := x.api.Points(ctx, control.PointsQuery{Group: "g"})
		return err == nil && len(ps.Spans) >= before+want
	})
	stop()
	c := x.volume("ahead").Cycles
	judged, highest := 0, uint64(0)
	for _, s := range x.spans()[before:] {
		k := x.judge(fmt.Sprintf("#%d.%d", s.Last.Epoch, s.Last.Seq))
		if k < highest {
			t.Fatalf("point #%d.%d is of stamp %d, an earlier one of %d", s.Last.Epoch, s.Last.Seq, k, highest)
		}
		highest, judged = k, judged+1
	}
	if c == nil || c.Points == 0 {
		t.Fatalf("cycles %+v", c)
	}
	t.Logf("%d closed cycles of two machines judged, up to stamp %d; %d of %d rounds were refused (%.1f %%); they stood still for %.1f ms at most",
		judged, highest, c.Refused, c.Points+c.Refused, 100*float64(c.Refused)/float64(c.Points+c.Refused), 1000*c.LongestPause)
	scale.Counted(t, "cycles-of-two-qemus", judged, 100)
	if c.LongestPause > 0.05 {
		t.Errorf("a point was made of a pause of %v s", c.LongestPause)
	}
	x.until("the last stamps are in a point", func(ctx context.Context) bool {
		images, _, err := x.view("latest")
		if err != nil {
			return false
		}
		for _, name := range machineNames {
			disk, err := os.ReadFile(x.disk(name))
			if err != nil || !bytes.Equal(disk, images[name]) {
				return false
			}
		}
		return true
	})
	out, err := exec.Command(program, "--config", x.config, "group", "show", "g").Output()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("group show:\n%s", out)
	for _, name := range machineNames {
		if !bytes.Contains(out, []byte("machine "+name+", mode bitmap since ")) {
			t.Errorf("group show tells no mode of %s", name)
		}
	}
	x.stop()
	x.stillness(t)
}

// stillness stops the site, then kills it, while a machine stands still for the instant of
// a cycle: the watchdog lets it run, and what the cycles make is true.
func (x *machines) stillness(t *testing.T) {
	x.budget = "500ms"
	for _, end := range []syscall.Signal{syscall.SIGSTOP, syscall.SIGKILL} {
		s := qmpRequest(t, guest.Config{Dir: x.dirs["ahead"]}.QMPPath(0), "cont")
		x.ahead = s.path
		x.capture("{mode: bitmap, every: 100ms}")
		x.stampBoth() // or there is nothing to stand still for
		x.launch()
		s.await(t, "a machine stands still")
		x.until("the watchdog has reached both machines", func(context.Context) bool { return watchdogLines(x.cmd.Process.Pid) >= 2 })
		x.signal(end)
		if end == syscall.SIGSTOP {
			x.until("every thread of the site has stopped", func(context.Context) bool { return stopped(x.cmd.Process.Pid) })
		} else {
			<-x.exited
		}
		began := time.Now()
		x.stampBoth()
		t.Logf("%v in a pause: both machines had written on after %v", end, time.Since(began).Round(time.Millisecond))
		s.open()
		if end == syscall.SIGSTOP {
			x.signal(syscall.SIGCONT)
		}
		if end == syscall.SIGKILL || !x.answersOrGone() {
			x.launch()
		}
		x.awaitState(control.StateCycles)
		x.until("the last stamps are in a point", func(context.Context) bool { return x.judge("latest") == x.last })
		x.stop()
		if err := os.Remove(s.path); err != nil {
			t.Fatal(err)
		}
	}
}

// stampBoth makes both machines write the next stamp.
func (x *machines) stampBoth() {
	x.t.Helper()
	for _, name := range machineNames {
		if err := x.stamp(cbttest.Context(x.t, guestPatience), name, x.last+1); err != nil {
			x.t.Fatal(err)
		}
	}
	x.last++
}
