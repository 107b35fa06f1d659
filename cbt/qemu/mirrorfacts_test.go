package qemu

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/cbttest"
	"github.com/novacron/afterimage/cbt/nbd"
)

// More of what the driver rests on: why its mirror has the options that it has.

// mirrorBy starts a mirror of disk a with options of its own.
func mirrorBy(t *testing.T, c commands, options args) {
	t.Helper()
	a := args{"job-id": "job", "device": "a", "target": "target", "sync": "none", "copy-mode": "write-blocking", "on-target-error": "report"}
	maps.Copy(a, options)
	if err := c.do(cbttest.Context(t, patience), "blockdev-mirror", a, nil); err != nil {
		t.Fatal(err)
	}
}

func (c commands) awaitReady(t *testing.T) {
	t.Helper()
	cbttest.Eventually(t, patience, "the job is ready", func() bool {
		j, err := c.job(cbttest.Context(t, patience), "job")
		return err == nil && j != nil && j.Ready
	})
}

// With sync=full the rest of the disk is copied beside the guest's writes, and the job
// says when it is there.
func TestFactFullMirrorTellsWhenItIsInSync(t *testing.T) {
	const size = 8 << 20
	m := cbttest.StartStorageDaemon(t, cbttest.DiskSpec{Name: "a", Bytes: size})
	g, ctx := m.Guest(t, "a"), cbttest.Context(t, patience)
	if err := g.WriteAt(ctx, bytes.Repeat([]byte{5}, 3<<20), 1<<20, false); err != nil {
		t.Fatal(err)
	}
	d, c, _ := targeted(t, m, nil)
	events := m.Own.Subscribe(1000)
	mirrorBy(t, c, args{"sync": "full"})
	for ready := false; !ready; {
		ev, err := events.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		ready = ev.Name == "BLOCK_JOB_READY"
	}
	if err := g.WriteAt(ctx, []byte{1, 2, 3}, 1000, false); err != nil {
		t.Fatal(err)
	}
	covered := []cbt.Extent{}
	for _, s := range d.take() {
		var e cbt.Extent
		if n, _ := fmt.Sscanf(strings.NewReplacer("zero", "write").Replace(s), "write %d+%d", &e.Offset, &e.Length); n == 2 {
			covered = append(covered, e)
		}
	}
	if all := cbt.Union(covered); len(all) != 1 || all[0] != (cbt.Extent{Length: size}) || !slices.Contains(covered, cbt.Extent{Offset: 1000, Length: 3}) {
		t.Errorf("of %d bytes %v were sent", size, all)
	}
}

// A guest's discard stays at home even where drive and target have discard=unmap, for
// the mirror's own node has not: nothing may rest on seeing it. Zeros that are written
// stay a write where nobody asked for detection, and become zeroes by their content
// where somebody did.
func TestFactDiscardsAndZerosReachTheTarget(t *testing.T) {
	for _, detect := range []string{"off", "on"} {
		m := cbttest.StartStorageDaemon(t, cbttest.DiskSpec{Name: "a", Bytes: 8 << 20})
		d, c, _ := targeted(t, m, args{"discard": "unmap", "detect-zeroes": detect})
		mirrorBy(t, c, nil)
		c.awaitReady(t)
		d.take()
		g, ctx := m.Guest(t, "a"), cbttest.Context(t, patience)
		if err := g.Trim(ctx, cbt.Extent{Offset: 262144, Length: 65536}, false); err != nil {
			t.Fatal(err)
		}
		if err := g.WriteAt(ctx, make([]byte, 65536), 1<<20, false); err != nil {
			t.Fatal(err)
		}
		want := []string{"write 1048576+65536 fua=false"}
		if detect == "on" {
			want[0] = "zero 1048576+65536"
		}
		if got := d.take(); !slices.Equal(got, want) {
			t.Errorf("detect-zeroes=%s: got %v, want %v", detect, got, want)
		}
	}
}

// Why errors are reported: with "ignore" the job says that it is ready although the
// target lacks what the guest wrote, and with "stop" nothing is sent any more and no
// guest's write waits for it.
func TestFactOtherErrorPoliciesLie(t *testing.T) {
	t.Run("ignore", func(t *testing.T) {
		m := cbttest.StartStorageDaemon(t, cbttest.DiskSpec{Name: "a", Bytes: 8 << 20})
		d, c, _ := targeted(t, m, nil)
		mirrorBy(t, c, args{"on-target-error": "ignore"})
		c.awaitReady(t)
		g, ctx := m.Guest(t, "a"), cbttest.Context(t, patience)
		events := m.Own.Subscribe(1 << 16)
		d.set(nil, errFactTarget)
		if err := g.WriteAt(ctx, []byte{1, 2, 3}, 0, false); err != nil {
			t.Fatalf("the guest saw %v", err)
		}
		for n := 0; n < 100; { // they do not end
			ev, err := events.Next(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if ev.Name == "BLOCK_JOB_ERROR" {
				n++
			}
		}
		if j, err := c.job(ctx, "job"); err != nil || j == nil || !j.Ready {
			t.Errorf("the job is %+v, %v: it does not say that it is ready", j, err)
		}
		d.set(nil, nil)
	})
	t.Run("stop", func(t *testing.T) {
		m := cbttest.StartStorageDaemon(t, cbttest.DiskSpec{Name: "a", Bytes: 8 << 20})
		d, c, _ := targeted(t, m, nil)
		mirrorBy(t, c, args{"on-target-error": "stop"})
		c.awaitReady(t)
		g, ctx := m.Guest(t, "a"), cbttest.Context(t, patience)
		d.set(nil, errFactTarget)
		if err := g.WriteAt(ctx, []byte{1, 2, 3}, 0, false); err != nil {
			t.Fatalf("the guest saw %v", err)
		}
		cbttest.Eventually(t, patience, "the job has stopped", func() bool {
			j, err := c.job(ctx, "job")
			return err == nil && j != nil && j.IOStatus != "ok"
		})
		d.set(nil, nil)
		d.take()
		for i := range int64(20) {
			if err := g.WriteAt(ctx, []byte{4, 5, 6}, 4096*i, false); err != nil {
				t.Fatalf("the guest saw %v", err)
			}
		}
		if j, err := c.job(ctx, "job"); err != nil || j == nil {
			t.Errorf("the job is gone: %v", err)
		}
		t.Logf("sent of 20 writes: %v", d.take())
	})
}

// The death of the server frees a guest that waits for it.
func TestFactDeathOfTheServerFreesTheGuest(t *testing.T) {
	m := cbttest.StartStorageDaemon(t, cbttest.DiskSpec{Name: "a", Bytes: 8 << 20})
	d, c, die := targeted(t, m, nil)
	mirrorBy(t, c, nil)
	c.awaitReady(t)
	silent := make(chan struct{})
	defer close(silent)
	select {
	case <-d.came:
	default:
	}
	d.set(silent, nil)
	g, ctx := m.Guest(t, "a"), cbttest.Context(t, patience)
	written := make(chan error, 1)
	go func() { written <- g.WriteAt(ctx, []byte{1}, 0, false) }()
	<-d.came
	die()
	if err := <-written; err != nil {
		t.Fatalf("the guest saw %v", err)
	}
	cbttest.Eventually(t, patience, "the job ends", func() bool {
		j, err := c.job(ctx, "job")
		return err == nil && j == nil
	})
}

// Why reconnect-delay is 0: with one, QEMU takes another, empty server at the same
// place for the one that holds what was acknowledged, and the job still says ready.
func TestFactReconnectTakesAnEmptyServer(t *testing.T) {
	m := cbttest.StartStorageDaemon(t, cbttest.DiskSpec{Name: "a", Bytes: 8 << 20})
	d, c, die := targeted(t, m, args{"reconnect-delay": 60})
	mirrorBy(t, c, nil)
	c.awaitReady(t)
	g, ctx := m.Guest(t, "a"), cbttest.Context(t, patience)
	if err := g.WriteAt(ctx, []byte{1}, 0, false); err != nil {
		t.Fatal(err)
	}
	if got := d.take(); !slices.Contains(got, "write 0+1 fua=false") {
		t.Fatalf("got %v", got)
	}
	die()
	empty := &target{came: make(chan struct{}, 1)}
	empty.serve(t, filepath.Join(m.Dir, "t"), 8<<20)
	if err := g.WriteAt(ctx, []byte{2}, 4096, false); err != nil {
		t.Fatalf("the guest saw %v", err)
	}
	if got := empty.take(); !slices.Contains(got, "write 4096+1 fua=false") || slices.Contains(got, "write 0+1 fua=false") {
		t.Errorf("the second server got %v", got)
	}
	if j, err := c.job(ctx, "job"); err != nil || j == nil || !j.Ready {
		t.Errorf("the job is %+v, %v", j, err)
	}
}

// Why bitmaps rotate outside of transactions: inside of one the add waits for a write
// that waits on the target, and the monitor waits with it, until the target dies.
func TestFactTransactionWaitsForTheTarget(t *testing.T) {
	m := cbttest.StartStorageDaemon(t, cbttest.DiskSpec{Name: "a", Bytes: 8 << 20})
	d, c, die := targeted(t, m, nil)
	mirrorBy(t, c, nil)
	c.awaitReady(t)
	silent := make(chan struct{})
	defer close(silent)
	select {
	case <-d.came:
	default:
	}
	d.set(silent, nil)
	g, ctx := m.Guest(t, "a"), cbttest.Context(t, patience)
	written := make(chan error, 1)
	go func() { written <- g.WriteAt(ctx, []byte{1}, 0, false) }()
	<-d.came
	added := make(chan error, 1)
	go func() {
		added <- c.do(context.WithoutCancel(ctx), "transaction", args{"actions": []args{
			action("block-dirty-bitmap-add", args{"node": "a", "name": "b"})}}, nil)
	}()
	select {
	case err := <-added:
		t.Errorf("the transaction did not wait: %v", err)
	case err := <-written:
		t.Errorf("the guest's write did not wait: %v", err)
	case <-stalled():
	}
	die()
	if err := <-written; err != nil {
		t.Fatalf("the guest saw %v", err)
	}
	if err := <-added; err != nil {
		t.Fatal(err)
	}
}

var errFactTarget error = nbd.EIO

// stalled is signalled after a while in which nothing that was free to happen would
// not have: it can only miss that something was free, never take what is held for it.
func stalled() <-chan time.Time { return time.After(300 * time.Millisecond) }
