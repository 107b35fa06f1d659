package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/testbed/scale"
	"github.com/novacron/afterimage/testbed/stamp"
)

// domainBreak is something that happens to the protection of a domain.
type domainBreak struct {
	name  string
	do    func()
	full  string // the disks for which no bitmap can be trusted
	cause string // why the points ended; "": whatever it is called
	quiet bool   // the break ends the load
	kept  bool   // the points go on; a disk that comes or goes changes what they cover
	same  bool   // and not even that is changed
}

// What can break the protection of a domain, while its guest writes to its disks: the
// writes go on, the gap has its cause, what is read again is a delta where a bitmap can
// be trusted and everything where none can, of which only differences are journaled;
// and points before and after are true. The table is what is shown of it.
func TestPromise3BreaksOfADomainUnderLoad(t *testing.T) {
	peer := newDaemon(t, "b")
	x := newProtected(t, "{mode: per-write}", peer)
	peer.start()
	rng, _ := seeded(t)
	x.startSynced()
	x.load()
	x.stamps(20)
	x.foreignDisk()
	breaks := []domainBreak{
		{name: "kill -9 of the daemon", cause: "opening", do: x.killed},
		{name: "SIGSTOP of the daemon", do: func() {
			x.signal(syscall.SIGSTOP)
			x.stamps(5)
			x.signal(syscall.SIGCONT)
			x.stamps(1)
			if !x.settledOrGone() {
				x.launch() // its watchdog had to kill it: libvirt passes no yank on
			}
		}},
		{name: "libvirtd killed and started", do: x.libvirtdKilled},
		{name: "link to the peer cut and healed", kept: true, same: true, do: func() {
			x.link.Cut()
			x.stamps(5)
			x.link.Heal()
			(&pair{a: x.daemon, b: peer}).awaitArrival()
		}},
		{name: "disk hot-added", kept: true, do: x.hotAdd},
		{name: "pause, external snapshot, commit, resume", cause: "detached", full: "root data vdc", do: x.snapshotAndCommit},
		{name: "pause, resize, resume", cause: "detached", full: "root", do: x.resize},
		{name: "disk hot-removed", kept: true, do: x.hotRemove},
		{name: "kill -9 of the daemon, after the resize", cause: "opening", do: x.killed},
		{name: "QEMU killed and started", full: "root data", quiet: true, do: x.qemuKilled},
	}
	var table bytes.Buffer
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "break\tlongest write stall\tgap\tended by\tread again\tjournaled\tof\tpoints judged")
	for _, b := range breaks {
		_, was := x.lastSpan()
		x.stalls.take()
		began := time.Now()
		b.do()
		if !b.same {
			x.awaitAnother(was)
		}
		if b.quiet {
			x.load()
		}
		x.stamps(20)
		stall := x.stalls.take()
		x.quiet()
		x.awaitState(control.StateSynced)
		x.newestIsDisk(b.name)
		before, now := x.spans()
		if b.same {
			before = now
		}
		// A machine that is too busy can make the tap let go once more, which is
		// another break than the one that is looked at.
		alone := !x.stalledSince(began)
		switch {
		case !alone:
		case b.same && (now.First.Epoch != was.First.Epoch || now.First.Seq != was.First.Seq):
			t.Errorf("%s: the points ended: %+v, then %+v", b.name, was, now)
		case b.kept && !b.same && (before.Ended != "" || now.First.Seq != before.Last.Seq+1):
			t.Errorf("%s: the points ended by %q: %+v, then %+v", b.name, before.Ended, before, now)
		case b.cause != "" && before.Ended != b.cause:
			t.Errorf("%s: the points ended by %q", b.name, before.Ended)
		}
		judged := 20
		if x.judgePoints(rng, now, 20); !b.same {
			x.judgePoints(rng, before, 20)
			judged += 20
		}
		read, journaled, of := x.cost(b, alone)
		gap := now.First.Time.Sub(before.Last.Time).Round(time.Millisecond)
		if b.kept {
			gap = 0
		}
		fmt.Fprintf(w, "%s\t%v\t%v\t%s\t%d KiB\t%d KiB\t%d KiB\t%d\n", b.name, stall.Round(time.Millisecond), gap, before.Ended, read>>10, journaled>>10, of>>10, judged)
		x.load()
		x.stamps(5)
	}
	w.Flush()
	t.Logf("what breaks cost, per write, at a guest that writes without pause:\n%s", &table)
	scale.Counted(t, "domain-breaks", len(breaks), 10)
	// Whatever point is taken of the last interval, the second disk is not ahead.
	x.stamps(uint64(scale.Scale(500)))
	_, now := x.spans()
	points := scale.Scale(1000)
	x.judgePoints(rng, now, points)
	scale.Counted(t, "domain-order-points", points, 1000)
}

// cost holds what a break made us read again to what it should be, and sums it. A break
// that is none costs the disks that were there nothing.
func (x *protected) cost(b domainBreak, alone bool) (read, journaled, of int64) {
	x.t.Helper()
	// The guest writes one stamp after the other into these slots; a bit of a bitmap
	// is of 64 KiB.
	const delta = domainSlots*stamp.Size + 2*64<<10
	for _, v := range x.group().Volumes {
		r := v.Resync
		switch full := strings.Contains(b.full, v.Name); {
		case b.kept && v.Name != "vdc" || b.same || r == nil && b.kept:
			continue
		case r == nil || alone && !b.kept && r.Full != full:
			x.t.Errorf("%s: %s: resync %+v, want full %v", b.name, v.Name, r, full)
			continue
		case !r.Full && (r.Read > delta || r.ToRead > delta):
			x.t.Errorf("%s: %s: %d of %d bytes were read for a delta of at most %d", b.name, v.Name, r.Read, v.Size, int64(delta))
		case r.Journaled > max(v.Size/2, delta):
			x.t.Errorf("%s: %s: %d bytes were journaled", b.name, v.Name, r.Journaled)
		}
		read, journaled, of = read+r.Read, journaled+r.Journaled, of+v.Size
	}
	return read, journaled, of
}

func (x *protected) killed() { x.kill(); x.stamps(5); x.launch() }

func (x *protected) libvirtdKilled() { x.libvirt.Kill(); x.stamps(5); x.libvirt.Boot(x.t) }

// snapshotAndCommit is what another program does to a domain that was let go.
func (x *protected) snapshotAndCommit() {
	x.command("group", "pause", "g", "--for", "1h", "--reason", "a snapshot")
	x.virsh("snapshot-create-as", "web", "s1", "--disk-only", "--no-metadata", "--atomic")
	x.stamps(3)
	x.command("group", "resume", "g")
	x.awaitState(x.state)
	x.stamps(3)
	x.command("group", "pause", "g", "--for", "1h", "--reason", "its commit")
	for _, disk := range strings.Fields(x.virsh("domblklist", "web", "--details"))[4:] {
		if strings.HasPrefix(disk, "vd") {
			x.virsh("blockcommit", "web", disk, "--active", "--pivot", "--wait")
		}
	}
	x.command("group", "resume", "g")
}

func (x *protected) resize() {
	x.command("group", "pause", "g", "--for", "1h", "--reason", "a larger disk")
	x.virsh("blockresize", "web", "vda", "20480")
	x.command("group", "resume", "g")
}

// hotAdd plugs a disk while the guest writes to the others; once points cover it, the
// guest writes to it too.
func (x *protected) hotAdd() {
	x.images["vdc"] = x.libvirt.Image(x.t, "d.qcow2", 8<<20)
	x.virsh("attach-disk", "web", x.images["vdc"], "vdc", "--driver", "qemu", "--subdriver", "qcow2", "--live")
	x.awaitCovered("vdc", true)
	x.stamps(5)
	stall := x.stalls.take()
	x.quiet()
	x.reopen(3)
	x.load()
	x.third = x.first
	x.stalls.begin(stall) // that the guest was quiet is no stall
}

// hotRemove pulls it.
func (x *protected) hotRemove() {
	stall := x.stalls.take()
	x.quiet()
	x.virsh("detach-disk", "web", "vdc", "--live")
	image := x.images["vdc"]
	delete(x.images, "vdc")
	x.awaitCovered("vdc", false)
	x.until("QEMU has let go of the image", func(context.Context) bool { // or it could not be plugged again
		return exec.Command("qemu-img", "info", image).Run() == nil
	})
	x.reopen(2)
	x.load()
	x.stalls.begin(stall)
}

func (x *protected) qemuKilled() {
	if err := syscall.Kill(x.qemuPid(), syscall.SIGKILL); err != nil {
		x.t.Fatal(err)
	}
	x.until("the break is seen", func(ctx context.Context) bool {
		st, err := x.api.Status(ctx)
		return err == nil && st.Groups[0].State != x.state && !strings.Contains(x.virsh("list", "--all", "--name"), "web")
	})
	x.boot()
}

// awaitCovered waits until the newest points cover a volume, or do not any more.
func (x *protected) awaitCovered(volume string, yes bool) {
	x.t.Helper()
	x.until(fmt.Sprintf("points cover %s: %v", volume, yes), func(ctx context.Context) bool {
		ps, err := x.api.Points(ctx, control.PointsQuery{Group: "g"})
		n := len(ps.Spans)
		if err != nil || n == 0 || !ps.Spans[n-1].Open && x.state != control.StateCycles || len(ps.Kept) == 0 {
			return false
		}
		return slices.Contains(ps.Kept[len(ps.Kept)-1].Volumes, volume) == yes
	})
}

// reopen makes the guest take the disks that there are now, n of them. What it heard of
// a disk comes to it some time after libvirt has.
func (x *protected) reopen(n int) {
	x.t.Helper()
	want := fmt.Sprintf("opened volumes=%d", n)
	x.until(want, func(context.Context) bool {
		ctx, cancel := context.WithTimeout(x.t.Context(), guestPatience)
		defer cancel()
		line, err := x.console.Ask(ctx, fmt.Sprintf("open slots=%d", domainSlots), "opened")
		if err != nil {
			x.t.Fatal(err)
		}
		return line == want
	})
}

// foreignDisk plugs a disk that nobody protects, and pulls it: the points go on.
func (x *protected) foreignDisk() {
	x.t.Helper()
	_, was := x.lastSpan()
	began := time.Now()
	x.virsh("attach-disk", "web", x.libvirt.Image(x.t, "c.qcow2", 1<<20), "vdc", "--driver", "qemu", "--subdriver", "qcow2", "--live", "--mode", "readonly")
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
