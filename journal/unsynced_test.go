package journal

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/novacron/afterimage/cbt"
)

// A sync that fails ends the journal, wherever it is of: the pool, a run, the site
// log, a directory, in the middle of a fold or of giving back what was folded. Once
// is enough. What had been answered is there at the next opening.
func TestFailedSyncEnds(t *testing.T) {
	met := make(map[string]int)
	for _, sticky := range []bool{false, true} {
		for k := 1; ; k++ {
			where, err := failSync(t, sticky, k)
			if err != nil {
				t.Fatalf("sync %d, sticky %v, %s: %v", k, sticky, where, err)
			}
			if where == "" {
				break
			}
			met[where]++
		}
	}
	t.Log(met)
	for _, where := range []string{"segments", "pool", "runs", "run", "free", "site.log"} {
		if met[where] == 0 {
			t.Errorf("no sync of %s was met", where)
		}
	}
}

// failSync folds and writes on while the k-th sync fails; it tells of what.
func failSync(t *testing.T, sticky bool, k int) (where string, err error) {
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
	var mu sync.Mutex // guards where and k
	w.onWrite(func(op errorfs.Op) error {
		if !isSync(op) || inIndex(op) {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		if k--; k > 0 || (k < 0 && !sticky) {
			return nil
		}
		if where == "" {
			where = path.Base(op.Path)
			if ext := strings.TrimPrefix(path.Ext(where), "."); ext != "" && where != siteLogName {
				where = ext
			}
		}
		return syscall.EIO
	})
	_, merr := j.Maintain(soon(t), Maintenance{Retention: Retention{Ladder: []Rung{{Every: time.Nanosecond}}}, FoldBytes: 1})
	for ; err == nil && answered < 120; answered++ {
		err = write(answered)
	}
	if err != nil {
		answered--
	}
	mu.Lock()
	hit := where != ""
	mu.Unlock()
	if hit {
		if ended := j.waitFor(soon(t), func() bool { return false }); !errors.Is(ended, ErrFailed) {
			return where, fmt.Errorf("the journal goes on: %w; maintain said %w, a write %w", ended, merr, err)
		}
		if err := write(0); !errors.Is(err, ErrFailed) && !errors.Is(err, ErrClosed) {
			return where, fmt.Errorf("a record is taken: %w", err)
		}
	} else if err = errors.Join(merr, err); err != nil {
		return where, err
	}
	j.stop()
	<-j.done
	_ = j.Journal.Close() // it failed
	w.onWrite(nil)
	for _, fs := range []vfs.FS{w.mem, w.mem.CrashClone(vfs.CrashCloneCfg{})} {
		o.FS = fs
		again, err := Open("j", o)
		if err != nil {
			return where, err
		}
		view, err := again.View(soon(t), Point{Position: again.Head().Position})
		if err != nil {
			return where, err
		}
		for i := max(0, answered-32); i < answered; i++ {
			off, want := block(i)
			b := make([]byte, 4096)
			if err := view.ReadAt(soon(t), v.ID, b, off); err != nil {
				return where, err
			}
			later := b[0] == byte(i+33) // of one that was under way
			if !bytes.Equal(b, want) && !later {
				return where, fmt.Errorf("write %d of %d reads %d", i, answered, b[0])
			}
		}
		if err := errors.Join(view.Close(), again.Close()); err != nil {
			return where, err
		}
	}
	return where, nil
}
