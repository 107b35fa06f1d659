package site

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/novacron/afterimage/cbt/nbd"
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
