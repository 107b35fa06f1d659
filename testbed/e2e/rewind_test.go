package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/testbed/scale"
)

// contents are the guest's own disks, as qemu-img reads them while nobody writes.
func (x *protected) contents() map[string][]byte {
	x.t.Helper()
	out := map[string][]byte{}
	for name, image := range x.images {
		raw := x.path(name + ".raw")
		if said, err := exec.Command("qemu-img", "convert", "-U", "-O", "raw", image, raw).CombinedOutput(); err != nil {
			x.t.Fatalf("qemu-img: %v\n%s", err, said)
		}
		b, err := os.ReadFile(raw)
		if err != nil {
			x.t.Fatal(err)
		}
		out[name] = b
	}
	return out
}

func equalDisks(a, b map[string][]byte) bool {
	for name := range a {
		if !bytes.Equal(a[name], b[name]) {
			return false
		}
	}
	return len(a) == len(b)
}

// markNow names the moment and returns how --at finds it whatever the lineage.
func (x *protected) markNow(name string) string {
	x.t.Helper()
	p, err := x.api.Mark(x.t.Context(), control.MarkRequest{Group: "g", Name: name})
	if err != nil {
		x.t.Fatal(err)
	}
	return fmt.Sprintf("#%d.%d", p.Epoch, p.Seq)
}

// A guest that runs under libvirt is rolled back in place and forward again: its own disks
// are, byte by byte, what they were at the point, it boots from them and is protected. And
// with kill -9 of the daemon at any step of it: whoever comes after finishes what was
// begun, both disks are at the one moment or at the other, and the guest runs again.
func TestPromise13RewindOfARunningGuest(t *testing.T) {
	scale.Tools(t, "qemu-nbd")
	rng, _ := seeded(t)
	x := newProtected(t, "{mode: per-write}", nil)
	x.startSynced()
	x.load()
	x.stamps(150)
	x.quiet()
	good := x.contents()
	goodAt := x.markNow("good")
	x.load()
	x.stamps(150)
	x.quiet()
	bad := x.contents()
	badAt := x.markNow("bad")
	x.newestIsDisk("the load")

	var done control.Rewound
	if err := x.cli(&done, "group", "rewind", "g", "--at", goodAt, "--yes"); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d writes, %d bytes given up; %.1f s, of which %v", done.Writes, done.Bytes, done.SecondsTaken, done.Times)
	if !equalDisks(x.contents(), good) {
		t.Fatal("after the rewind the guest's disks are not what they were at the point")
	}
	x.wait("ready")
	x.awaitState(control.StateSynced)
	x.newestIsDisk("the rewind")
	if err := x.cli(&done, "group", "rewind", "g", "--at", done.Undo, "--yes"); err != nil {
		t.Fatal(err)
	}
	if !equalDisks(x.contents(), bad) {
		t.Fatal("the undo did not bring back what was given up")
	}
	x.wait("ready")
	x.awaitState(control.StateSynced)

	kills := scale.Scale(3)
	there := false // at good
	for k := range kills {
		at := goodAt
		if there {
			at = badAt
		}
		after, before := 1+rng.IntN(12), x.virsh("domid", "web")
		step := x.rewindAndKill(at, after)
		x.launch()
		x.awaitState(control.StateSynced)
		if x.virsh("domid", "web") != before { // else it only stood still
			x.wait("ready")
		}
		now := x.contents()
		if !equalDisks(now, good) && !equalDisks(now, bad) {
			t.Fatalf("kill %d, after %q: the disks are at no moment", k, step)
		}
		went := equalDisks(now, good) != there
		there = equalDisks(now, good)
		t.Logf("kill %d after %d events, %q: to the point %v", k, after, step, went)
		x.newestIsDisk("the kill")
	}
	scale.Counted(t, "kill9-rewind", kills, 3)
	x.load() // the guest still works
	x.stamps(20)
	x.quiet()
	x.newestIsDisk("all of it")
}

// rewindAndKill kills the daemon once a rewind has told of so many of its steps, or is
// over; it returns the last one.
func (x *protected) rewindAndKill(at string, after int) (last string) {
	x.t.Helper()
	told := make(chan string, 1<<12)
	ctx, stop := context.WithTimeout(x.t.Context(), patience)
	defer stop()
	over := make(chan error, 1)
	go func() {
		_, err := x.api.Rewind(ctx, control.RewindRequest{Group: "g", At: at}, func(p control.Progress) { told <- p.Step })
		over <- err
	}()
	for range after {
		select {
		case last = <-told:
			continue
		case err := <-over:
			if err != nil {
				x.t.Fatalf("rewind after %q: %v", strings.TrimSpace(last), err)
			}
		}
		break
	}
	x.kill()
	return last
}
