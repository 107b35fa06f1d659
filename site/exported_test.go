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

	"github.com/novacron/afterimage/cbt/nbd"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/site/control"
)

// A write that is under way when the group changes its role, because a peer asks to follow
// from an earlier record for one, is answered by the life that comes next: the machine
// that waits for it sees a pause. Who went away meanwhile is not written for.
func TestAWriteOutlivesTheChangeOfItsGroupsRole(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.run(w.configure("a", twoGroups))
	a.awaitState("web", control.StateSynced)
	x := a.exported("web/root")
	over := errors.New("the client went away")
	for _, goes := range []bool{false, true} {
		ctx, leave := context.WithCancelCause(context.Background())
		tries := 0
		err := x.with(ctx, func(ctx context.Context, d nbd.Device) error {
			if tries++; tries > 1 {
				return d.WriteAt(ctx, bytes.Repeat([]byte{7}, 512), 0, false)
			}
			if goes {
				leave(over)
			}
			l, release := a.lifeOf()
			defer release()
			l.next()
			<-ctx.Done() // as a write that waits for its record
			return context.Cause(ctx)
		})
		leave(nil)
		switch {
		case !goes && (err != nil || tries != 2):
			t.Errorf("asked %d times: %v", tries, err)
		case goes && (err == nil || tries != 1):
			t.Errorf("asked %d times for a client that is gone: %v", tries, err)
		}
	}
	a.reads("web/root", 7, 0, 512)
}

// exported is a disk as clients reach it: through its group, whatever becomes of that.
func (r *running) exported(name string) *exported {
	r.t.Helper()
	x, ok := r.device(name).(*exported)
	if !ok {
		r.t.Fatal("the disk is not reached through its group")
	}
	return x
}

// What is under way when the site ends is not kept for a life that never comes.
func TestAWriteEndsWithItsSite(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.run(w.configure("a", twoGroups))
	a.awaitState("web", control.StateSynced)
	x := a.exported("web/root")
	began, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- x.with(context.Background(), func(ctx context.Context, _ nbd.Device) error {
			close(began)
			<-ctx.Done()
			return context.Cause(ctx)
		})
	}()
	<-began
	a.stop()
	if err := <-done; !errors.Is(err, errDetached) {
		t.Error(err)
	}
}

// A journal that fails answers its writers before its life is known to be over: they wait
// for the next one all the same.
func TestAWriteOutlivesTheFailureOfItsJournal(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.run(w.configure("a", twoGroups))
	a.awaitState("web", control.StateSynced)
	x := a.exported("web/root")
	for _, ends := range []error{journal.ErrFailed, journal.ErrClosed} {
		tries, failed, done := 0, make(chan struct{}), make(chan error, 1)
		go func() {
			done <- x.with(context.Background(), func(ctx context.Context, d nbd.Device) error {
				if tries++; tries > 1 {
					return d.WriteAt(ctx, bytes.Repeat([]byte{8}, 512), 0, false)
				}
				close(failed)
				return fmt.Errorf("write: %w", ends)
			})
		}()
		<-failed
		l, release := a.lifeOf()
		l.next()
		release()
		if err := <-done; err != nil || tries < 2 {
			t.Errorf("%v: asked %d times: %v", ends, tries, err)
		}
	}
	a.reads("web/root", 8, 0, 512)

	const writers = 4
	stop, ended := make(chan struct{}), make(chan error, writers)
	for i := range int64(writers) {
		go func() {
			for {
				select {
				case <-stop:
					ended <- nil
					return
				default:
				}
				if err := x.WriteAt(context.Background(), bytes.Repeat([]byte{9}, 512), 4096*(i+1), false); err != nil {
					ended <- err
					return
				}
			}
		}()
	}
	for range 3 {
		was, release := a.lifeOf()
		unwritable(t, filepath.Join(was.dir, "segments"))
		release()
		await(t, "the next life reigns", func() bool {
			return a.lives("web", func(now *life) bool { return now != was && now.reigning() != nil })
		})
	}
	close(stop)
	for range writers {
		if err := <-ended; err != nil {
			t.Errorf("a write while the journal failed: %v", err)
		}
	}
}

// unwritable makes the files in dir that are open refuse to be written to.
func unwritable(t *testing.T, dir string) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	n := 0
	for _, e := range fds {
		to, err := os.Readlink(filepath.Join("/proc/self/fd", e.Name()))
		if err != nil || filepath.Dir(to) != dir {
			continue
		}
		var fd int
		if _, err := fmt.Sscan(e.Name(), &fd); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Dup3(int(null.Fd()), fd, syscall.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		n++
	}
	if n == 0 {
		t.Fatalf("nothing in %s is open", dir)
	}
}
