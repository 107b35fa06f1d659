package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt/nbd"
	"github.com/novacron/afterimage/cbt/nbd/nbdtest"
)

// keeper fails every other write and keeps what it was given, as a sink does
// that was not waited for.
type keeper struct {
	nbd.Device
	mu   sync.Mutex // guards kept and n
	kept [][]byte
	n    int
}

func (k *keeper) WriteAt(_ context.Context, p []byte, _ int64, _ bool) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.n++; k.n%2 == 1 {
		k.kept = append(k.kept, p)
		return errors.New("kept")
	}
	return nil
}

// TestFailedPayloadIsNotReused: what a device may still hold never changes.
func TestFailedPayloadIsNotReused(t *testing.T) {
	m := nbdtest.NewMemory(1 << 20)
	x, k := m.Export("disk"), &keeper{Device: m}
	x.Device = k
	c := serve(t, "unix", nbd.ServerOptions{}, x).dial(t, nbd.DialOptions{Export: "disk"})
	for i := range 100 {
		err := c.WriteAt(testContext(t), bytes.Repeat([]byte{byte(i)}, 4096), 0, false)
		if (err != nil) != (i%2 == 0) {
			t.Fatalf("write %d: %v", i, err)
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for i, p := range k.kept {
		if !bytes.Equal(p, bytes.Repeat([]byte{byte(2 * i)}, 4096)) {
			t.Fatalf("payload %d was written over", i)
		}
	}
}

// TestClientGone: a client that vanishes ends the context of what it asked for,
// and the export is released after that.
func TestClientGone(t *testing.T) {
	m, held, released := nbdtest.NewMemory(1<<20), make(chan nbdtest.Op, 1), make(chan struct{})
	causes := make(chan error, 1)
	x := m.Export("disk")
	x.Release = func() { close(released) }
	x.Device = &nbdtest.Fault{Device: m, Before: func(ctx context.Context, op nbdtest.Op) error {
		held <- op
		<-ctx.Done()
		causes <- context.Cause(ctx)
		return ctx.Err()
	}}
	h := shake(t, serve(t, "unix", nbd.ServerOptions{}, x))
	h.open("disk")
	h.request(0, 1, 1, 0, 4, "held")
	<-held
	h.conn.Close()
	select {
	case err := <-causes:
		if !errors.Is(err, nbd.ErrDisconnected) {
			t.Errorf("cause %v", err)
		}
	case <-time.After(testPatience):
		t.Fatal("the device's context does not end")
	}
	<-released
}

// TestBackPressure: no more requests reach the device than are allowed in flight.
func TestBackPressure(t *testing.T) {
	m, release, held := nbdtest.NewMemory(1<<20), make(chan struct{}), make(chan nbdtest.Op, 100)
	x := m.Export("disk")
	x.Device = &nbdtest.Fault{Device: m, Before: nbdtest.HangUntil("read", release, false, held)}
	h := shake(t, serve(t, "unix", nbd.ServerOptions{MaxInFlight: 4}, x))
	h.open("disk")
	for i := range 20 {
		h.request(0, 0, uint64(i), 0, 1)
	}
	for range 4 {
		<-held
	}
	select {
	case <-held:
		t.Error("a fifth request reached the device")
	case <-time.After(50 * time.Millisecond):
	}
	close(release)
	seen := map[uint64]bool{}
	for range 20 {
		cookie, _ := h.simple()
		h.read(1)
		seen[cookie] = true
	}
	if len(seen) != 20 {
		t.Errorf("%d requests were answered, want 20", len(seen))
	}
}

func TestListenUnix(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	l, err := nbd.ListenUnix(path, 0o660)
	must(t, err)
	if got := modeOf(t, path); got != 0o660 {
		t.Errorf("mode %o", got)
	}
	if _, err := nbd.ListenUnix(path, 0); err == nil {
		t.Error("a socket in use was taken over")
	}
	must(t, l.Close())
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket file after close: %v", err)
	}
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	must(t, err)
	dead.SetUnlinkOnClose(false)
	must(t, dead.Close())
	l, err = nbd.ListenUnix(path, 0)
	must(t, err)
	must(t, l.Close())
	must(t, os.WriteFile(path, []byte("mine"), 0o600))
	if _, err := nbd.ListenUnix(path, 0); err == nil {
		t.Error("a file was taken over")
	}
}
