package qemu

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/cbttest"
	"github.com/novacron/afterimage/cbt/nbd"
)

// The machine dies and comes back; raw bitmaps are gone with it, so everything
// is read and only what differs is recorded.
func TestMachineDiesAndComesBack(t *testing.T) {
	w := newWorld(t, cbttest.DiskSpec{Name: "a", Bytes: 8 << 20})
	w.write("a", bytes.Repeat([]byte{1}, 3<<20), 0)
	tr := w.tracker()
	w.run(tr)
	w.awaitSynced()
	w.machine.Kill()
	v := w.volumes[0].ID
	if err := w.recorder.Until(cbttest.Context(t, patience), func() bool { return slices.Contains(w.recorder.Gaps(v), cbt.CauseMachine) }); err != nil {
		t.Fatalf("gaps %v", w.recorder.Gaps(v))
	}
	w.machine.Boot(t)
	w.write("a", []byte("while nobody looked"), 2<<20)
	w.awaitSynced()
	w.checkImages()
	r := tr.Status()[0].Resync
	t.Logf("full %v (%s), %d read, %d journaled; gaps %v", r.Full, r.Why, r.BytesRead, r.BytesJournaled, w.recorder.Gaps(v))
	if !r.Full || r.BytesRead < 3<<20 || r.BytesJournaled > 64<<10 {
		t.Errorf("resync %+v", r)
	}
	if got := w.recorder.Gaps(v)[:2]; !slices.Equal(got, []cbt.Cause{cbt.CauseTapEnded, cbt.CauseMachine}) {
		t.Errorf("gaps %v", got)
	}
}

// Somebody cancels our job: a gap, and a delta of what was written meanwhile.
func TestJobCancelledBySomebody(t *testing.T) {
	w := newWorld(t, cbttest.DiskSpec{Name: "a", Bytes: 8 << 20})
	tr := w.tracker()
	w.run(tr)
	w.awaitSynced()
	tr.mu.Lock()
	var node string
	for _, tap := range tr.taps {
		node = tap.node
	}
	tr.mu.Unlock()
	w.machine.Do(t, "block-job-cancel", args{"device": node, "force": true})
	v := w.volumes[0].ID
	if err := w.recorder.Until(cbttest.Context(t, patience), func() bool { return len(w.recorder.Gaps(v)) > 0 }); err != nil {
		t.Fatal("no gap")
	}
	w.awaitSynced()
	w.write("a", []byte("again"), 5)
	w.checkImages()
	if r := tr.Status()[0].Resync; r.Full {
		t.Errorf("read whole: %s", r.Why)
	}
}

// Rotation keeps two bitmaps and makes a later delta small.
func TestRotationShrinksTheDelta(t *testing.T) {
	w := newWorld(t, cbttest.DiskSpec{Name: "a", Bytes: 8 << 20})
	w.budget = 100 * time.Millisecond
	rotations := make(chan []string, 100)
	w.options = func(o *Options) {
		o.Rotate = 400 * time.Millisecond
		o.Events.RotationDone = func(_ cbt.VolumeID, kept []string) {
			select {
			case rotations <- kept:
			default:
			}
		}
	}
	tr := w.tracker()
	stop := w.run(tr)
	w.awaitSynced()
	w.write("a", bytes.Repeat([]byte{1}, 4<<20), 0)
	for range 3 {
		if kept := <-rotations; len(kept) != 2 {
			t.Errorf("kept %v", kept)
		}
	}
	stop()
	n, err := commands{qmpMonitor{w.machine.Own}}.node(cbttest.Context(t, patience), "a")
	if err != nil || len(n.Bitmaps) != 2 {
		t.Errorf("left behind: %+v, %v", n.Bitmaps, err)
	}
	w.write("a", []byte("one block"), 5<<20)
	tr = w.tracker()
	w.run(tr)
	w.awaitSynced()
	w.checkImages()
	if r := tr.Status()[0].Resync; r.Full || r.BytesToRead != 64<<10 {
		t.Errorf("resync %+v", r)
	}
}

// Without ReadServer the tracker runs an NBD server in the machine while it
// reads, and stops it; a foreign one is named.
func TestReadServerIsOursOrNamed(t *testing.T) {
	w := newWorld(t, cbttest.DiskSpec{Name: "a", Bytes: 8 << 20})
	w.write("a", bytes.Repeat([]byte{4}, 1<<20), 1<<20)
	var states atomic.Int32
	w.options = func(o *Options) {
		o.ReadServer = ""
		o.Events.StateChanged = func(st cbt.VolumeStatus) {
			if st.State == cbt.StateBroken && strings.Contains(st.Detail, ErrNBDServerBusy.Error()) {
				states.Add(1)
			}
		}
	}
	tr := w.tracker()
	w.run(tr)
	cbttest.Eventually(t, patience, "the busy NBD server is named", func() bool { return states.Load() > 0 })
	want := w.machine.Image(t, "a")
	w.machine.Do(t, "nbd-server-stop", nil)
	w.awaitSynced()
	if at := cbttest.FirstDifference(want, w.recorder.Image(w.volumes[0].ID)); at >= 0 {
		t.Errorf("the record differs from the disk at %d", at)
	}
	cbttest.Eventually(t, patience, "the NBD server is free again", func() bool {
		return w.machine.Own.Execute(cbttest.Context(t, patience), "nbd-server-start",
			args{"addr": args{"type": "unix", "data": args{"path": w.machine.NBD}}}, nil) == nil
	})
}

// A disk of another size is the owner's to accept.
func TestResizeIsAsked(t *testing.T) {
	w := newWorld(t, cbttest.DiskSpec{Name: "a", Bytes: 8 << 20})
	refuse := errors.New("not now")
	var asked atomic.Int32
	w.options = func(o *Options) {
		o.Resize = func(_ context.Context, v cbt.Volume) error {
			if asked.Add(1) == 1 {
				return refuse
			}
			w.recorder.AddVolume(v)
			return nil
		}
	}
	stop := w.run(w.tracker())
	w.awaitSynced()
	stop()
	w.machine.Do(t, "block-export-del", args{"id": "a"}) // who exports forbids a resize
	cbttest.Eventually(t, patience, "the disk is resized", func() bool {
		return w.machine.Own.Execute(cbttest.Context(t, patience), "block_resize", args{"node-name": "a", "size": 12 << 20}, nil) == nil
	})
	w.machine.Do(t, "block-export-add", args{"type": "nbd", "id": "a", "node-name": "a", "name": "a", "writable": true})
	w.write("a", []byte("far out"), 11<<20)
	tr := w.tracker()
	w.run(tr)
	w.awaitSynced()
	w.checkImages()
	if asked.Load() != 2 || tr.Status()[0].Volume.Size != 12<<20 {
		t.Errorf("asked %d times, status %+v", asked.Load(), tr.Status()[0])
	}
}

// Other people's bitmaps, jobs and nodes stay.
func TestForeignThingsStay(t *testing.T) {
	w := newWorld(t, cbttest.DiskSpec{Name: "a", Bytes: 8 << 20})
	c, ctx := commands{qmpMonitor{w.machine.Own}}, cbttest.Context(t, patience)
	if err := c.addBitmap(ctx, "a", "backup-of-somebody", 65536, false, false); err != nil {
		t.Fatal(err)
	}
	stop := w.run(w.tracker())
	w.awaitSynced()
	stop()
	n, err := c.node(ctx, "a")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, b := range n.Bitmaps {
		names = append(names, b.Name)
	}
	if len(names) != 3 || !slices.Contains(names, "backup-of-somebody") {
		t.Errorf("bitmaps %v", names)
	}
	if jobs, err := c.jobs(ctx); err != nil || len(jobs) != 0 {
		t.Errorf("jobs %v, %v", jobs, err)
	}
	if nodes, err := c.nodes(ctx); err != nil || len(nodes) != 2 {
		t.Errorf("%d nodes, %v", len(nodes), err)
	}
}

// Twenty breaks under load, each a delta; what was recorded is what the disk
// holds, and QEMU survives it.
func TestTwentyBreaksUnderLoad(t *testing.T) {
	const breaks = 20
	w := newWorld(t, cbttest.DiskSpec{Name: "a", Bytes: 16 << 20}, cbttest.DiskSpec{Name: "b", Bytes: 16 << 20})
	w.write("a", bytes.Repeat([]byte{1}, 8<<20), 0)
	w.write("b", bytes.Repeat([]byte{1}, 8<<20), 0)
	guests := []*nbd.Client{w.machine.Guest(t, "a"), w.machine.Guest(t, "b")}
	var answered atomic.Int64
	var read, disk int64
	for i := range breaks {
		tr := w.tracker()
		stop := w.run(tr)
		w.awaitSynced()
		if i > 0 {
			for _, st := range tr.Status() {
				if st.Resync.Full {
					t.Fatalf("break %d: %s read whole: %s", i, st.Volume.Name, st.Resync.Why)
				}
				read, disk = read+st.Resync.BytesRead, disk+st.Volume.Size
			}
		}
		before := len(w.recorder.Log())
		ctx, cancel := context.WithCancel(context.Background())
		var load sync.WaitGroup
		for k := range int64(16) {
			load.Go(func() {
				p := bytes.Repeat([]byte{byte(i), byte(k)}, 2048)
				for n := k; ctx.Err() == nil; n += 16 {
					if err := guests[k%2].WriteAt(context.Background(), p, (n*37%256)*4096, false); err != nil {
						t.Errorf("break %d: the guest saw %v", i, err)
						return
					}
					answered.Add(1)
				}
			})
		}
		if err := w.recorder.Until(cbttest.Context(t, patience), func() bool { return len(w.recorder.Log()) > before+50 }); err != nil {
			t.Fatal(err)
		}
		stop() // in the middle of it
		for _, v := range w.volumes {
			if w.recorder.Synced(v.ID) {
				t.Fatalf("break %d: the interval of %s stays open", i, v.Name)
			}
		}
		cancel()
		load.Wait()
	}
	w.run(w.tracker())
	w.awaitSynced()
	w.checkImages()
	t.Logf("%d breaks, %d writes answered, %d bytes read again of %d", breaks, answered.Load(), read, disk)
	if read > disk/4 {
		t.Errorf("%d bytes were read again of %d", read, disk)
	}
}
