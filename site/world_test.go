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
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt/nbd"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/testbed/port"
)

// world is a directory for sites, with a path short enough for sockets.
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
	plain := func(name string) string {
		pin, err := Pin(w.configure(name, ""))
		if err != nil {
			w.t.Fatal(err)
		}
		return pin
	}
	pinA, pinB := plain("a"), plain("b")
	a = w.configure("a", "listen: "+port.Address(w.t)+"\npeers: [{name: b, pin: \""+pinB+"\"}]\ngroups:\n- name: web\n  role: primary\n  peers: [b]\n  volumes: [{name: root, size: 1MiB, embedded: {image: root.img}}, {name: data, size: 2MiB, embedded: {image: data.img}}]\n"+extraA)
	b = w.configure("b", "listen: "+port.Address(w.t)+"\npeers: [{name: a, pin: \""+pinA+"\"}]\ngroups:\n- name: web\n  peers: [a]\n"+extraB)
	return a, b
}

// running is a site that runs.
type running struct {
	*Site
	t    *testing.T
	stop func()
	log  *lockedBuffer
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
	s, err := Open(c, o)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("site %s: %v", c.Site, err)
		}
		if err := s.Close(); err != nil {
			w.t.Errorf("site %s: %v", c.Site, err)
		}
		if w.t.Failed() {
			w.t.Logf("log of site %s:\n%s", c.Site, log)
		}
	})
	w.t.Cleanup(stop)
	return &running{s, w.t, stop, log}
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
	return w.run(a), rb
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
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(time.Minute)
	for !ok() {
		select {
		case <-tick.C:
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

// device is an exported disk, past the NBD server.
func (r *running) device(name string) nbd.Device {
	r.t.Helper()
	x, err := r.lookupExport(context.Background(), name)
	if err != nil {
		r.t.Fatal(err)
	}
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

// awaitLevel waits until b holds all that a has.
func awaitLevel(a, b *running, name string) {
	a.t.Helper()
	await(a.t, "the replica is level", func() bool {
		x, y := a.groupLine(name), b.groupLine(name)
		return x.Seq == y.Durable && x.EpochID == y.EpochID
	})
}
