package site

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt/embedded"
	"github.com/novacron/afterimage/cbt/nbd"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
	"github.com/novacron/afterimage/testbed/scale"
)

func (r *running) rewind(at string) control.Rewound {
	r.t.Helper()
	done, err := r.Rewind(context.Background(), control.RewindRequest{Group: "web", At: at, Operator: "tester"}, func(control.Progress) {})
	if err != nil {
		r.t.Fatal(err)
	}
	return done
}

// image is the file of a's volume.
func (w *world) image(name string) []byte {
	w.t.Helper()
	b, err := os.ReadFile(filepath.Join(w.dir, name+".img"))
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

func (w *world) imageHolds(name string, fill byte, off, n int64) {
	w.t.Helper()
	if b := w.image(name)[off : off+n]; !bytes.Equal(b, bytes.Repeat([]byte{fill}, int(n))) {
		w.t.Errorf("image %s at %d is not all %#x, it begins % x", name, off, fill, b[:8])
	}
}

// A group is rolled back in place and forward again; its replica follows both times
// and holds both branches; who had a disk open sees nothing change beneath it.
func TestRewindAndBack(t *testing.T) {
	t.Parallel()
	w, ctx := newWorld(t), context.Background()
	ca, cb := w.pair("", "")
	a, b := w.runPair(ca, cb)
	a.awaitState("web", control.StateSynced)
	a.write("web/root", 0x11, 0, 64<<10)
	if _, err := a.Mark(ctx, control.MarkRequest{Group: "web", Name: "before"}); err != nil {
		t.Fatal(err)
	}
	a.write("web/root", 0x66, 0, 64<<10)
	a.write("web/root", 0x67, 512<<10, 4096)
	a.write("web/data", 0x68, 0, 512)
	awaitLevel(a, b, "web")
	open := a.device("web/root")

	q := control.RewindRequest{Group: "web", At: "name:before"}
	plan, err := a.PlanRewind(ctx, q)
	if err != nil {
		t.Fatal(err)
	}
	if plan.Writes != 3 || plan.Bytes != 64<<10+4096+512 || len(plan.Volumes) != 2 || plan.Volumes[1].Differ != 64<<10+4096 || plan.Undo == "" || len(plan.Refused) != 0 {
		t.Errorf("plan %+v", plan)
	}
	if _, err := b.PlanRewind(ctx, q); !fault.Is(err, fault.NotPrimary) {
		t.Errorf("a replica rewinds: %v", err)
	}
	if _, err := a.Rewind(ctx, control.RewindRequest{Group: "web", At: "name:before", Expect: "other"}, func(control.Progress) {}); !fault.Is(err, fault.PlanStale) {
		t.Errorf("another plan than the one shown: %v", err)
	}
	done := a.rewind("name:before")
	if done.Epoch <= 1 || done.Undo != plan.Undo || done.Pin == "" {
		t.Errorf("rewound: %+v", done)
	}
	a.awaitState("web", control.StateSynced)
	if g := a.groupLine("web"); g.Role != string(recovery.Primary) {
		t.Errorf("role %s after a rewind", g.Role)
	}
	a.reads("web/root", 0x11, 0, 64<<10)
	a.reads("web/root", 0, 512<<10, 4096)
	a.reads("web/data", 0, 0, 512)
	w.imageHolds("root", 0x11, 0, 64<<10)
	w.imageHolds("root", 0, 512<<10, 4096)
	if err := open.ReadAt(ctx, make([]byte, 512), 0); !errors.Is(err, nbd.ESHUTDOWN) {
		t.Errorf("a disk that was open before: %v", err)
	}
	a.leftBehind(plan)
	a.write("web/root", 0x22, 128<<10, 4096)
	awaitLevel(a, b, "web")
	restored := filepath.Join(w.dir, "root.raw")
	if _, err := b.Restore(ctx, control.RestoreRequest{Group: "web", At: "latest", Volume: "root", To: restored, Format: control.FormatSparse}, func(control.Progress) {}); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(restored); err != nil || !bytes.Equal(got, w.image("root")) {
		t.Errorf("the replica's head is not the image: %v", err)
	}

	// And forward again: what was given up is there, what came since is a branch.
	back := a.rewind(done.Undo)
	a.reads("web/root", 0x66, 0, 64<<10)
	a.reads("web/root", 0x67, 512<<10, 4096)
	a.reads("web/root", 0, 128<<10, 4096)
	w.imageHolds("root", 0x67, 512<<10, 4096)
	a.write("web/root", 0x33, 0, 512)
	awaitLevel(a, b, "web")
	for _, s := range []*running{a, b} {
		for _, at := range []string{done.Undo, back.Undo} {
			if _, err := s.Points(ctx, control.PointsQuery{Group: "web", At: at}); err != nil {
				t.Errorf("site %s: %s: %v", s.cfg.Site, at, err)
			}
		}
	}
	a.branchesHold(map[string]byte{back.Undo: 0x11}, done.Undo)
	a.stop()
	a = w.run(ca)
	a.awaitState("web", control.StateSynced)
	a.reads("web/root", 0x33, 0, 512)
	a.reads("web/root", 0x66, 512, 1024)
}

// branchesHold asks that the branches which were left are those, by their newest points,
// that each can be read, and begins with its byte; and that current is none of them.
func (r *running) branchesHold(want map[string]byte, current string) {
	r.t.Helper()
	ctx := context.Background()
	ps, err := r.Points(ctx, control.PointsQuery{Group: "web", Branches: true})
	if err != nil {
		r.t.Fatal(err)
	}
	seen := 0
	for _, a := range ps.Abandoned {
		if a.At == current {
			r.t.Errorf("what the history goes through is listed as abandoned: %+v", a)
		}
		fill, ok := want[a.At]
		if !ok {
			continue
		}
		seen++
		to := filepath.Join(r.t.TempDir(), "root.raw")
		if _, err := r.Restore(ctx, control.RestoreRequest{Group: "web", At: a.At, Volume: "root", To: to, Format: control.FormatSparse}, func(control.Progress) {}); err != nil {
			r.t.Fatal(err)
		}
		if b, err := os.ReadFile(to); err != nil || b[0] != fill {
			r.t.Errorf("branch %+v begins with %#x, %v", a, b[:1], err)
		}
	}
	if seen != len(want) {
		r.t.Errorf("branches %+v, want %v", ps.Abandoned, want)
	}
}

// leftBehind asks for an image that was last made durable before the point: it may
// hold what was given up.
func (r *running) leftBehind(plan control.RewindPlan) {
	r.t.Helper()
	l, release, err := r.groups[0].use()
	if err != nil {
		r.t.Fatal(err)
	}
	defer release()
	for _, b := range l.j.Branches() {
		if b.Number != plan.Point.Epoch {
			continue
		}
		at := embedded.Place{Epoch: b.ID.String(), Seq: plan.Point.Seq - 1}
		v := l.reigning().disks[0].volume
		changed, err := history{l.j}.Changed(context.Background(), at, v.ID)
		if err != nil || len(changed) != 2 || changed[0].Length != 64<<10 || history.Holds(history{l.j}, at) {
			r.t.Errorf("an image of before the point: changed %v, %v, held %v", changed, err, history.Holds(history{l.j}, at))
		}
		return
	}
	r.t.Errorf("no epoch %d", plan.Point.Epoch)
}

// A disk that somebody uses is not changed beneath them.
func TestRewindRefusesClients(t *testing.T) {
	t.Parallel()
	w, ctx := newWorld(t), context.Background()
	a := w.run(w.configure("a", "groups: [{name: web, role: primary, volumes: [{name: root, size: 1MiB, embedded: {image: root.img}}]}]\n"))
	a.awaitState("web", control.StateSynced)
	at := fmt.Sprintf("#%d", a.groupLine("web").Seq)
	a.write("web/root", 1, 0, 4096)
	c, err := nbd.Dial(ctx, "unix", a.cfg.NBD, nbd.DialOptions{Export: "web/root"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	await(t, "the client counts", func() bool { return a.clients.of("web/root") == 1 })
	q := control.RewindRequest{Group: "web", At: at}
	if p, err := a.PlanRewind(ctx, q); err != nil || len(p.Refused) != 1 {
		t.Errorf("refused %v, %v", p.Refused, err)
	}
	if _, err := a.Rewind(ctx, q, func(control.Progress) {}); !fault.Is(err, fault.RewindRefused) {
		t.Errorf("a rewind beneath a client: %v", err)
	}
	a.reads("web/root", 1, 0, 4096)
	q.Force = true
	if _, err := a.Rewind(ctx, q, func(control.Progress) {}); err != nil {
		t.Fatal(err)
	}
	if err := c.ReadAt(ctx, make([]byte, 512), 0); err == nil {
		t.Error("who was forced off reads on")
	}
	a.reads("web/root", 0, 0, 4096)
}

// A machine of this site is turned off, its disk goes back, and it runs again; who dies
// in between starts it at the next start. A failover that is not committed can still be.
func TestRewindOfAMachineThatRuns(t *testing.T) {
	t.Parallel()
	scale.Tools(t, "qemu-system-x86_64")
	w, ctx := newWorld(t), context.Background()
	ca, cb := w.pair("", machineOfWeb)
	w.program(`exec qemu-system-x86_64 "$@"`)
	a, b := w.runPair(ca, cb)
	a.awaitState("web", control.StateSynced)
	a.write("web/root", 1, 0, 4096)
	awaitLevel(a, b, "web")
	a.stop()
	quiet := func(control.Progress) {}
	if _, err := b.Failover(ctx, control.FailoverRequest{Group: "web", At: "latest", Force: true, Operator: "tester"}, quiet); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // the site may have ended before
		if pid, err := b.machineFor(b.groups[0], cb.Groups[0].Machine).Process(); err == nil {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	})
	at := fmt.Sprintf("#%d", b.groupLine("web").Seq)
	role := b.role()
	b.write("web/root", 2, 0, 4096)

	if _, err := b.Rewind(ctx, control.RewindRequest{Group: "web", At: "#2", Operator: "tester"}, quiet); !fault.Is(err, fault.RewindBehindFork) && !fault.Is(err, fault.PointUnknown) {
		t.Errorf("behind the fork of a failover that is not committed: %v", err)
	}
	old := b.pidOf()
	done, err := b.Rewind(ctx, control.RewindRequest{Group: "web", At: at, Operator: "tester"}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	if pid := b.pidOf(); !done.Started || pid == old || pid == 0 {
		t.Errorf("started %v, process %d, was %d", done.Started, pid, old)
	}
	b.reads("web/root", 1, 0, 4096)
	if r := b.role(); r.Role != recovery.Uncommitted || r.From != role.From || r.At != role.At || r.ID == role.ID {
		t.Errorf("the role was %+v, is %+v", role, r)
	}

	// Off for a rewind, and then the site died.
	b.endMachine()
	l, release := b.lifeOf()
	if err := l.j.Remember(stoppedKey, stoppedFor{Machine: "web1", Since: time.Now()}); err != nil {
		t.Fatal(err)
	}
	release()
	b.stop()
	b = w.run(cb)
	b.awaitState("web", control.StateSynced)
	await(t, "the machine runs again", func() bool { return b.pidOf() != 0 })
	b.reads("web/root", 1, 0, 4096)
	b.endMachine()
}

func (r *running) role() recovery.Reign {
	r.t.Helper()
	l, release := r.lifeOf()
	defer release()
	return l.roleNow()
}

// pidOf is the process of web's machine; 0: it does not run.
func (r *running) pidOf() int {
	r.t.Helper()
	l, release := r.lifeOf()
	defer release()
	pid, err := l.machine(l.cfg.Machine).Process()
	if err != nil && !errors.Is(err, recovery.ErrNotRunning) {
		r.t.Fatal(err)
	}
	return pid
}
