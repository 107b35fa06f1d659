package journal

import (
	"bytes"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/testbed/scale"
)

// sealedHistory is a journal of several epochs, all under acme-1.
func sealedHistory(t testing.TB, fs vfs.FS, id *Identity, v cbt.Volume, epochs int) *oracle {
	t.Helper()
	model, rng := &oracle{sizes: map[cbt.VolumeID]int64{v.ID: v.Size}}, newSeed(t)
	for range epochs {
		j := start(t, "j", Options{FS: fs, Create: id, Keys: ringOf(t, "acme-1")})
		w := beginWith(t, j.Journal, v)
		for range 10 {
			model.write(t, w, rng, v.ID)
		}
		j.close()
	}
	return model
}

// readsWith opens the journal with some keys and compares its newest point.
func readsWith(t testing.TB, fs vfs.FS, dir string, model *oracle, keys KeyRing) error {
	t.Helper()
	j, err := Open(dir, Options{FS: fs, Keys: keys})
	if err != nil {
		return err
	}
	return errors.Join(comparePoint(j, model, "latest"), j.Close())
}

// A rotation that is cut off at any operation loses nothing, and ends when it is
// done again: then the new key alone reads, here and at a replica.
func TestRewrapCrashes(t *testing.T) {
	t.Parallel()
	id, v := newIdentity(), volume("a", 128<<10)
	base := vfs.NewCrashableMem()
	model := sealedHistory(t, base, id, v, 3)
	both := ringOf(t, "acme-1", "acme-2")
	next := ringOf(t, "acme-2")
	if err := readsWith(t, base, "j", model, next); !errors.Is(err, ErrNoKey) {
		t.Fatalf("before the rotation the new key reads: %v", err)
	}
	crashes := 0
	for k := 0; ; k++ {
		w := newWorld(base.CrashClone(vfs.CrashCloneCfg{}))
		j := start(t, "j", Options{FS: w.fs, Create: id, Keys: both})
		if k%2 == 0 { // at a primary the stream tells of it, elsewhere the site log alone
			if _, err := j.BeginEpoch(soon(t), "a", Position{}, 0); err != nil {
				t.Fatal(err)
			}
		}
		var left *vfs.MemFS
		ops := 0
		var mu sync.Mutex // guards left and ops
		w.onWrite(func(errorfs.Op) error {
			mu.Lock()
			defer mu.Unlock()
			if ops++; ops == k/4+1 {
				left = w.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: crashRand()})
			}
			return nil
		})
		if _, err := j.Rewrap(soon(t)); err != nil {
			t.Fatal(err)
		}
		w.onWrite(nil)
		if err := j.end(); err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		if left == nil {
			mu.Unlock()
			break
		}
		mu.Unlock()
		crashes++
		if err := readsWith(t, left, "j", model, both); err != nil {
			t.Fatalf("after a crash at operation %d: %v", k/4+1, err)
		}
		j = start(t, "j", Options{FS: left, Keys: both})
		if r, err := j.Rewrap(soon(t)); err != nil || r.Left != 0 || r.Keys < 3 || r.Key != "acme-2" {
			t.Fatalf("rotation after a crash at operation %d: %+v, %v", k/4+1, r, err)
		}
		if r, err := j.Rewrap(soon(t)); err != nil || r.Done != 0 {
			t.Fatalf("a rotation that is done does %d again, %v", r.Done, err)
		}
		j.close()
		if err := readsWith(t, left, "j", model, next); err != nil {
			t.Fatalf("with the new key alone, after operation %d: %v", k/4+1, err)
		}
	}
	scale.Counted(t, "journal-rewrap-crashes", crashes, 20)
}

// A replica reads with the new key alone once the primary has told of it, and a
// replica's own rotation tells nobody.
func TestRewrapIsTold(t *testing.T) {
	id, v, fs := newIdentity(), volume("a", 128<<10), vfs.NewMem()
	model := sealedHistory(t, fs, id, v, 3)
	j := start(t, "j", Options{FS: fs, Keys: ringOf(t, "acme-1", "acme-2")})
	defer j.close()
	if _, err := j.BeginEpoch(soon(t), "a", Position{}, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := j.Rewrap(soon(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := resolve(t, j.Journal, "latest"); err != nil {
		t.Fatal(err)
	}
	far := vfs.NewMem()
	r := start(t, "r", Options{FS: far, Create: id})
	deliver(t, r.Journal, ship(t, j.Journal, Position{}))
	sealing := r.Sealing()
	r.close()
	if len(sealing.Keys) != 2 || sealing.DataKeys != 4 || sealing.Unreadable != 4 || sealing.Key != "" {
		t.Errorf("without a key: %+v", sealing)
	}
	if err := readsWith(t, far, "r", model, ringOf(t, "acme-2")); err != nil {
		t.Errorf("the replica, with the new key alone: %v", err)
	}
	if err := readsWith(t, far, "r", model, ringOf(t, "acme-1")); err != nil {
		t.Errorf("the replica, with the old key alone: %v", err)
	}
}

// A shredded history does not read, with the key put back under its name neither;
// it stays whole, and its lock is heard.
func TestShred(t *testing.T) {
	id, v, fs := newIdentity(), volume("a", 128<<10), vfs.NewMem()
	model := sealedHistory(t, fs, id, v, 2)
	both := ringOf(t, "acme-1", "acme-2")
	j := start(t, "j", Options{FS: fs, Keys: both})
	if _, err := j.Rewrap(soon(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := j.Shred(time.Hour); !errors.Is(err, ErrRetained) {
		t.Fatalf("shred what is locked: %v", err)
	}
	if err := comparePoint(j.Journal, model, "latest"); err != nil {
		t.Fatalf("after a refusal: %v", err)
	}
	wrapped := j.keys.list()[0][0]
	if log := readFile(t, fs, "j/"+siteLogName); !wrapped.local || !bytes.Contains(log, []byte(dataKeyPrefix)) {
		t.Fatal("the site log holds no wrapping")
	}
	w := beginWith(t, j.Journal, v)
	for range 2 {
		if names, err := j.Shred(0); err != nil || len(names) != 2 {
			t.Fatalf("shred: %v, %v", names, err)
		}
	}
	if log := readFile(t, fs, "j/"+siteLogName); bytes.Contains(log, []byte(dataKeyPrefix)) {
		t.Error("the site log still holds a wrapping")
	}
	if err := comparePoint(j.Journal, model, "latest"); !errors.Is(err, ErrShredded) {
		t.Errorf("a shredded history reads: %v", err)
	}
	_, err := w.Record(soon(t), cbt.Event{Kind: cbt.EventWrite, Volume: v.ID, Extent: cbt.Extent{Length: 512}, Data: bytes.Repeat([]byte{1}, 512)})
	if !errors.Is(err, ErrShredded) {
		t.Errorf("a write under a shredded key: %v", err)
	}
	if _, err := j.BeginEpoch(soon(t), "a", Position{}, 0); !errors.Is(err, ErrNoKey) {
		t.Errorf("an epoch under a shredded key: %v", err)
	}
	if found, err := j.Verify(soon(t), nil); err != nil || len(found) > 0 {
		t.Errorf("verify: %v, %v", found, err)
	}
	j.close()
	if err := readsWith(t, fs, "j", model, both); !errors.Is(err, ErrShredded) {
		t.Errorf("after an opening, with the key put back: %v", err)
	}
	j = start(t, "j", Options{FS: fs, Keys: ringOf(t, "acme-3")})
	defer j.close()
	w = beginWith(t, j.Journal, v)
	s := put(t, w, v, 0, bytes.Repeat([]byte{5}, int(v.Size)))
	if b, err := readAs(t, j.Journal, Position{w.epoch.ID, s}, v); err != nil || b[0] != 5 {
		t.Errorf("under a new key: %v", err)
	}
}
