package journal

import (
	"errors"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// folder is a Maintain that has asked what is in use, and not gone on yet.
func (f *folding) folder() (*maintainer, []Reference) {
	f.t.Helper()
	t := &maintainer{j: f.j.Journal, m: Maintenance{Retention: f.r, FoldBytes: 1}, now: f.clock.Now(), pace: newPace(soon(f.t), 0)}
	refs, err := f.j.references(t.m)
	if err != nil {
		f.t.Fatal(err)
	}
	return t, refs
}

// A point that is pinned while a fold reads the segments is kept by it, and one that
// is pinned while points are chosen is not thinned.
func TestPinDuringFold(t *testing.T) {
	f, _ := faultFolding(t, faults{})
	defer func() { f.j.close() }()
	f.put(0, 1, 8192)
	at := f.put(4096, 2, 4096)
	f.put(0, 3, 8192)
	if err := f.settle(); err != nil {
		t.Fatal(err)
	}
	m, refs := f.folder()
	to, ok, err := m.foldable(refs, 1)
	if err != nil || !ok {
		t.Fatalf("nothing to fold: %v", err)
	}
	if _, err := f.j.Pin(soon(t), "x", Point{Position: at}, false); err != nil {
		t.Fatal(err)
	}
	if err := m.fold(soon(t), to, refs); err != nil {
		t.Fatal(err)
	}
	if !f.j.history().folded(f.j.orderOf(at)) {
		t.Fatal("nothing was folded")
	}
	if err := f.checkImage(f.j.Journal, at); err != nil {
		t.Fatalf("pinned during the fold: %v", err)
	}
	if err := m.thin(make(map[order]bool)); err != nil {
		t.Fatal(err)
	}
	if err := f.checkImage(f.j.Journal, at); err != nil {
		t.Fatalf("pinned while points were chosen: %v", err)
	}
}

// Close waits for a Maintain that is under way, which ends at its next look into the
// index, and later ones are refused.
func TestCloseDuringMaintain(t *testing.T) {
	f, _ := faultFolding(t, faults{})
	if err := f.settle(); err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	inside, goOn, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		_, err := f.j.Maintain(soon(t), Maintenance{Retention: f.r, FoldBytes: 1, Progress: func(string, int64, int64) {
			once.Do(func() { close(inside); <-goOn })
		}})
		done <- err
	}()
	<-inside
	closed := make(chan struct{})
	go func() { f.j.close(); close(closed) }()
	until(t, func() bool {
		f.j.mu.Lock()
		defer f.j.mu.Unlock()
		return f.j.freed
	})
	select {
	case <-closed:
		t.Error("Close took the index from under a Maintain")
	case <-time.After(50 * time.Millisecond):
	}
	close(goOn)
	if err := <-done; !errors.Is(err, ErrClosed) {
		t.Errorf("a Maintain that Close ended says %v", err)
	}
	<-closed
	if _, err := f.j.Maintain(soon(t), Maintenance{Retention: f.r}); !errors.Is(err, ErrClosed) {
		t.Errorf("Maintain of a closed journal says %v", err)
	}
}

// A fold that finds no room leaves nothing of its run behind: what is short is space.
func TestFullDiskLeavesNoRun(t *testing.T) {
	f, w := faultFolding(t, faults{})
	defer func() { f.j.close() }()
	if err := f.settle(); err != nil {
		t.Fatal(err)
	}
	w.onWrite(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileWrite && strings.HasSuffix(op.Path, runSuffix) {
			return syscall.ENOSPC
		}
		return nil
	})
	_, err := f.j.Maintain(soon(t), Maintenance{Retention: f.r, FoldBytes: 1})
	if !errors.Is(err, ErrFull) {
		t.Fatalf("a fold without room says %v", err)
	}
	w.onWrite(nil)
	names, err := f.o.FS.List("j/runs")
	if err != nil || len(names) > 0 {
		t.Errorf("of the run is left %v: %v", names, err)
	}
	if err := f.age(); err != nil || len(f.j.history().state.Runs) == 0 {
		t.Errorf("and with room nothing is folded: %v", err)
	}
}

// A segment that rots once its run is durable does not keep the change from being
// finished.
func TestSegmentRotsInTheSwap(t *testing.T) {
	f, w := faultFolding(t, faults{})
	defer func() { f.j.close() }()
	at := f.put(4096, 2, 4096)
	if err := f.settle(); err != nil {
		t.Fatal(err)
	}
	first := f.j.history().state.floor()
	var mu sync.Mutex // guards both: the index writes, too
	written, rotten := false, false
	w.onWrite(func(op errorfs.Op) error {
		mu.Lock()
		defer mu.Unlock()
		written = written || isSync(op) && strings.HasSuffix(op.Path, runSuffix)
		if written && !rotten && isSync(op) && strings.HasSuffix(op.Path, siteLogName) {
			rotten = true
			flip(t, w.mem, f.j.segs.path(first), pageBytes+50)
		}
		return nil
	})
	got, err := f.j.Maintain(soon(t), Maintenance{Retention: f.r, FoldBytes: 1})
	w.onWrite(nil)
	mu.Lock()
	defer mu.Unlock()
	if err != nil || got.Folded == 0 || got.Freed == 0 || !rotten {
		t.Fatalf("%+v, rotten %v, %v", got, rotten, err)
	}
	if err := errors.Join(f.checkImage(f.j.Journal, f.j.Head().Position), onlyWhatIsNeeded(f.j.Journal, f.o.FS)); err != nil {
		t.Fatalf("after the record at %s: %v", at, err)
	}
}
