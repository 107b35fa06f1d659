package journal

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// A group that has gone quiet is folded up to its last whole segment, though the index
// took in the last frames before they were durable.
func TestQuietGroupIsFolded(t *testing.T) {
	w := newWorld(vfs.NewCrashableMem())
	f := newFoldingOf(t, w.fs, Retention{Ladder: []Rung{{0, time.Minute}}}, faults{}, 192<<10, 16<<10)
	defer func() { f.j.close() }()
	f.j.close()
	f.o.PoolBytes = f.o.SegmentBytes
	f.open()
	must(t, f.j.WaitPool(soon(t))) // the next segment is there: it takes one write to be one
	number := func() uint64 {
		f.j.fileMu.Lock()
		defer f.j.fileMu.Unlock()
		return f.j.out.number
	}
	first := number()
	held := make(chan struct{})
	var mu sync.Mutex
	writes := make(map[string]int)
	w.onWrite(func(op errorfs.Op) error { // the first frame of the next segment is not synced for now
		if !inSegment(op) || strings.HasSuffix(op.Path, segmentName(first)) {
			return nil
		}
		mu.Lock()
		if isWrite(op) {
			writes[op.Path]++
		}
		framed := writes[op.Path] > 0 // the header came before it was a segment
		mu.Unlock()
		if framed && isSync(op) {
			<-held
		}
		return nil
	})
	for i := 0; number() == first; i++ {
		f.put(0, byte(1+i), 32<<10)
	}
	last := number()
	if err := f.j.waitFor(soon(t), func() bool { return f.j.indexed >= f.j.written }); err != nil {
		t.Fatal(err)
	}
	w.onWrite(nil)
	close(held)
	must(t, f.rest())
	f.note()
	f.clock.step(time.Hour)
	got := f.maintain()
	if s := f.j.history().state; got.Runs == 0 || s.floor() != last || last != number() {
		t.Fatalf("folded up to segment %d of %d: %+v", s.floor(), number(), got)
	}
	must(t, f.checkImages(f.j.Journal, 6))
	// The place that was said is one to open from.
	crashed := w.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 0})
	o := f.o
	o.FS, o.Create = crashed, nil
	head := f.j.Head().Position
	j, err := Open("j", o)
	must(t, err)
	if got := j.Head().Position; got != head {
		t.Errorf("opened at %s of %s", got, head)
	}
	must(t, f.checkImages(j, 6))
	must(t, j.Close())
}
