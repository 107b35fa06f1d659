package qemu

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/cbttest"
	"github.com/novacron/afterimage/cbt/mode"
	"github.com/novacron/afterimage/cbt/nbd"
	"github.com/novacron/afterimage/cbt/qmp"
)

// These tests hold no code of ours to account, but the QEMU that is installed:
// each is something that the driver rests on.

// target is a capture export that notes what arrives, and can fall silent or ill.
type target struct {
	mu     sync.Mutex // guards what follows
	seen   []string
	silent chan struct{} // requests wait for it while it is not nil
	errno  error
	came   chan struct{} // signalled at each request
}

func (d *target) note(format string, a ...any) error {
	d.mu.Lock()
	d.seen = append(d.seen, fmt.Sprintf(format, a...))
	silent, err := d.silent, d.errno
	d.mu.Unlock()
	signal(d.came)
	if silent != nil {
		<-silent
	}
	return err
}

func (d *target) take() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := d.seen
	d.seen = nil
	return out
}

func (d *target) set(silent chan struct{}, errno error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.silent, d.errno = silent, errno
}

func (d *target) ReadAt(context.Context, []byte, int64) error { return d.note("read") }
func (d *target) WriteAt(_ context.Context, p []byte, off int64, fua bool) error {
	return d.note("write %d+%d fua=%v", off, len(p), fua)
}
func (d *target) Zero(_ context.Context, e cbt.Extent, _, _ bool) error {
	return d.note("zero %d+%d", e.Offset, e.Length)
}
func (d *target) Trim(_ context.Context, e cbt.Extent, _ bool) error {
	return d.note("trim %d+%d", e.Offset, e.Length)
}
func (d *target) Flush(context.Context) error { return d.note("flush") }
func (d *target) Status(_ context.Context, e cbt.Extent) ([]nbd.StatusExtent, error) {
	return []nbd.StatusExtent{{Length: e.Length}}, nil
}

// targeted makes a target node of a target's export; die ends the server behind it.
func targeted(t *testing.T, m *cbttest.Machine, node args) (d *target, c commands, die func()) {
	t.Helper()
	d = &target{came: make(chan struct{}, 1)}
	socket := filepath.Join(m.Dir, "t")
	die = d.serve(t, socket, m.Disks[0].Bytes)
	c = commands{qmpMonitor{m.Own}}
	a := args{"driver": "nbd", "node-name": "target", "export": "good", "reconnect-delay": 0, "server": args{"type": "unix", "path": socket}}
	maps.Copy(a, node)
	if err := c.do(cbttest.Context(t, patience), "blockdev-add", a, nil); err != nil {
		t.Fatal(err)
	}
	return d, c, die
}

// serve offers d as the export "good" until the test ends, or die is called.
func (d *target) serve(t *testing.T, socket string, size int64) (die func()) {
	t.Helper()
	s := nbd.NewServer(nbd.ServerOptions{
		Grace: 50 * time.Millisecond, Drain: 50 * time.Millisecond,
		Lookup: func(_ context.Context, name string) (*nbd.Export, error) {
			if name != "good" {
				return nil, nbd.ErrUnknownExport
			}
			return &nbd.Export{Name: name, Size: size, Device: d}, nil
		}})
	l, err := nbd.ListenUnix(socket, 0)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan struct{})
	go func() {
		defer close(served)
		s.Serve(ctx, l) // ErrStuck, where a test leaves the target silent
	}()
	die = func() { cancel(); <-served }
	t.Cleanup(die)
	return die
}

// mirrored starts the tap's mirror of disk a into a target.
func mirrored(t *testing.T, m *cbttest.Machine) (*target, commands) {
	t.Helper()
	d, c, _ := targeted(t, m, nil)
	run := cbttest.Context(t, patience)
	if err := c.mirror(run, "job", "a", "target"); err != nil {
		t.Fatal(err)
	}
	cbttest.Eventually(t, patience, "the job is ready", func() bool {
		j, err := c.job(run, "job")
		return err == nil && j != nil && j.Ready
	})
	d.take() // the job flushes its target once as it starts
	select {
	case <-d.came:
	default:
	}
	return d, c
}

// With sync=none every write of the guest arrives from the job's start, exact in
// offset and length; FLUSH and FUA do not.
func TestFactWritesArriveExactly(t *testing.T) {
	m := cbttest.StartStorageDaemon(t, cbttest.DiskSpec{Name: "a", Bytes: 8 << 20})
	d, _ := mirrored(t, m)
	g, ctx := m.Guest(t, "a"), cbttest.Context(t, patience)
	var want []string
	for i, e := range []cbt.Extent{{Offset: 1000, Length: 513}, {Offset: 4096, Length: 100}, {Offset: 0, Length: 1}, {Offset: 1 << 20, Length: 2 << 20}, {Offset: 8<<20 - 1, Length: 1}} {
		if err := g.WriteAt(ctx, bytes.Repeat([]byte{byte(i + 1)}, int(e.Length)), e.Offset, i%2 == 1); err != nil {
			t.Fatal(err)
		}
		want = append(want, fmt.Sprintf("write %d+%d fua=false", e.Offset, e.Length))
		if err := g.Flush(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.Zero(ctx, cbt.Extent{Offset: 65536, Length: 131072}, false, false); err != nil {
		t.Fatal(err)
	}
	want = append(want, "zero 65536+131072")
	if err := g.Trim(ctx, cbt.Extent{Offset: 262144, Length: 65536}, false); err != nil {
		t.Fatal(err)
	}
	// The drive has discard=unmap, but its target has not: a discard stays at home.
	if got := d.take(); !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

// Whatever the target answers, the guest goes on and the job ends.
func TestFactReportNeverReachesTheGuest(t *testing.T) {
	for _, errno := range []error{nbd.EIO, nbd.ENOSPC, nbd.ESHUTDOWN} {
		m := cbttest.StartStorageDaemon(t, cbttest.DiskSpec{Name: "a", Bytes: 8 << 20})
		d, c := mirrored(t, m)
		d.set(nil, errno)
		g, ctx := m.Guest(t, "a"), cbttest.Context(t, patience)
		for i := range 20 {
			if err := g.WriteAt(ctx, []byte{1, 2, 3}, int64(i)*512, false); err != nil {
				t.Fatalf("%v reached the guest: %v", errno, err)
			}
		}
		cbttest.Eventually(t, patience, "the job ends", func() bool {
			j, err := c.job(ctx, "job")
			return err == nil && j == nil
		})
	}
}

// An export that the server does not know is refused to QEMU.
func TestFactUnknownExportIsRefused(t *testing.T) {
	m := cbttest.StartStorageDaemon(t, cbttest.DiskSpec{Name: "a", Bytes: 8 << 20})
	_, c := mirrored(t, m)
	err := c.addTarget(cbttest.Context(t, patience), "other", filepath.Join(m.Dir, "t"), "stale")
	if !qmp.IsRefused(err) {
		t.Errorf("got %v", err)
	}
}

// A silent target stalls the guest; yank, out of band, frees it at once.
func TestFactYankFreesASilentTarget(t *testing.T) {
	m := cbttest.StartQEMU(t, cbttest.DiskSpec{Name: "a", Bytes: 8 << 20})
	d, c := mirrored(t, m)
	silent := make(chan struct{})
	defer close(silent)
	d.set(silent, nil)
	g, ctx := m.Guest(t, "a"), cbttest.Context(t, patience)
	written := make(chan error, 1)
	go func() { written <- g.WriteAt(ctx, []byte{1}, 0, false) }()
	<-d.came
	select {
	case err := <-written:
		t.Fatalf("the guest did not wait for the target: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	began := time.Now()
	if err := c.yank(ctx, "target"); err != nil {
		t.Fatal(err)
	}
	if err := <-written; err != nil {
		t.Fatalf("the guest saw %v", err)
	}
	t.Logf("freed in %v", time.Since(began))
	if took := time.Since(began); took > patience/2 {
		t.Errorf("the guest was freed after %v", took)
	}
	if err := c.endJob(ctx); err != nil {
		t.Fatal(err)
	}
}

func (c commands) endJob(ctx context.Context) error {
	return (&machine{commands: c}).endJob(ctx, "job")
}

// A bitmap that is added while a write waits on the target does not know that
// write; the older one does.
func TestFactWriteInFlightIsInTheOlderBitmapOnly(t *testing.T) {
	m := cbttest.StartStorageDaemon(t, cbttest.DiskSpec{Name: "a", Bytes: 8 << 20})
	d, c := mirrored(t, m)
	ctx := cbttest.Context(t, patience)
	add := func(name string) {
		if err := c.addBitmap(ctx, "a", name, 65536, false, false); err != nil {
			t.Fatal(err)
		}
	}
	add("older")
	silent := make(chan struct{})
	d.set(silent, nil)
	g := m.Guest(t, "a")
	written := make(chan error, 1)
	go func() { written <- g.WriteAt(ctx, []byte{1}, 70000, false) }()
	<-d.came
	add("newer")
	close(silent)
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	n, err := c.node(ctx, "a")
	if err != nil {
		t.Fatal(err)
	}
	count := map[string]int64{}
	for _, b := range n.Bitmaps {
		count[b.Name] = b.Count
	}
	if count["older"] != 65536 || count["newer"] != 0 {
		t.Errorf("counts %v", count)
	}
}

// A persistent bitmap comes back inconsistent after a kill, with a count of
// nothing; one of a raw disk does not come back at all.
func TestFactKilledBitmapsCannotBeTrusted(t *testing.T) {
	m := cbttest.StartStorageDaemon(t, cbttest.DiskSpec{Name: "q", Bytes: 8 << 20, Format: "qcow2"}, cbttest.DiskSpec{Name: "r", Bytes: 8 << 20})
	c, ctx := commands{qmpMonitor{m.Own}}, cbttest.Context(t, patience)
	v := cbt.VolumeID(cbt.NewID())
	mem := map[string]mode.Remembered{}
	for _, node := range []string{"q", "r"} {
		name := freshName(v, "b")
		if err := c.addBitmap(ctx, node, name, 65536, node == "q", false); err != nil {
			t.Fatal(err)
		}
		if err := m.Guest(t, node).WriteAt(ctx, []byte("changed"), 0, true); err != nil {
			t.Fatal(err)
		}
		mem[node] = mode.Remembered{Node: node, Size: 8 << 20, Granularity: 65536, Bitmaps: []string{name}}
	}
	// Only what was stored once can come back at all, so store it once.
	if err := m.Own.Execute(ctx, "quit", nil, nil); err != nil {
		t.Fatal(err)
	}
	m.Kill()
	m.Boot(t)
	c = commands{qmpMonitor{m.Own}}
	n, err := c.node(ctx, "q")
	if err != nil {
		t.Fatal(err)
	}
	if got := judge(v, mem["q"], true, n); !got.Trusted {
		t.Errorf("after a clean end: %+v of %+v", got, n.Bitmaps)
	}
	if err := m.Guest(t, "q").WriteAt(ctx, []byte("changed"), 1<<20, true); err != nil {
		t.Fatal(err)
	}
	m.Kill()
	m.Boot(t)
	c = commands{qmpMonitor{m.Own}}
	for _, node := range []string{"q", "r"} {
		n, err := c.node(ctx, node)
		if err != nil {
			t.Fatal(err)
		}
		if got := judge(v, mem[node], true, n); got.Trusted || got.Busy {
			t.Errorf("%s: %+v of %+v", node, got, n.Bitmaps)
		} else {
			t.Logf("%s: %s", node, got.Why)
		}
		if node == "q" && (len(n.Bitmaps) != 1 || !n.Bitmaps[0].Inconsistent || n.Bitmaps[0].Count != 0) {
			t.Errorf("%+v", n.Bitmaps)
		}
	}
}
