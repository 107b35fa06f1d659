package nbd_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/nbd"
)

// start runs a server program until the test ends and waits for its socket.
func start(t testing.TB, socket, name string, args ...string) (kill func()) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stderr = os.Stderr
	must(t, cmd.Start())
	gone := make(chan struct{})
	go func() {
		cmd.Wait()
		close(gone)
	}()
	kill = func() {
		cmd.Process.Kill()
		<-gone
	}
	t.Cleanup(kill)
	waitFor(t, name+" to listen", func() bool {
		c, err := net.Dial("unix", socket)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return kill
}

// nbdkit runs nbdkit with args and returns its socket.
func nbdkit(t testing.TB, args ...string) string {
	need(t, "nbdkit")
	socket := filepath.Join(socketDir(t), "k")
	start(t, socket, "nbdkit", append([]string{"-f", "--exit-with-parent", "-U", socket}, args...)...)
	return socket
}

// qemuNBD serves image with args and returns the socket.
func qemuNBD(t testing.TB, image string, args ...string) string {
	need(t, "qemu-nbd")
	socket := filepath.Join(socketDir(t), "q")
	start(t, socket, "qemu-nbd", append(args, "--persistent", "--shared=4", "-k", socket, image)...)
	return socket
}

// TestClientRoundTrip exercises our client against the servers that people run.
func TestClientRoundTrip(t *testing.T) {
	need(t, "qemu-img")
	raw := filepath.Join(t.TempDir(), "raw")
	must(t, os.WriteFile(raw, nil, 0o600))
	must(t, os.Truncate(raw, 1<<20))
	for name, serve := range map[string]func(*testing.T) string{
		"qemu-nbd": func(t *testing.T) string { return qemuNBD(t, raw, "-f", "raw", "--discard=unmap") },
		"nbdkit":   func(t *testing.T) string { return nbdkit(t, "memory", "1M") },
		"nbdkit without zero and FUA": func(t *testing.T) string {
			return nbdkit(t, "--filter=nozero", "--filter=fua", "memory", "1M")
		},
		"nbdkit old replies": func(t *testing.T) string { return nbdkit(t, "--no-sr", "memory", "1M") },
	} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, "unix", serve(t), nbd.DialOptions{})
			t.Logf("%+v", c.Info())
			model := make([]byte, 1<<20)
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			must(t, exercise(t, c, rand.New(rand.NewPCG(seed, 0)), model, 0))
			must(t, c.Flush(testContext(t)))
		})
	}
}

// TestDirtyBitmap reads QEMU's bitmap of a qcow2 image, and misses it where
// there is none.
func TestDirtyBitmap(t *testing.T) {
	need(t, "qemu-img", "qemu-io", "qemu-nbd")
	image := filepath.Join(t.TempDir(), "image.qcow2")
	tool(t, "qemu-img", "create", "-q", "-f", "qcow2", image, "6G")
	tool(t, "qemu-io", "-f", "qcow2", "-c", "write 0 1M", image)
	tool(t, "qemu-img", "bitmap", "--add", "-g", "4096", image, "since")
	tool(t, "qemu-io", "-f", "qcow2", "-c", "write 8k 4k", "-c", "write 64k 100", "-c", "write 5G 1M", image)

	name, ctx := nbd.ContextDirtyBitmap("since"), testContext(t)
	c := dial(t, "unix", qemuNBD(t, image, "-f", "qcow2", "-r", "--bitmap=since"),
		nbd.DialOptions{MetaContexts: []string{nbd.ContextAllocation, name}})
	es, err := c.BlockStatus(ctx, name, cbt.Extent{Length: 6 << 30})
	must(t, err)
	var dirty []cbt.Extent
	for _, x := range es {
		if x.Flags&nbd.StateDirty != 0 {
			dirty = append(dirty, x.Extent)
		}
	}
	want := []cbt.Extent{{Offset: 8 << 10, Length: 4 << 10}, {Offset: 64 << 10, Length: 4 << 10}, {Offset: 5 << 30, Length: 1 << 20}}
	if d := cmp.Diff(want, dirty); d != "" {
		t.Errorf("dirty extents (-want +got):\n%s", d)
	}
	st, err := c.Status(ctx, cbt.Extent{Length: 6 << 30})
	must(t, err)
	if len(st) != 4 || st[0] != (nbd.StatusExtent{Length: 1 << 20}) || !st[1].Hole {
		t.Errorf("allocation beside the bitmap: %v", st)
	}

	c = dial(t, "unix", qemuNBD(t, image, "-f", "qcow2", "-r"), nbd.DialOptions{MetaContexts: []string{name}})
	if _, err := c.BlockStatus(ctx, name, cbt.Extent{Length: 4096}); !errors.Is(err, nbd.ErrNoMetaContext) {
		t.Errorf("bitmap that is not exported: %v", err)
	}
}

// TestRemoteErrors sees an error of the server with its number, and goes on.
func TestRemoteErrors(t *testing.T) {
	flag := filepath.Join(t.TempDir(), "fail")
	must(t, os.WriteFile(flag, nil, 0o600))
	socket := nbdkit(t, "--filter=error", "memory", "1M", "error-pwrite=ENOSPC", "error-pwrite-rate=100%", "error-pwrite-file="+flag)
	c, ctx := dial(t, "unix", socket, nbd.DialOptions{}), testContext(t)
	var remote *nbd.RemoteError
	err := c.WriteAt(ctx, make([]byte, 512), 0, false)
	if !errors.Is(err, nbd.ENOSPC) || !errors.As(err, &remote) || remote.Command != "write" {
		t.Errorf("failing write: %v", err)
	}
	must(t, os.Remove(flag))
	must(t, c.WriteAt(ctx, make([]byte, 512), 0, false))
}

// TestSlowServer keeps many requests in flight and lets a call go that is not
// waited for any more.
func TestSlowServer(t *testing.T) {
	c := dial(t, "unix", nbdkit(t, "--filter=delay", "memory", "1M", "delay-read=1"), nbd.DialOptions{})
	begin := time.Now()
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			if err := c.ReadAt(testContext(t), make([]byte, 4096), int64(i)*4096); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if d := time.Since(begin); d >= 10*time.Second { // one after the other they would
		t.Errorf("ten reads of 1 s at once took %v", d)
	}
	ctx, cancel := context.WithTimeout(testContext(t), 20*time.Millisecond)
	defer cancel()
	if err := c.ReadAt(ctx, make([]byte, 4096), 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("read with a deadline: %v", err)
	}
	must(t, c.WriteAt(testContext(t), make([]byte, 4096), 0, false))
	if err := c.Err(); err != nil {
		t.Errorf("connection was given up: %v", err)
	}
}

// TestServerDies completes the calls in flight and closes Done.
func TestServerDies(t *testing.T) {
	need(t, "nbdkit")
	socket := filepath.Join(socketDir(t), "k")
	kill := start(t, socket, "nbdkit", "-f", "-U", socket, "--filter=delay", "memory", "1M", "delay-read=60")
	c := dial(t, "unix", socket, nbd.DialOptions{})
	ended := make(chan error, 1)
	go func() { ended <- c.ReadAt(context.Background(), make([]byte, 512), 0) }()
	must(t, c.WriteAt(testContext(t), make([]byte, 512), 0, false))
	kill()
	for _, what := range []string{"call", "Done"} {
		select {
		case err := <-ended:
			if !errors.Is(err, nbd.ErrDisconnected) {
				t.Errorf("call of a dead server: %v", err)
			}
			ended = nil
		case <-c.Done():
		case <-time.After(testPatience):
			t.Fatalf("%s does not end with the server", what)
		}
	}
	if err := c.Flush(testContext(t)); !errors.Is(err, nbd.ErrDisconnected) {
		t.Errorf("call after the end: %v", err)
	}
}
