package site

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
	"github.com/novacron/afterimage/testbed/scale"
)

// A running domain is rolled back in place and forward again: its own disks are, byte by
// byte, what the guest had written then, and it runs again from them and is tapped.
func TestRewindOfADomain(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		passthrough config.Passthrough
		capture     string
		kept        bool // by libvirt, when it is off
	}{{config.PassthroughAllowed, "per-write", false}, {config.PassthroughForbidden, "per-write", true}, {config.PassthroughAllowed, "bitmap, every: 1h", true}} {
		t.Run(fmt.Sprintf("%s %s", c.passthrough, c.capture), func(t *testing.T) {
			scale.Tools(t, "qemu-nbd", "qemu-img")
			w, ctx := newDomainWorldBy(t, c.passthrough, c.capture), context.Background()
			if c.kept {
				w.keep()
			}
			r := w.start()
			state := control.StateSynced
			if strings.HasPrefix(c.capture, "bitmap") {
				state = control.StateCycles
			}
			r.awaitState("web", state)
			w.guestWrites(0, 0x11, 0)
			w.guestWrites(1, 0x22, 1<<20)
			if _, err := r.Mark(ctx, control.MarkRequest{Group: "web", Name: "good"}); err != nil {
				t.Fatal(err)
			}
			goodRoot, goodData := w.disks()
			w.guestWrites(0, 0x66, 0)
			w.guestWrites(0, 0x67, 3<<20)
			w.guestWrites(1, 0x68, 1<<20+32<<10)
			badRoot, badData := w.disks()

			q := control.RewindRequest{Group: "web", At: "name:good", Operator: "tester"}
			plan, err := r.PlanRewind(ctx, q)
			if err != nil {
				t.Fatal(err)
			}
			if plan.Machine != "web" || plan.Undo == "" || len(plan.Refused) != 0 || plan.StaysOff {
				t.Errorf("plan %+v", plan)
			}
			before := w.virsh("domid", "web")
			done := r.rewind("name:good")
			if !done.Started || done.Pin == "" {
				t.Errorf("rewound: %+v", done)
			}
			if now := w.virsh("domid", "web"); now == before {
				t.Errorf("the domain was not started anew: %s", now)
			}
			w.holds("after the rewind", goodRoot, goodData)
			r.awaitState("web", state)
			root, data := w.restored(r, "latest")
			if !bytes.Equal(root, goodRoot) || !bytes.Equal(data, goodData) {
				t.Error("the newest point is not what the disks hold")
			}
			w.guestWrites(0, 0x33, 5<<20)

			r.rewind(done.Undo)
			w.holds("rewound to what was given up", badRoot, badData)
			r.awaitState("web", state)
			w.guestWrites(0, 0x44, 5<<20)
			r.stop()
			r = w.start()
			r.awaitState("web", state)
			if strings.HasPrefix(c.capture, "bitmap") {
				return // of a cycle that is yet to come
			}
			if root, _ := w.restored(r, "latest"); !filled(root, 0x44, 5<<20) || !filled(root, 0x67, 3<<20) {
				t.Error("the newest point is not what the guest wrote after the undo")
			}
		})
	}
}

// While the disks may hold what the history does not, nothing would lead back: the rewind
// is refused, and the guest goes on. A domain that is off, and was followed to its end, is
// rewound and left off.
func TestRewindRefusesWhatWasNotFollowed(t *testing.T) {
	t.Parallel()
	scale.Tools(t, "qemu-nbd", "qemu-img")
	w, ctx := newDomainWorld(t, config.PassthroughAllowed), context.Background()
	w.keep()
	w.virsh("autostart", "web")
	r := w.start()
	r.awaitState("web", control.StateSynced)
	w.guestWrites(0, 0x11, 0)
	good := fmt.Sprintf("#%d", r.groupLine("web").Seq)
	goodRoot, goodData := w.disks()
	w.guestWrites(0, 0x66, 0)
	if _, err := r.Pause(ctx, control.PauseRequest{Group: "web", Seconds: 3600, Reason: "a test"}); err != nil {
		t.Fatal(err)
	}
	q := control.RewindRequest{Group: "web", At: good, Operator: "tester"}
	if p, err := r.PlanRewind(ctx, q); err != nil || len(p.Refused) != 1 {
		t.Errorf("while paused: refused %v, %v", p.Refused, err)
	}
	if _, err := r.Rewind(ctx, q, func(control.Progress) {}); !fault.Is(err, fault.RewindRefused) {
		t.Errorf("while paused: %v", err)
	}
	if s := strings.TrimSpace(w.virsh("domstate", "web")); s != "running" {
		t.Errorf("the guest is %s after a rewind that was refused", s)
	}
	if _, err := r.Resume(ctx, control.ResumeRequest{Group: "web"}); err != nil {
		t.Fatal(err)
	}
	r.awaitState("web", control.StateSynced)
	badRoot, badData := w.disks()
	w.virsh("destroy", "web")
	await(t, "the domain's end is seen", func() bool {
		p, err := r.PlanRewind(ctx, q)
		return err == nil && p.Machine == "" && len(p.Refused) == 0
	})
	kept := w.virsh("dumpxml", "--inactive", "web") // and defined over other disks, it is none of ours
	other := w.d.Path("other.qcow2")
	if out, err := exec.Command("cp", w.d.Path("a.qcow2"), other).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	w.redefine(strings.ReplaceAll(kept, w.d.Path("a.qcow2"), other))
	forced := q
	forced.Force = true
	if _, err := r.PlanRewind(ctx, forced); !fault.Is(err, fault.RewindElsewhere) || !strings.Contains(err.Error(), other) {
		t.Errorf("a plan over another image: %v", err)
	}
	if _, err := r.Rewind(ctx, forced, quietly); !fault.Is(err, fault.RewindElsewhere) {
		t.Errorf("over another image: %v", err)
	}
	w.redefine(kept)
	done := r.rewind(good)
	if done.Started {
		t.Error("a domain that was off was started")
	}
	if s := strings.TrimSpace(w.virsh("domstate", "web")); s != "shut off" {
		t.Errorf("the domain is %s", s)
	}
	w.holds("after the rewind", goodRoot, goodData)
	r.rewind(done.Undo)
	w.holds("after the undo", badRoot, badData)
	if s := w.virsh("dominfo", "web"); !strings.Contains(s, "enable") {
		t.Errorf("the domain does not start with its host any more:\n%s", s)
	}
	resize := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("qemu-img", append([]string{"resize"}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	resize(w.d.Path("a.qcow2"), "+1M") // while nobody looks
	epoch := r.groupLine("web").Epoch
	if _, err := r.Rewind(ctx, q, quietly); !fault.Is(err, fault.RewindElsewhere) {
		t.Errorf("onto a disk of another size: %v", err)
	}
	if now := r.groupLine("web").Epoch; now != epoch {
		t.Errorf("epoch %d was forked, after %d", now, epoch)
	}
	if s := w.virsh("dominfo", "web"); !strings.Contains(s, "enable") {
		t.Errorf("the domain does not start with its host after a rewind that was refused:\n%s", s)
	}
	resize("--shrink", w.d.Path("a.qcow2"), "-1M")
	r.stop() // nobody sees what the domain does meanwhile
	r = w.start()
	await(t, "what the domain did is not known", func() bool {
		p, err := r.PlanRewind(ctx, q)
		return err == nil && len(p.Refused) == 1
	})
	w.virsh("start", "web")
	r.awaitState("web", control.StateSynced)
}
