package site

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/qemu"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// fakeTracker runs until its context ends.
type fakeTracker struct {
	mu      sync.Mutex // guards what follows
	running bool
	left    error // why it ended
}

func (f *fakeTracker) Run(ctx context.Context) error {
	f.mu.Lock()
	f.running = true
	f.mu.Unlock()
	<-ctx.Done()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.running, f.left = false, context.Cause(ctx)
	return nil
}

func (f *fakeTracker) Status() []cbt.VolumeStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.running {
		return []cbt.VolumeStatus{{State: cbt.StateSynced}}
	}
	return []cbt.VolumeStatus{{State: cbt.StateDetached}}
}

// leftTracker is of a machine that an earlier life left stopped.
type leftTracker struct {
	fakeTracker
	woken chan error // what becomes of attempts to wake it
}

func (f *leftTracker) WakeLeft(context.Context) error { return <-f.woken }

// A machine that was left stopped is woken during a pause too, as often as it takes; who
// ends the pause does not wait for more.
func TestAPauseLeavesNoMachineStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		left := &leftTracker{woken: make(chan error)}
		p := pause{Since: time.Now(), Until: time.Now().Add(time.Hour), Reason: "move"}
		tap, err := newTapping(p, time.Now, func(pause) error { return nil }, func() (cbt.Tracker, error) { return left, nil })
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- tap.Run(ctx) }()
		left.woken <- errors.New("libvirtd is not there")
		left.woken <- nil
		synctest.Wait()
		if s := tap.Status()[0]; s.State != cbt.StateDetached || s.Cause != cbt.CauseDetached {
			t.Errorf("%+v in the pause", s)
		}
		if err := tap.set(ctx, pause{}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if s := tap.Status()[0]; s.State != cbt.StateSynced {
			t.Errorf("%+v after the pause", s)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestPauseEndsByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var made []*fakeTracker
		var kept pause
		tap, err := newTapping(pause{}, time.Now, func(p pause) error { kept = p; return nil }, func() (cbt.Tracker, error) {
			made = append(made, new(fakeTracker))
			return made[len(made)-1], nil
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- tap.Run(ctx) }()
		synctest.Wait()
		state := func() cbt.VolumeStatus { return tap.Status()[0] }
		if state().State != cbt.StateSynced {
			t.Fatalf("%+v before the pause", state())
		}
		p := pause{Since: time.Now(), Until: time.Now().Add(time.Hour), Reason: "move"}
		if err := tap.set(ctx, p); err != nil {
			t.Fatal(err)
		}
		if s := state(); s.State != cbt.StateDetached || !strings.Contains(s.Detail, "move") || kept != p {
			t.Errorf("%+v in the pause, remembered %+v", s, kept)
		}
		if first := made[0]; first.running || !errors.Is(first.left, p) {
			t.Errorf("the tracker ended because of %v", first.left)
		}
		<-time.After(time.Hour - time.Second) // of the bubble's clock
		synctest.Wait()
		if state().State != cbt.StateDetached {
			t.Error("the pause ended early")
		}
		<-time.After(2 * time.Second)
		synctest.Wait()
		if s := state(); s.State != cbt.StateSynced || s.Detail != "" || len(made) != 2 {
			t.Errorf("%+v after the pause, %d trackers", s, len(made))
		}
		// Once more, and ended early; then a start in the middle of a pause.
		p.Until = time.Now().Add(time.Hour)
		if err := tap.set(ctx, p); err != nil {
			t.Fatal(err)
		}
		if err := tap.set(ctx, pause{}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if s := state(); s.State != cbt.StateSynced {
			t.Errorf("%+v after an early end", s)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		again, err := newTapping(p, time.Now, nil, func() (cbt.Tracker, error) { return new(fakeTracker), nil })
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel = context.WithCancel(t.Context())
		go func() { done <- again.Run(ctx) }()
		synctest.Wait()
		if s := again.Status()[0]; s.State != cbt.StateDetached || s.Cause != cbt.CauseDetached || s.Detail != p.Error() {
			t.Errorf("%+v after a restart in the pause", s)
		}
		cancel()
		<-done
	})
}

// watchedAt is how the watchdog is told of the domain where cycles are made of it.
func (w *domainWorld) watchedAt(l *life) string {
	w.t.Helper()
	o := qemu.Options{Name: l.trackerName(""), Every: time.Hour}
	if err := l.throughLibvirt(&guestTap{Tap: l.cfg.Taps()[0], plugs: l.reigning().plugs[0]}, &o); err != nil {
		w.t.Fatal(err)
	}
	return o.WatchdogQMP
}

// A paused domain takes a snapshot that it refuses while it is tapped. After a
// pause without one the delta is read; after one the node is another, and all is
// read and compared.
func TestPausedDomainIsLeftAlone(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	w := newDomainWorld(t, config.PassthroughAllowed)
	r := w.start()
	r.awaitState("web", control.StateSynced)
	w.guestWrites(0, 0x11, 0)
	for _, q := range []control.PauseRequest{{Group: "web", Reason: "why not"}, {Group: "web", Seconds: 60}, {Group: "web", Seconds: 1e9, Reason: "for ever"}} {
		if _, err := r.Pause(ctx, q); !fault.Is(err, fault.Usage) {
			t.Errorf("%+v: %v", q, err)
		}
	}
	if _, err := r.Resume(ctx, control.ResumeRequest{Group: "web"}); !fault.Is(err, fault.Usage) {
		t.Errorf("resumed what is not paused: %v", err)
	}
	pauseFor := func(reason string) {
		t.Helper()
		if _, err := r.Pause(ctx, control.PauseRequest{Group: "web", Seconds: 3600, Reason: reason}); err != nil {
			t.Fatal(err)
		}
		g := r.groupLine("web")
		if g.State != control.StatePaused || g.Paused == nil || g.Paused.Reason != reason || len(g.Notices) == 0 || g.Notices[0].Level != control.Alarm {
			t.Errorf("while paused: %+v", g)
		}
	}
	resume := func(full bool) {
		t.Helper()
		if _, err := r.Resume(ctx, control.ResumeRequest{Group: "web"}); err != nil {
			t.Fatal(err)
		}
		r.awaitState("web", control.StateSynced)
		for _, v := range r.detail("web").Volumes {
			if v.Resync == nil || v.Resync.Full != full || v.Resync.Journaled > 64<<10 {
				t.Errorf("%s after the pause: %+v", v.Name, v.Resync)
			}
		}
	}
	pauseFor("to see the delta")
	w.guestWrites(0, 0x22, 1<<20)
	l, release := r.lifeOf()
	address := w.watchedAt(l)
	if err := l.j.Remember("qemu/"+l.trackerName("").String()+"/still", true); err != nil {
		t.Fatal(err)
	}
	release()
	w.virsh("suspend", "web") // as the instant of a cycle leaves it
	r.stop()                  // the pause outlives the daemon
	r = w.start()
	r.awaitState("web", control.StatePaused)
	runs := func() bool { return strings.TrimSpace(w.virsh("domstate", "web")) == "running" }
	await(t, "the guest goes on in the pause", runs)
	w.virsh("suspend", "web")
	m, err := dialWatched(ctx, address) // as the watchdog process does
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(m.Execute(ctx, "cont", nil, nil), m.Close()); err != nil || !runs() {
		t.Errorf("through the watchdog's monitor: %v", err)
	}
	resume(false)

	pauseFor("somebody's snapshot")
	w.virsh("snapshot-create-as", "web", "theirs", "--disk-only", "--no-metadata")
	w.guestWrites(1, 0x33, 2<<20)
	resume(true)
	w.guestWrites(1, 0x44, 3<<20)
	root, data := w.restored(r, "latest")
	if !filled(root, 0x11, 0) || !filled(root, 0x22, 1<<20) || !filled(data, 0x33, 2<<20) || !filled(data, 0x44, 3<<20) {
		t.Error("the newest point is not what the guest wrote")
	}
}
