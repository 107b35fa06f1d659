package site

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt/nbd"
	"github.com/novacron/afterimage/replicator"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/testbed/port"
)

// world is a directory for sites, with a path short enough for sockets. Tests with worlds
// of their own wait more than they work, and run beside each other; those that measure,
// or live by leases of seconds, do not.
type world struct {
	t   *testing.T
	dir string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "ai")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return &world{t, dir}
}

// writeProgram makes a file that can be executed at once. Nobody begins a process while it
// is open for writing: until that process is its own program it has the file open too, and
// the kernel executes no such file (ETXTBSY).
func writeProgram(path, text string) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	return os.WriteFile(path, []byte(text), 0o700)
}

// unforked returns once no process that is being begun has what was closed before: until
// it is its own program it has all our sockets too, and their ports are taken.
func unforked() {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
}

// idle is a watchdog that only waits.
func (w *world) idle() string {
	w.t.Helper()
	path := filepath.Join(w.dir, "idle")
	if err := writeProgram(path, "#!/bin/sh\nexec cat >/dev/null\n"); err != nil {
		w.t.Fatal(err)
	}
	return path
}

// configure makes a site's configuration; {dir} is the world's directory.
func (w *world) configure(name, rest string) *config.Config {
	w.t.Helper()
	text := fmt.Sprintf("site: %s\ndata: %s\n%s", name, filepath.Join(w.dir, name), strings.ReplaceAll(rest, "{dir}", w.dir))
	c, err := config.Parse(filepath.Join(w.dir, name+".yml"), []byte(text))
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// pair is two sites that know each other: a is web's primary, b its replica.
func (w *world) pair(extraA, extraB string) (a, b *config.Config) {
	w.t.Helper()
	textA, textB := w.pairTexts(extraA, extraB)
	return w.configure("a", textA), w.configure("b", textB)
}

// pairTexts are the configurations of pair.
func (w *world) pairTexts(extraA, extraB string) (a, b string) {
	w.t.Helper()
	plain := func(name string) string {
		pin, err := Pin(w.configure(name, ""))
		if err != nil {
			w.t.Fatal(err)
		}
		return pin
	}
	pinA, pinB := plain("a"), plain("b")
	a = "listen: " + port.Address(w.t) + "\npeers: [{name: b, pin: \"" + pinB + "\"}]\ngroups:\n- name: web\n  role: primary\n  peers: [b]\n  volumes: [{name: root, size: 1MiB, embedded: {image: root.img}}, {name: data, size: 2MiB, embedded: {image: data.img}}]\n" + extraA
	b = "listen: " + port.Address(w.t) + "\npeers: [{name: a, pin: \"" + pinA + "\"}]\ngroups:\n- name: web\n  peers: [a]\n" + extraB
	return a, b
}

// running is a site that runs.
type running struct {
	*Site
	t    *testing.T
	stop func()
	log  *lockedBuffer
	over *atomic.Bool // it was stopped
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// run opens and runs a site; stop ends it as SIGTERM would, and is called at the end.
func (w *world) run(c *config.Config) *running {
	w.t.Helper()
	return w.runWith(c, Options{})
}

func (w *world) runWith(c *config.Config, o Options) *running {
	w.t.Helper()
	log := &lockedBuffer{}
	o.Log, o.Heartbeat = slog.New(slog.NewTextHandler(log, nil)), 20*time.Millisecond
	if o.HeadPatience == 0 { // a site that a test has stopped is not waited for
		o.HeadPatience = 100 * time.Millisecond
	}
	s, err := Open(c, o)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	over := new(atomic.Bool)
	stop := sync.OnceFunc(func() {
		over.Store(true)
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("site %s: %v", c.Site, err)
		}
		if err := s.Close(); err != nil {
			w.t.Errorf("site %s: %v", c.Site, err)
		}
		unforked()
		if w.t.Failed() {
			w.t.Logf("log of site %s:\n%s", c.Site, log)
		}
	})
	w.t.Cleanup(stop)
	return &running{s, w.t, stop, log, over}
}

// runPair runs both ends of a pair, a for the second time.
func (w *world) runPair(a, b *config.Config) (*running, *running) {
	w.t.Helper()
	ra := w.run(a)
	b.Peers[0].Address = ra.address()
	rb := w.run(b)
	ra.awaitState(a.Groups[0].Ref(), control.StateSynced)
	ra.stop()
	a.Peers[0].Address = rb.address() // frames are sent over connections that their source dialled
	ra = w.run(a)
	stop := ra.stop
	ra.stop = func() { // who is to take over sees that it is gone
		stop()
		rb.awaitGone(a.Site)
	}
	return ra, rb
}

// awaitGone waits until a site that was stopped is known to be away, unless r has ended too.
func (r *running) awaitGone(peer string) {
	r.t.Helper()
	await(r.t, peer+" is gone for "+r.cfg.Site, func() bool {
		answers := r.peers.get(peer).connections > 0
		for _, lag := range r.repl.Lags() {
			answers = answers || lag.Peer == peer && (lag.Connected || lag.State == replicator.StateStreaming || lag.State == replicator.StateCatchingUp)
		}
		return !answers || r.over.Load()
	})
}

func (r *running) address() string {
	r.t.Helper()
	var addr string
	await(r.t, "replicator listens", func() bool {
		st, err := r.Status(context.Background())
		addr = st.Listen
		return err == nil && !strings.HasSuffix(addr, ":0")
	})
	return addr
}

// await asks until ok, or fails.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	pace := 5 * time.Millisecond // less often later on: most of a test's work is this
	again := time.NewTimer(pace)
	defer again.Stop()
	limit := time.After(time.Minute)
	for !ok() {
		select {
		case <-again.C:
			pace = min(2*pace, 20*time.Millisecond)
			again.Reset(pace)
		case <-limit:
			t.Fatalf("after a minute not yet: %s", what)
		}
	}
}

func (r *running) groupLine(name string) control.Group {
	r.t.Helper()
	g, err := r.Group(context.Background(), name)
	if err != nil {
		r.t.Fatal(err)
	}
	return g.Group
}

func (r *running) awaitState(name, state string) {
	r.t.Helper()
	last := ""
	defer func() {
		if r.t.Failed() {
			r.t.Logf("%s at site %s was %q, want %q", name, r.cfg.Site, last, state)
		}
	}()
	await(r.t, name+" is "+state, func() bool {
		last = r.groupLine(name).State
		return last == state
	})
}

// device is an exported disk, past the NBD server, as soon as it is there.
func (r *running) device(name string) nbd.Device {
	r.t.Helper()
	var x *nbd.Export
	await(r.t, "site "+r.cfg.Site+" serves "+name, func() (ok bool) {
		var err error
		x, err = r.lookupExport(context.Background(), name)
		return err == nil
	})
	return x.Device
}

func (r *running) write(name string, fill byte, off, n int64) {
	r.t.Helper()
	if err := r.device(name).WriteAt(context.Background(), bytes.Repeat([]byte{fill}, int(n)), off, false); err != nil {
		r.t.Fatal(err)
	}
}

func (r *running) reads(name string, fill byte, off, n int64) {
	r.t.Helper()
	p := make([]byte, n)
	if err := r.device(name).ReadAt(context.Background(), p, off); err != nil {
		r.t.Fatal(err)
	}
	if !bytes.Equal(p, bytes.Repeat([]byte{fill}, int(n))) {
		r.t.Errorf("%s at %d is not all %#x, it begins % x", name, off, fill, p[:8])
	}
}

// awaitLevel waits until b holds all that a has. A reign that is only beginning is not all:
// what it carries over comes before its first point.
func awaitLevel(a, b *running, name string) {
	a.t.Helper()
	await(a.t, "the replica is level", func() bool {
		if a.groupLine(name).State == control.StateStarting {
			return false
		}
		x, y := a.groupLine(name), b.groupLine(name)
		return x.Seq == y.Durable && x.EpochID == y.EpochID
	})
}
