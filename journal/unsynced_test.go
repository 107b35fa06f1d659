package journal

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/testbed/scale"
)

// A sync that fails ends the journal, wherever it is of: the pool, a run, the site
// log, a directory, in the middle of a fold or of giving back what was folded. Once
// is enough. What had been answered is there at the next opening.
func TestFailedSyncEnds(t *testing.T) {
	t.Parallel()
	met := make(map[string]int)
	for _, of := range syncedThings {
		for _, sticky := range []bool{false, true} {
			step := 1
			if !scale.Sweeps() {
				step = 5 // of each kind the first, and some of the many
			}
			if scale.Race {
				step = 25
			}
			for k := 1; ; k += step {
				hit, err := failSync(t, of, sticky, k)
				if err != nil {
					t.Fatalf("sync %d of %s, sticky %v: %v", k, of, sticky, err)
				}
				if !hit {
					break
				}
				met[of]++
			}
		}
		if met[of] < 2 {
			t.Errorf("syncs of %s were met %d times", of, met[of])
		}
	}
	t.Log(met)
}

// syncedThings are the kinds of files and the directories that are synced while
// records are written and history is folded. In what order depends on who comes first.
var syncedThings = []string{"seg", "segments", "pool", "free", "runs", "run", siteLogName}

// syncedThing is what a sync is of.
func syncedThing(op errorfs.Op) string {
	base := path.Base(op.Path)
	if ext := strings.TrimPrefix(path.Ext(base), "."); ext != "" && base != siteLogName {
		return ext
	}
	return base
}

// failSync folds and writes on while the k-th sync of a kind fails, and if sticky
// every one after it; it tells whether there was one.
func failSync(t *testing.T, of string, sticky bool, k int) (hit bool, err error) {
	t.Helper()
	w := newWorld(vfs.NewCrashableMem())
	o := Options{FS: w.fs, Create: newIdentity(), SegmentBytes: 64 << 10, Sync: SyncPower}
	j := start(t, "j", o)
	v := volume("a", 32*4096)
	wr := beginWith(t, j.Journal, v)
	block := func(i int) (int64, []byte) { return int64(i%32) * 4096, bytes.Repeat([]byte{byte(i + 1)}, 4096) }
	write := func(i int) error {
		off, b := block(i)
		p, err := wr.Record(soon(t), cbt.Event{Kind: cbt.EventWrite, Volume: v.ID, Extent: cbt.Extent{Offset: off, Length: 4096}, Data: b})
		if err == nil {
			err = p.Wait(soon(t))
		}
		return err
	}
	answered := 0
	for ; answered < 60; answered++ {
		must(t, write(answered))
	}
	var mu sync.Mutex // guards failing and k
	failing := false
	w.onWrite(func(op errorfs.Op) error {
		if !isSync(op) || inIndex(op) {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		thing := syncedThing(op)
		if !slices.Contains(syncedThings, thing) {
			t.Errorf("a sync of %s is never failed", op.Path)
		}
		if thing == of {
			k--
		}
		if thing == of && k == 0 || failing && sticky {
			failing = true
			return syscall.EIO
		}
		return nil
	})
	_, merr := j.Maintain(soon(t), Maintenance{Retention: Retention{Ladder: []Rung{{Every: time.Nanosecond}}}, FoldBytes: 1})
	for ; err == nil && answered < 120; answered++ {
		err = write(answered)
	}
	if err != nil {
		answered--
	}
	mu.Lock()
	hit = failing
	mu.Unlock()
	if hit {
		if ended := j.waitFor(soon(t), func() bool { return false }); !errors.Is(ended, ErrFailed) {
			return hit, fmt.Errorf("the journal goes on: %w; maintain said %w, a write %w", ended, merr, err)
		}
		if err := write(0); !errors.Is(err, ErrFailed) && !errors.Is(err, ErrClosed) {
			return hit, fmt.Errorf("a record is taken: %w", err)
		}
	} else if err = errors.Join(merr, err); err != nil {
		return hit, err
	}
	j.stop()
	<-j.done
	_ = j.Journal.Close() // it failed
	w.onWrite(nil)
	for _, fs := range []vfs.FS{w.mem, w.mem.CrashClone(vfs.CrashCloneCfg{})} {
		o.FS = fs
		again, err := Open("j", o)
		if err != nil {
			return hit, err
		}
		view, err := again.View(soon(t), Point{Position: again.Head().Position})
		if err != nil {
			return hit, err
		}
		for i := max(0, answered-32); i < answered; i++ {
			off, want := block(i)
			b := make([]byte, 4096)
			if err := view.ReadAt(soon(t), v.ID, b, off); err != nil {
				return hit, err
			}
			later := b[0] == byte(i+33) // of one that was under way
			if !bytes.Equal(b, want) && !later {
				return hit, fmt.Errorf("write %d of %d reads %d", i, answered, b[0])
			}
		}
		if err := errors.Join(view.Close(), again.Close()); err != nil {
			return hit, err
		}
	}
	return hit, nil
}
