package qemu

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/cbttest"
	"github.com/novacron/afterimage/cbt/nbd"
	"github.com/novacron/afterimage/testbed/scale"
)

// planted runs a checker with a fault on and off: it must see the one and pass
// the other.
func planted(t *testing.T, plant func(*faults), check func(t *testing.T, f faults) error) {
	t.Run("Off", func(t *testing.T) {
		if err := check(t, faults{}); err != nil {
			t.Error(err)
		}
	})
	caught := t.Run("On", func(t *testing.T) {
		var f faults
		plant(&f)
		err := check(t, f)
		if err == nil {
			t.Fatal("the fault went unnoticed")
		}
		t.Logf("caught: %v", err)
	})
	if caught {
		scale.Counted(t, "qemu-planted-faults", 1, 1)
	}
}

func (w *world) differences() error {
	w.t.Helper()
	for i, d := range w.machine.Disks {
		disk, ours := w.machine.Image(w.t, d.Name), w.recorder.Image(w.volumes[i].ID)
		if at := cbttest.FirstDifference(disk, ours); at >= 0 {
			return fmt.Errorf("%s: the record differs from the disk at %d", d.Name, at)
		}
	}
	return nil
}

// A write is in flight, written to the source and not yet recorded, while the
// bitmaps rotate. Then the tap lets go of it: only the older bitmap knows it.
func TestPlantedOlderBitmapDroppedAtOnce(t *testing.T) {
	planted(t, func(f *faults) { f.dropOlderAtOnce = true }, func(t *testing.T, f faults) error {
		w := newWorld(t, cbttest.DiskSpec{Name: "a", Bytes: 4 << 20})
		w.budget, w.faults = 1500*time.Millisecond, f
		rotate := make(chan struct{})
		w.faults.rotateNow = rotate
		rotated := make(chan []string, 1)
		w.options = func(o *Options) {
			o.Events.RotationDone = func(_ cbt.VolumeID, kept []string) { rotated <- kept }
		}
		w.run(w.tracker())
		w.awaitSynced()
		// Until the newest bitmap is old enough a rotation does nothing.
		old := time.NewTimer(ageBeforeOlderDrops*w.budget + 50*time.Millisecond)
		defer old.Stop()
		<-old.C
		w.recorder.Stop()
		guest := w.machine.Guest(t, "a")
		written := make(chan error, 1)
		go func() {
			written <- guest.WriteAt(cbttest.Context(t, patience), bytes.Repeat([]byte{5}, 4096), 1<<20, false)
		}()
		if err := w.recorder.Until(cbttest.Context(t, patience), func() bool { return w.recorder.Waiting() == 1 }); err != nil {
			t.Fatal(err)
		}
		rotate <- struct{}{}
		t.Logf("kept %v with the write in flight", <-rotated)
		w.recorder.Break(errors.New("the sink fails"))
		w.recorder.Release()
		if err := <-written; err != nil {
			t.Fatalf("the guest saw %v", err)
		}
		w.recorder.Break(nil)
		v := w.volumes[0].ID
		if err := w.recorder.Until(cbttest.Context(t, patience), func() bool { return len(w.recorder.Gaps(v)) > 0 && w.recorder.Synced(v) }); err != nil {
			t.Fatal(err)
		}
		return w.differences()
	})
}

// A guest writes between the read of a fill and its record.
func TestPlantedLateFillUnmasked(t *testing.T) {
	planted(t, func(f *faults) { f.fillUnmasked = true }, func(t *testing.T, f faults) error {
		w := newWorld(t, cbttest.DiskSpec{Name: "a", Bytes: 4 << 20})
		w.write("a", bytes.Repeat([]byte{1}, 1<<20), 0)
		guest := w.machine.Guest(t, "a")
		var once sync.Once
		w.faults = f
		w.faults.afterRead = func(e cbt.Extent) {
			once.Do(func() {
				if err := guest.WriteAt(cbttest.Context(t, patience), bytes.Repeat([]byte{2}, 8192), e.Offset+4096, false); err != nil {
					t.Errorf("the guest saw %v", err)
				}
			})
		}
		w.run(w.tracker())
		w.awaitSynced()
		return w.differences()
	})
}

// A QEMU that was told to reconnect to an earlier life of ours comes back.
func TestPlantedStaleIncarnationAccepted(t *testing.T) {
	planted(t, func(f *faults) { f.anyIncarnation = true }, func(t *testing.T, f faults) error {
		w := newWorld(t, cbttest.DiskSpec{Name: "a", Bytes: 4 << 20})
		w.faults = f
		tr := w.tracker()
		stop := w.run(tr)
		w.awaitSynced()
		tr.mu.Lock()
		var stale string
		for name := range tr.taps {
			stale = name
		}
		tr.mu.Unlock()
		stop()
		tr = w.tracker()
		w.run(tr)
		w.awaitSynced()
		refused := func(export string) error {
			c, err := nbd.Dial(cbttest.Context(t, patience), "unix", tr.opts.captureSocket(), nbd.DialOptions{Export: export})
			if err == nil {
				c.Close()
				return fmt.Errorf("export %s was opened", export)
			}
			if !errors.Is(err, nbd.ErrUnknownExport) {
				return fmt.Errorf("export %s: %w", export, err)
			}
			return nil
		}
		err := w.machine.Own.Execute(cbttest.Context(t, patience), "blockdev-add", args{
			"driver": "nbd", "node-name": "stale", "export": stale, "reconnect-delay": 0,
			"server": args{"type": "unix", "path": tr.opts.captureSocket()}}, nil)
		if err == nil {
			return fmt.Errorf("QEMU opened export %s of an earlier life", stale)
		}
		return errors.Join(refused(stale), refused(exportName(w.volumes[0].ID, tr.opts.Incarnation, 99)), refused(""))
	})
}
