package journal

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/novacron/afterimage/testbed/scale"
)

// foldCrasher crashes at every operation of one Maintain that folds, thins and
// merges, and opens what each crash leaves: nothing kept is missing or different,
// the next Maintain finishes what was begun, and no file is left over or missing.
// Where the crash came in the middle of a change, that Maintain crashes as well.
type foldCrasher struct {
	*folding
	form    string
	pinned  Position
	mu      sync.Mutex // an operation is looked at
	ops     int
	redone  int // found in the middle of a change
	nested  int
	failed  error
	percent []int
	met     int
}

// newFoldCrasher has three runs with pinned points, of which one stays pinned, and
// more to be folded.
func newFoldCrasher(t *testing.T, name string, compress Compression, sealed bool) (*foldCrasher, *world) {
	w := newWorld(vfs.NewCrashableMem())
	c := &foldCrasher{folding: newFoldingOf(t, w.fs, shortLadder, faults{}, 192<<10, 16<<10), form: name, percent: []int{0, 50, 100}}
	c.j.close()
	c.o.Compress, c.o.SegmentBytes = compress, 64<<10
	if sealed {
		c.o.Keys = ringOf(t, "acme-1")
	}
	c.open()
	for round := range 4 {
		for k := range 4 {
			c.put(int64(k)*4096, byte(16*round+k+1), 8192+512*k)
		}
		at := c.put(int64(round)*8192+512, byte(200+round), 2048)
		if round < 3 {
			if _, err := c.j.Pin(soon(t), fmt.Sprint(round), Point{Position: at}, false); err != nil {
				t.Fatal(err)
			}
		}
		if round == 1 {
			c.pinned = at
		}
		if err := c.fillSegments(); err != nil {
			t.Fatal(err)
		}
		c.note()
		if round < 3 {
			c.maintain()
		}
	}
	for _, round := range []int{0, 2} {
		if err := c.j.Unpin(fmt.Sprint(round)); err != nil {
			t.Fatal(err)
		}
	}
	return c, w
}

// fillSegments is settle in small.
func (c *foldCrasher) fillSegments() error {
	for range 4 {
		data := make([]byte, 32<<10)
		for at := range data {
			data[at] = byte(c.rng.Uint32())
		}
		c.putBytes(128<<10, data)
	}
	return c.rest()
}

func (c *foldCrasher) crash(mem *vfs.MemFS) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.met++; c.failed != nil || scale.Race && c.met%5 != 0 {
		return
	}
	percent := c.percent[c.ops%len(c.percent)]
	c.ops++
	clone := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: crashRand()})
	if err := c.check(clone, true); err != nil {
		c.failed = fmt.Errorf("%s: operation %d, %d %% of unsynced data kept: %w", c.form, c.ops, percent, err)
	}
}

// check opens a crashed disk, compares it, and lets it finish; once more from a
// crash in the middle of that if again says so.
func (c *foldCrasher) check(mem *vfs.MemFS, again bool) error {
	w := newWorld(mem)
	o := c.o
	o.FS, o.Create = w.fs, nil
	j, err := Open("j", o)
	if err != nil {
		return err
	}
	defer func() { _ = j.Close() }()
	if err := c.checkImages(j, 6); err != nil {
		return fmt.Errorf("opened: %w", err)
	}
	var mu sync.Mutex // guards left and second
	var second *vfs.MemFS
	if j.history().state.Change != nil {
		c.redone++
		if again {
			c.nested++
			left := c.nested % 40
			w.onWrite(func(errorfs.Op) error {
				mu.Lock()
				defer mu.Unlock()
				if left--; left < 0 && second == nil {
					second = mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: crashRand()})
				}
				return nil
			})
		}
	}
	_, err = j.Maintain(soon(c.t), Maintenance{Retention: c.r, FoldBytes: 1})
	w.onWrite(nil)
	if err != nil {
		return fmt.Errorf("redo: %w", err)
	}
	f := *c.folding
	f.j = &running{Journal: j}
	if err := f.checkKept(Reference{Kind: ReferencePin, Name: "1", At: c.pinned}); err != nil {
		return fmt.Errorf("redone: %w", err)
	}
	if err := c.checkImages(j, 6); err != nil {
		return fmt.Errorf("redone: %w", err)
	}
	if err := onlyWhatIsNeeded(j, w.fs); err != nil {
		return fmt.Errorf("redone: %w", err)
	}
	mu.Lock()
	defer mu.Unlock()
	if second == nil {
		return nil
	}
	if err := c.check(second, false); err != nil {
		return fmt.Errorf("crashed in the redo: %w", err)
	}
	return nil
}

// onlyWhatIsNeeded wants the runs that the site log lists, all segments from the
// first that is not folded on, and nothing else.
func onlyWhatIsNeeded(j *Journal, fs vfs.FS) error {
	s := j.history().state
	if s.Change != nil {
		return fmt.Errorf("a change is left: %+v", *s.Change)
	}
	var want []string
	for _, m := range s.Runs {
		want = append(want, runName(m.Run))
	}
	got, err := fs.List(j.runs.dir)
	slices.Sort(got)
	slices.Sort(want)
	if err != nil || !slices.Equal(got, want) {
		return fmt.Errorf("runs %v, want %v: %w", got, want, err)
	}
	names, err := fs.List(j.segs.dir)
	if err != nil {
		return err
	}
	var ns []uint64
	for _, name := range names {
		n, ok := parseSegmentName(name)
		if !ok {
			return fmt.Errorf("%s is left among the segments", name)
		}
		ns = append(ns, n)
	}
	slices.Sort(ns)
	for i, n := range ns {
		if n != s.floor()+uint64(i) {
			return fmt.Errorf("segments %v are left, the first must be %d", ns, s.floor())
		}
	}
	if len(ns) == 0 {
		return fmt.Errorf("no segment is left")
	}
	return nil
}

func TestMaintainCrashesEverywhere(t *testing.T) {
	t.Parallel()
	total := 0
	for _, f := range forms {
		c, w := newFoldCrasher(t, f.name, f.compress, f.sealed)
		w.onWrite(func(errorfs.Op) error { c.crash(w.mem); return nil })
		got := c.maintain()
		w.onWrite(nil)
		c.j.close() // what it still does is over then
		if c.failed != nil {
			t.Fatal(c.failed)
		}
		if got.Folded == 0 || got.Merged == 0 || got.Freed == 0 || c.redone == 0 {
			t.Fatalf("%s: %+v, %d of %d crashes came in the middle of a change", f.name, got, c.redone, c.ops)
		}
		t.Logf("%s: %d crashes, %d in the middle of a change, %d of those once more in the redo", f.name, c.ops, c.redone, c.nested)
		total += c.ops
	}
	scale.Counted(t, "journal-maintain-crashes", total, 200)
}
