package site

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
	"github.com/novacron/afterimage/testbed/scale"
)

// localGroup is a group whose machine has its disks for its own.
type localGroup struct {
	*running
	dir string // of the images
}

// asked is what each verb hears that needs the machine off, and followed to its end.
func (r *localGroup) asked() (handover, ceding, yield, stood error) {
	r.t.Helper()
	l, release := r.lifeOf()
	defer release()
	ctx := r.t.Context()
	_, stood = l.seenOff(ctx)
	return l.writerIsOff(ctx, ""), l.stayedOff(ctx), l.machineIsOff(ctx), stood
}

// runs asserts that every verb is told why the machine does not count as off.
func (r *localGroup) runs(when, why string) {
	r.t.Helper()
	handover, ceding, yield, stood := r.asked()
	if handover == nil || ceding == nil || !fault.Is(yield, fault.PrimaryAlive) || stood == nil || !strings.Contains(stood.Error(), why) {
		r.t.Errorf("%s: %v; %v; %v; %v", when, handover, ceding, yield, stood)
	}
}

// rewindRefused is why a rewind is, or is not planned at all; "": it is not.
func (r *localGroup) rewindRefused() string {
	p, err := r.PlanRewind(r.t.Context(), control.RewindRequest{Group: "web", At: "latest"})
	if err != nil {
		return err.Error()
	}
	return strings.Join(p.Refused, "; ")
}

// away moves what tells of the machine out of the way, and gives what puts it back.
func (r *localGroup) away(files ...string) (back func()) {
	r.t.Helper()
	rename := func(from, to string) {
		for _, f := range files {
			if err := os.Rename(f+from, f+to); err != nil {
				r.t.Fatal(err)
			}
		}
	}
	rename("", ".away")
	return func() { rename(".away", "") }
}

// opened holds the image of root as a QEMU does that has it open.
func (r *localGroup) opened() (end func()) {
	r.t.Helper()
	return lockedAsQEMU(r.t, filepath.Join(r.dir, "default-web-root.img"))
}

func lockedAsQEMU(t *testing.T, path string) (end func()) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err == nil {
		err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: 100, Len: 200})
	}
	if err != nil {
		t.Fatal(err)
	}
	return func() { _ = f.Close() }
}

// A machine that has its disks for its own is asked for like any tapped one before its
// group is handed over, left, stood down from or rewound: it is off when its sockets, the
// processes and the disks say so, and its history is whole when it was followed to its end.
func TestTheMachineOfLocalDisksIsSeenOffAndFollowedToItsEnd(t *testing.T) {
	scale.Tools(t, "qemu-system-x86_64")
	w := newWorld(t)
	ca, cb := w.pair("", patientStamper)
	a, b := w.runPair(ca, cb)
	w.stamped(cb, a, b)
	r := &localGroup{b, filepath.Join(w.dir, "images")}
	if moved, err := b.moves(r.dir, true); err != nil || moved.Unprotected != "" {
		t.Fatalf("%+v, %v", moved, err)
	}
	b.awaitStamps()
	decide(t, b, control.VerbCommit, "")
	b.awaitState("web", control.StateSynced)
	l, release := b.lifeOf()
	own, tap := l.machine(l.cfg.Machine).Monitors()
	release()
	pidFile := filepath.Join(filepath.Dir(own), "qemu.pid")

	r.runs("it runs", "(process ")
	back := r.away(pidFile)
	r.runs("its pid file is gone", "a machine answers at")
	if why := r.rewindRefused(); !strings.Contains(why, "a machine answers at") {
		t.Errorf("a rewind under a machine that nobody told of: %q", why)
	}
	sockets := r.away(own, tap)
	r.runs("its sockets are gone too", "which was told of it, runs")
	sockets()
	back()

	b.endMachine()
	await(t, "it is off for all, and was followed to its end", func() bool {
		handover, ceding, yield, stood := r.asked()
		return handover == nil && ceding == nil && yield == nil && stood == nil
	})
	if why := r.rewindRefused(); why != "" {
		t.Errorf("a rewind once it is off: %s", why)
	}
	end := r.opened()
	r.runs("somebody has a disk open", "a process has its disk open")
	if why := r.rewindRefused(); !strings.Contains(why, "has its disk open") {
		t.Errorf("a rewind of a disk that somebody has open: %q", why)
	}
	end()

	b.stop() // whoever ran it meanwhile was seen by nobody
	r.running = w.run(cb)
	r.awaitState("web", control.StateGap)
	await(t, "the tap has told that nobody is there", func() bool {
		_, _, yield, _ := r.asked()
		return yield == nil
	})
	handover, ceding, _, stood := r.asked()
	if handover == nil || ceding == nil || !strings.Contains(ceding.Error(), "was not followed") || stood != nil {
		t.Errorf("not followed in this epoch: %v; %v; %v", handover, ceding, stood)
	}
	if why := r.rewindRefused(); why == "" {
		t.Error("a rewind of what nobody followed")
	}
	r.standDown("web")
	end = r.opened()
	if _, _, _, stood := r.asked(); stood == nil || !strings.Contains(stood.Error(), "a process has its disk open") {
		t.Errorf("stood down, and somebody has a disk open: %v", stood)
	}
	end()
	if _, err := r.PlanDecision(context.Background(), control.DecisionRequest{Verb: control.VerbStandDown, Group: "web"}); err != nil {
		t.Error(err)
	}
}
