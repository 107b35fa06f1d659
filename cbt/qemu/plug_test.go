package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/cbttest"
)

// A disk is plugged and pulled while another one is followed: that one has no gap of it
// and what both hold is recorded; a failed farewell is a gap, and then a return.
func TestDisksComeAndGo(t *testing.T) {
	for name, every := range map[string]time.Duration{"per write": 0, "bitmap cycles": 50 * time.Millisecond} {
		t.Run(name, func(t *testing.T) { testDisksComeAndGo(t, every) })
	}
}

func testDisksComeAndGo(t *testing.T, every time.Duration) {
	w := newWorld(t, cbttest.DiskSpec{Name: "a", Bytes: 8 << 20}, cbttest.DiskSpec{Name: "b", Bytes: 4 << 20})
	w.options = func(o *Options) { o.Every, o.Disks = every, o.Disks[:1] }
	w.write("b", bytes.Repeat([]byte{1}, 4096), 1<<20)
	tr := w.tracker()
	w.run(tr)
	a, b := w.volumes[0], w.volumes[1]
	// awaitNew waits until v was synced once more than it is now.
	synced := func(v cbt.Volume) (n int) {
		for _, ev := range w.recorder.Log() {
			if ev.Kind == cbt.EventSynced && ev.Volume == v.ID {
				n++
			}
		}
		return n
	}
	await := func(v cbt.Volume, n int) {
		t.Helper()
		cbttest.Eventually(t, patience, fmt.Sprintf("%s is synced for the %d. time", v.Name, n), func() bool { return synced(v) >= n })
	}
	gaps := func(v cbt.Volume) (n int) {
		for _, ev := range w.recorder.Log() {
			if ev.Kind == cbt.EventGap && ev.Volume == v.ID && ev.Cause != cbt.CauseCycle {
				n++
			}
		}
		return n
	}
	// holds is that a disk's writes are recorded, when what there was at the call is.
	holds := func(v cbt.Volume, disk string) {
		t.Helper()
		if every > 0 {
			await(v, synced(v)+2)
		}
		cbttest.Eventually(t, patience, disk+" is recorded", func() bool {
			return cbttest.FirstDifference(w.machine.Image(t, disk), w.recorder.Image(v.ID)) < 0
		})
	}
	plug := func() {
		t.Helper()
		n := synced(b)
		if err := tr.Plug(Disk{Volume: b, Node: "b"}); err != nil {
			t.Fatal(err)
		}
		await(b, n+1)
	}
	await(a, 1)
	if err := tr.Plug(Disk{Volume: a, Node: "b"}); err == nil {
		t.Error("one volume was plugged twice")
	}
	w.write("a", bytes.Repeat([]byte{2}, 1000), 700)
	plug()
	w.write("b", bytes.Repeat([]byte{3}, 1000), 700)
	w.write("a", bytes.Repeat([]byte{4}, 1000), 9000)
	holds(a, "a")
	holds(b, "b")
	if len(tr.Status()) != 2 {
		t.Errorf("status: %+v", tr.Status())
	}

	refuse := errors.New("not now")
	if err := tr.Unplug(cbttest.Context(t, patience), b.ID, func(context.Context) error { return refuse }); !errors.Is(err, refuse) || len(tr.Status()) != 2 {
		t.Errorf("a failed farewell: %v, %d disks", err, len(tr.Status()))
	}
	w.write("b", bytes.Repeat([]byte{5}, 1000), 7000)
	holds(b, "b")

	var farewells atomic.Int32
	var after int
	if err := tr.Unplug(cbttest.Context(t, patience), b.ID, func(context.Context) error {
		farewells.Add(1)
		after = len(w.recorder.Log())
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := tr.Unplug(cbttest.Context(t, patience), b.ID, func(context.Context) error { farewells.Add(1); return nil }); err != nil || farewells.Load() != 1 {
		t.Errorf("unplugged twice: %v, %d farewells", err, farewells.Load())
	}
	w.write("b", bytes.Repeat([]byte{6}, 1000), 70000) // somebody else's now
	w.write("a", bytes.Repeat([]byte{7}, 1000), 70000)
	holds(a, "a")
	if len(tr.Status()) != 1 {
		t.Errorf("status: %+v", tr.Status())
	}
	for _, ev := range w.recorder.Log()[after:] {
		if ev.Volume == b.ID {
			t.Errorf("after the farewell: %+v", ev.Kind)
		}
	}
	plug()
	holds(b, "b")
	if n := gaps(a) + gaps(b); n != 0 {
		t.Errorf("%d gaps of disks that came and went", n)
	}
}
