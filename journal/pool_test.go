package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/novacron/afterimage/testbed/scale"
)

// recycle puts what segment n holds into the pool, as reclaim would, and leaves the
// segment where it is: its frames are the former life of one to come.
func recycle(t testing.TB, fs vfs.FS, id Identity, n, k uint64) {
	t.Helper()
	b := contentOf(t, fs, fs.PathJoin("j", "segments", segmentName(n)))
	s := segmentPage{Magic: poolMagic, Identity: id}
	copy(b, s.encode())
	path := fs.PathJoin("j", poolDirName, fmt.Sprintf("%016d%s", k, poolSuffix))
	f, err := fs.Create(path, vfs.WriteCategoryUnspecified)
	if err == nil {
		_, err = f.Write(b)
		err = errors.Join(err, f.Sync(), f.Close(), syncDir(fs, fs.PathJoin("j", poolDirName)))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Wherever the disk stops while segments are made of old ones, nothing of a former
// life is taken for this one, nor for proof of a loss. AFTERIMAGE_LONG=1 makes it fifty
// times as long.
func TestCrashAnywhereRecycling(t *testing.T) {
	t.Parallel()
	want := scale.Long(3000)
	rng := newSeed(t)
	points, recycled := 0, 0
	for points < want {
		c := newCrasher(t, rng)
		c.still = true // what is recycled is laid there by us
		c.w.onWrite(c.crash)
		o := &c.o
		o.PoolBytes = -1
		for life := range 4 {
			if life > 0 { // the newest ones are the most like what is to come
				o.PoolBytes = 1
				ns, err := (&Journal{o: *o, segs: newSegments(c.w.mem, "j/segments", segmentName)}).segmentList()
				if err != nil {
					t.Fatal(err)
				}
				for k, n := range ns {
					if st, err := c.w.mem.Stat("j/segments/" + segmentName(n)); err == nil && st.Size() >= o.SegmentBytes {
						recycle(t, c.w.mem, *o.Create, n, uint64(1000*(life+1)+k))
					}
				}
			}
			j := start(t, "j", *o)
			free := j.pool.size()
			w, err := c.begin(j, Position{}, c.state)
			if err == nil {
				err = c.load(j, w, 3, 12, rng.Uint64())
			}
			c.mu.Lock()
			err = errors.Join(err, c.failed)
			c.mu.Unlock()
			if err != nil {
				t.Fatal(err)
			}
			if life > 0 {
				recycled += int((free - j.pool.size()) / j.pool.bytes)
			}
			found, err := j.Verify(context.Background(), nil)
			if err != nil || len(found) > 0 {
				t.Fatalf("life %d: verify found %v, %v", life, found, err)
			}
			j.close()
			must(t, c.allAnswered())
		}
		points += c.points
	}
	if recycled == 0 {
		t.Fatal("no segment was made of an old one")
	}
	t.Logf("%d segments were made of old ones", recycled)
	scale.Counted(t, "journal-crash-points-recycling", points, 3000)
}

// A segment whose name is not durable takes everything in it along.
func segmentNamesAreDurable(t *testing.T, f faults) error {
	w := newWorld(vfs.NewCrashableMem())
	o := Options{FS: w.fs, Create: newIdentity(), Sync: SyncPower, SegmentBytes: 64 << 10, PoolBytes: 128 << 10, faults: f}
	j := start(t, "j", o)
	if err := j.WaitPool(soon(t)); err != nil {
		return err
	}
	v := volume("a", 1<<20)
	wr := beginWith(t, j.Journal, v)
	var last Seq
	for i := range 24 { // two segments at least
		last = put(t, wr, v, int64(i)*4096, bytes.Repeat([]byte{7}, 4096))
	}
	clone := w.mem.CrashClone(vfs.CrashCloneCfg{})
	j.close()
	o.FS, o.faults = clone, faults{}
	k, err := Open("j", o)
	if err != nil {
		return fmt.Errorf("open after a power loss: %w", err)
	}
	head := k.Head().Seq
	if err := k.Close(); err != nil {
		return err
	}
	if head < last {
		return fmt.Errorf("record %d was answered, a power loss left %d", last, head)
	}
	return nil
}

// A retired segment comes back as a free file, and a crash at any operation leaves
// it either a segment or free, never both.
func TestRetireSegment(t *testing.T) {
	for stop := 0; ; stop++ {
		mem := vfs.NewCrashableMem()
		w := newWorld(mem)
		o := Options{FS: w.fs, Create: newIdentity(), SegmentBytes: 64 << 10, PoolBytes: 64 << 10}
		j := start(t, "j", o)
		v := volume("a", 1<<20)
		wr := beginWith(t, j.Journal, v)
		for i := range 24 {
			put(t, wr, v, int64(i)*4096, bytes.Repeat([]byte{byte(i + 1)}, 4096))
		}
		if err := errors.Join(wr.WaitDurable(soon(t)), j.WaitPool(soon(t))); err != nil {
			t.Fatal(err)
		}
		j.pool.mu.Lock()
		j.pool.target = 0 // nothing is written ahead meanwhile
		j.pool.mu.Unlock()
		var mu sync.Mutex // guards left and at
		left, at := stop, (*vfs.MemFS)(nil)
		w.onWrite(func(errorfs.Op) error {
			mu.Lock()
			defer mu.Unlock()
			if left--; left < 0 && at == nil {
				at = mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: crashRand()})
			}
			return nil
		})
		before := j.pool.size()
		err := j.retireSegment(1)
		w.onWrite(nil)
		if err != nil || j.pool.size() != before+64<<10 {
			t.Fatalf("retire: pool of %d, then %d: %v", before, j.pool.size(), err)
		}
		j.close() // what it still does is over then
		if at == nil {
			if stop < 4 {
				t.Fatalf("only %d operations", stop)
			}
			return
		}
		k := &Journal{dir: "j", o: Options{FS: at, SegmentBytes: 64 << 10}.withDefaults(), identity: j.identity, segs: newSegments(at, "j/segments", segmentName)}
		if err := k.openPool(); err != nil {
			t.Fatal(err)
		}
		segment, err := exists(at, k.segs.path(1))
		if err != nil || (segment && len(k.pool.free) > 1) {
			t.Fatalf("crash at operation %d: segment there %v, %d free: %v", stop, segment, len(k.pool.free), err)
		}
	}
}

// A file that is given up leaves room for records, and the pool comes back later.
func TestPoolIsGivenUpFirst(t *testing.T) {
	f := newFull()
	o := Options{FS: f.fs, Create: newIdentity(), SegmentBytes: 64 << 10, PoolBytes: 128 << 10}
	j := start(t, "j", o)
	defer j.close()
	v := volume("a", 1<<20)
	w := beginWith(t, j.Journal, v)
	if err := j.WaitPool(soon(t)); err != nil {
		t.Fatal(err)
	}
	refused := false
	f.onWrite(func(op errorfs.Op) error { // room comes only from the pool
		if op.Kind == errorfs.OpRemove {
			f.set(false)
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.on && inSegment(op) && op.Kind == errorfs.OpFileWriteAt {
			refused = true
			return syscall.ENOSPC
		}
		return nil
	})
	f.set(true)
	put(t, w, v, 0, bytes.Repeat([]byte{7}, 4096))
	if !refused {
		t.Fatal("the disk was never full")
	}
	if err := j.WaitPool(soon(t)); err != nil {
		t.Fatal(err)
	}
}
