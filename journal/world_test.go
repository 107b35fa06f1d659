package journal

import (
	"context"
	"errors"

	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/novacron/afterimage/cbt"
)

// world is a disk that tests crash and break: hook sees every operation that
// changes something before it happens, and may fail it.
type world struct {
	mem *vfs.MemFS
	fs  vfs.FS

	mu   sync.Mutex // guards hook
	hook func(errorfs.Op) error
}

func newWorld(mem *vfs.MemFS) *world {
	w := &world{mem: mem}
	w.fs = errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind.ReadOrWrite() == errorfs.OpIsRead {
			return nil
		}
		w.mu.Lock()
		hook := w.hook
		w.mu.Unlock()
		if hook == nil {
			return nil
		}
		return hook(op)
	}))
	return w
}

func (w *world) onWrite(hook func(errorfs.Op) error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hook = hook
}

func inIndex(op errorfs.Op) bool   { return strings.Contains(op.Path, "/index") }
func inSegment(op errorfs.Op) bool { return strings.HasSuffix(op.Path, segmentSuffix) }
func isSync(op errorfs.Op) bool {
	return op.Kind == errorfs.OpFileSync || op.Kind == errorfs.OpFileSyncData || op.Kind == errorfs.OpFileSyncTo
}

// soon is a context that fails a test that hangs.
func soon(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// end ends Run and Close whatever they return, and returns it.
func (r *running) end() error {
	r.stop()
	return errors.Join(<-r.done, r.Journal.Close())
}

// newSeed is a source of chance whose seed is printed; AFTERIMAGE_SEED sets it.
func newSeed(t testing.TB) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("AFTERIMAGE_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 7))
}

// put records a write of data and returns its seq.
func put(t testing.TB, w *Writer, v cbt.Volume, off int64, data []byte) Seq {
	t.Helper()
	return mustRecord(t, w, cbt.Event{Kind: cbt.EventWrite, Volume: v.ID, Extent: cbt.Extent{Offset: off, Length: int64(len(data))}, Data: data})
}

// readAs reads all of v as of p.
func readAs(t testing.TB, j *Journal, p Position, v cbt.Volume) ([]byte, error) {
	t.Helper()
	view, err := j.View(soon(t), Point{Position: p})
	if err != nil {
		return nil, err
	}
	b := make([]byte, v.Size)
	return b, view.ReadAt(soon(t), v.ID, b, 0)
}

// crashRand is what CrashClone draws from.
func crashRand() *rand.Rand { return rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 3)) }

// until waits for a condition that nobody announces.
func until(t testing.TB, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for ctx := soon(t); !ok(); {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("waited in vain")
		}
	}
}
