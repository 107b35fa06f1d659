package qemu

import (
	"bytes"
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/cbttest"
)

const patience = time.Minute

// world is a machine, a recorder, and trackers that follow one another.
type world struct {
	t        testing.TB
	machine  *cbttest.Machine
	volumes  []cbt.Volume
	recorder *cbttest.Recorder
	memory   *cbttest.Memory
	budget   time.Duration
	faults   faults
	options  func(*Options)
}

func newWorld(t testing.TB, disks ...cbttest.DiskSpec) *world {
	return worldOf(t, cbttest.StartStorageDaemon(t, disks...))
}

func worldOf(t testing.TB, m *cbttest.Machine) *world {
	w := &world{t: t, machine: m, memory: new(cbttest.Memory), budget: 2 * time.Second}
	for _, d := range m.Disks {
		w.volumes = append(w.volumes, d.Volume())
	}
	w.recorder = cbttest.NewRecorder(w.volumes...)
	return w
}

func (w *world) tracker() *Tracker {
	w.t.Helper()
	o := Options{
		QMP: w.machine.QMP, Dir: w.machine.Dir, ReadServer: w.machine.NBD,
		Sink: w.recorder, Memory: w.memory, Incarnation: cbt.Incarnation(cbt.NewID()),
		StallBudget: w.budget, Retry: 100 * time.Millisecond, Rotate: time.Hour, faults: w.faults,
		Log: slog.New(slog.NewTextHandler(w.t.Output(), nil)),
	}
	for i, d := range w.machine.Disks {
		o.Disks = append(o.Disks, Disk{Volume: w.volumes[i], Node: d.Name})
	}
	if w.options != nil {
		w.options(&o)
	}
	tr, err := New(o)
	if err != nil {
		w.t.Fatal(err)
	}
	return tr
}

// run starts tr; the returned func ends it and waits.
func (w *world) run(tr *Tracker) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- tr.Run(ctx) }()
	var stopped atomic.Bool
	stop = func() {
		if stopped.Swap(true) {
			return
		}
		cancel()
		select {
		case err := <-done:
			if err != nil {
				w.t.Errorf("run: %v", err)
			}
		case <-time.After(patience):
			w.t.Errorf("the tracker does not end")
		}
	}
	w.t.Cleanup(stop)
	return stop
}

func (w *world) awaitSynced() {
	w.t.Helper()
	for _, v := range w.volumes {
		if err := w.recorder.Until(cbttest.Context(w.t, patience), func() bool { return w.recorder.Synced(v.ID) }); err != nil {
			w.t.Fatalf("%s is not synced: %v", v.Name, err)
		}
	}
}

func (w *world) checkImages() {
	w.t.Helper()
	for i, d := range w.machine.Disks {
		disk, ours := w.machine.Image(w.t, d.Name), w.recorder.Image(w.volumes[i].ID)
		if at := cbttest.FirstDifference(disk, ours); at >= 0 {
			w.t.Fatalf("%s differs from the disk at %d", d.Name, at)
		}
	}
}

func (w *world) write(disk string, p []byte, off int64) {
	w.t.Helper()
	if err := w.machine.Write(w.t, disk, p, off); err != nil {
		w.t.Fatal(err)
	}
}

func TestInitialSyncAndWrites(t *testing.T) {
	w := newWorld(t, cbttest.DiskSpec{Name: "a", Bytes: 8 << 20})
	w.write("a", bytes.Repeat([]byte{7}, 100000), 12345)
	w.run(w.tracker())
	w.awaitSynced()
	w.checkImages()
	w.write("a", bytes.Repeat([]byte{8}, 1000), 700)
	w.checkImages()
}

// What capture adds to each write is measured once, whichever way the write took.
func TestEachAnswerIsMeasuredOnce(t *testing.T) {
	w := newWorld(t, cbttest.DiskSpec{Name: "a", Bytes: 8 << 20})
	tr := w.tracker()
	w.run(tr)
	w.awaitSynced()
	before := tr.Status()[0].Answers.Count
	const writes = 20
	for i := range int64(writes) {
		w.write("a", bytes.Repeat([]byte{8}, 4096+int(i%2)*100), i*8192) // every other one ends inside a sector
	}
	a := tr.Status()[0].Answers
	if n := a.Count - before; n != writes {
		t.Errorf("%d writes, %d answers were measured", writes, n)
	}
	if p50, p99 := a.Quantile(0.5), a.Quantile(0.99); p50 <= 0 || p99 < p50 || a.Most < p99 || a.Sum < a.Most {
		t.Errorf("p50 %v, p99 %v, at most %v, %v in all", p50, p99, a.Most, a.Sum)
	}
	t.Logf("%d answers: p50 %v, p99 %v, at most %v", a.Count, a.Quantile(0.5), a.Quantile(0.99), a.Most)
}
