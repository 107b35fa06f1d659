package e2e

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/testbed/scale"
)

// What can break the protection of a domain, while its guest writes to two disks:
// the writes go on, the gap has its cause, what is read again is a delta where a
// bitmap can be trusted and everything where none can, of which only differences are
// journaled; and points before and after are true.
func TestPromise3BreaksOfADomainUnderLoad(t *testing.T) {
	x := newProtected(t, "{mode: per-write}")
	rng, _ := seeded(t)
	x.startSynced()
	x.load()
	x.stamps(20)
	x.foreignDisk()
	breaks := []struct {
		name  string
		do    func()
		full  string // the disks for which no bitmap can be trusted
		cause string // why the points ended
		quiet bool   // the break ends the load
	}{
		{name: "kill -9 of the daemon", cause: "opening", do: func() { x.kill(); x.stamps(5); x.launch() }},
		{name: "SIGSTOP of the daemon", do: func() {
			x.signal(syscall.SIGSTOP)
			x.stamps(5)
			x.signal(syscall.SIGCONT)
			x.stamps(1)
			if !x.settledOrGone() {
				x.launch() // its watchdog had to kill it: libvirt passes no yank on
			}
		}},
		{name: "libvirtd killed and started", do: func() { x.libvirt.Kill(); x.stamps(5); x.libvirt.Boot(t) }},
		{name: "pause, external snapshot, commit, resume", cause: "detached", full: "root data", do: func() {
			x.command("group", "pause", "g", "--for", "1h", "--reason", "a snapshot")
			x.virsh("snapshot-create-as", "web", "s1", "--disk-only", "--no-metadata", "--atomic")
			x.stamps(3)
			x.command("group", "resume", "g")
			x.awaitState(control.StateSynced)
			x.stamps(3)
			x.command("group", "pause", "g", "--for", "1h", "--reason", "its commit")
			for _, disk := range []string{"vda", "vdb"} {
				x.virsh("blockcommit", "web", disk, "--active", "--pivot", "--wait")
			}
			x.command("group", "resume", "g")
		}},
		{name: "pause, resize, resume", cause: "detached", full: "root", do: func() {
			x.command("group", "pause", "g", "--for", "1h", "--reason", "a larger disk")
			x.virsh("blockresize", "web", "vda", "20480")
			x.command("group", "resume", "g")
		}},
		{name: "QEMU killed and started", full: "root data", quiet: true, do: func() {
			if err := syscall.Kill(x.qemuPid(), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			x.until("the break is seen", func(ctx context.Context) bool {
				st, err := x.api.Status(ctx)
				return err == nil && st.Groups[0].State != control.StateSynced && !strings.Contains(x.virsh("list", "--all", "--name"), "web")
			})
			x.boot()
		}},
	}
	for _, b := range breaks {
		_, was := x.lastSpan()
		x.stalls.take()
		began := time.Now()
		b.do()
		x.awaitAnother(was)
		if b.quiet {
			x.load()
		}
		x.stamps(20)
		stall := x.stalls.take()
		x.quiet()
		x.awaitState(control.StateSynced)
		x.newestIsDisk(b.name)
		before, now := x.spans()
		// A machine that is too busy can make the tap let go once more, which is
		// another break than the one that is looked at.
		alone := !x.stalledSince(began)
		if alone && b.cause != "" && before.Ended != b.cause {
			t.Errorf("%s: the points ended by %q", b.name, before.Ended)
		}
		x.judgePoints(rng, before, 10)
		x.judgePoints(rng, now, 10)
		var read []string
		for _, v := range x.group().Volumes {
			r := v.Resync
			if full := strings.Contains(b.full, v.Name); r == nil || alone && r.Full != full {
				t.Errorf("%s: %s: resync %+v, want full %v", b.name, v.Name, r, full)
				continue
			}
			read = append(read, fmt.Sprintf("%s %d KiB read, %d KiB journaled (full %v)", v.Name, r.Read>>10, r.Journaled>>10, r.Full))
			if r.Journaled > v.Size/2 {
				t.Errorf("%s: %s: %d bytes were journaled", b.name, v.Name, r.Journaled)
			}
		}
		t.Logf("%s: longest between two stamps %v; %v without points, ended by %s; %s", b.name, stall.Round(time.Millisecond),
			now.First.Time.Sub(before.Last.Time).Round(time.Millisecond), before.Ended, strings.Join(read, "; "))
		x.load()
		x.stamps(5)
	}
	scale.Counted(t, "domain-breaks", len(breaks), 6)
	// Whatever point is taken of the last interval, the second disk is not ahead.
	x.stamps(uint64(scale.Scale(500)))
	_, now := x.spans()
	points := scale.Scale(1000)
	x.judgePoints(rng, now, points)
	scale.Counted(t, "domain-order-points", points, 1000)
}

// foreignDisk plugs a disk that nobody protects, and pulls it: the points go on.
func (x *protected) foreignDisk() {
	x.t.Helper()
	_, was := x.lastSpan()
	began := time.Now()
	x.virsh("attach-disk", "web", x.libvirt.Image(x.t, "c.qcow2", 1<<20), "vdc", "--driver", "qemu", "--subdriver", "qcow2", "--live")
	x.stamps(5)
	x.virsh("detach-disk", "web", "vdc", "--live")
	x.stamps(5)
	if _, now := x.lastSpan(); (!now.Open || now.First.Seq != was.First.Seq) && !x.stalledSince(began) {
		x.t.Errorf("a disk of somebody else's ended the points: %+v, then %+v", was, now)
	}
}

// stalledSince reports whether a write outlasted its budget since then.
func (x *protected) stalledSince(began time.Time) bool {
	x.t.Helper()
	ps, err := x.api.Points(x.t.Context(), control.PointsQuery{Group: "g"})
	if err != nil {
		x.t.Fatal(err)
	}
	for _, g := range ps.Gaps {
		if g.Cause == "stall" && g.Time.After(began) {
			x.t.Logf("a write outlasted its budget: %+v", g)
			return true
		}
	}
	return false
}

// command runs a command of the site that has to succeed.
func (x *protected) command(args ...string) {
	x.t.Helper()
	if err := x.cli(nil, args...); err != nil {
		x.t.Fatal(err)
	}
}

// lastSpan is the newest span of points, if there is any.
func (x *protected) lastSpan() (any bool, s control.Span) {
	x.t.Helper()
	ps, err := x.api.Points(x.t.Context(), control.PointsQuery{Group: "g"})
	if err != nil {
		x.t.Fatal(err)
	}
	if n := len(ps.Spans); n > 0 {
		return true, ps.Spans[n-1]
	}
	return false, s
}

// awaitAnother waits until there is an open span that is not was.
func (x *protected) awaitAnother(was control.Span) {
	x.t.Helper()
	x.until("there are points again", func(ctx context.Context) bool {
		ps, err := x.api.Points(ctx, control.PointsQuery{Group: "g"})
		n := 0
		if err == nil {
			n = len(ps.Spans)
		}
		return n > 0 && ps.Spans[n-1].Open && (ps.Spans[n-1].First.Epoch != was.First.Epoch || ps.Spans[n-1].First.Seq != was.First.Seq)
	})
	x.awaitState(control.StateSynced)
}

// settledOrGone waits until the daemon has ended, or answers again.
func (x *protected) settledOrGone() bool {
	x.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		ctx, cancel := context.WithTimeout(x.t.Context(), patience)
		_, err := x.api.Status(ctx)
		cancel()
		if err == nil {
			return true
		}
		select {
		case <-x.exited:
			return false
		case <-tick.C:
		}
	}
}
