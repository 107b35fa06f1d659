package qemu

import (
	"bytes"
	"sync"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt/cbttest"
)

// heldUp is a recorder whose Commit can be held up, as a disk holds up who writes to it.
type heldUp struct {
	*cbttest.Recorder

	mu   sync.Mutex // guards held
	held chan struct{}
	came chan struct{} // signalled when a Commit is held up
}

func (h *heldUp) Commit() {
	h.mu.Lock()
	held := h.held
	h.mu.Unlock()
	if held != nil {
		signal(h.came)
		<-held
	}
}

func (h *heldUp) hold(c chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.held = c
}

// The storage holds up whoever reads the guest's socket, and does not let go. The stall
// budget holds all the same: the guest goes on, the gap is told, and when the storage
// has come back the delta is read.
func TestHeldUpCommitStallsNobodyBeyondTheBudget(t *testing.T) {
	w := newWorld(t, cbttest.DiskSpec{Name: "a", Bytes: 4 << 20})
	w.budget = 500 * time.Millisecond
	sink := &heldUp{Recorder: w.recorder, came: make(chan struct{}, 1)}
	w.options = func(o *Options) { o.Sink = sink }
	w.run(w.tracker())
	w.awaitSynced()
	w.write("a", bytes.Repeat([]byte{1}, 4096), 0)
	held := make(chan struct{})
	sink.hold(held)
	written := make(chan struct{})
	go func() {
		defer close(written)
		w.write("a", bytes.Repeat([]byte{2}, 4096), 8192)
	}()
	<-sink.came
	<-written                  // or the test ends for the guest's patience
	for i := range int64(20) { // while the tap drains, and the job ends
		w.write("a", bytes.Repeat([]byte{5}, 4096), (40+i)*4096)
	}
	v := w.volumes[0].ID
	if err := w.recorder.Until(cbttest.Context(t, patience), func() bool { return !w.recorder.Synced(v) }); err != nil {
		t.Fatalf("no gap: %v", err)
	}
	sink.hold(nil) // the one that is held stays so
	w.awaitSynced()
	for i := range int64(20) {
		w.write("a", bytes.Repeat([]byte{3}, 4096), (10+i)*4096)
	}
	close(held)
	w.awaitSynced()
	w.write("a", bytes.Repeat([]byte{4}, 4096), 1<<20)
	w.checkImages()
}
