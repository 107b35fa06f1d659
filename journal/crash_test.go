package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/testbed/scale"
)

// crasher runs writers over a journal and, at operations of the disk, opens what a
// crash there would leave and compares it to the model.
type crasher struct {
	t    *testing.T
	mode SyncMode
	rng  *rand.Rand // under checking
	w    *world
	vols []cbt.Volume

	mu       sync.Mutex // guards all below
	model    oracle
	answered Seq // highest seq that was answered, by the mode
	durable  Seq // highest seq that was said to survive power loss
	failed   error

	checking sync.Mutex
	ops      int
	points   int
	nested   int
	every    int // check each so many operations
}

const crashVolumeBytes = 128 << 10

func (c *crasher) options(fs vfs.FS) Options {
	return Options{FS: fs, Sync: c.mode, SegmentBytes: 48 << 10}
}

// crash is called before an operation that changes the disk.
func (c *crasher) crash(errorfs.Op) error {
	if !c.checking.TryLock() {
		return nil
	}
	defer c.checking.Unlock()
	if c.ops++; c.ops%c.every != 0 {
		return nil
	}
	c.mu.Lock()
	answered, durable, failed := c.answered, c.durable, c.failed
	c.mu.Unlock()
	if failed != nil {
		return nil
	}
	percent := []int{0, 50, 100}[c.rng.IntN(3)]
	clone := c.w.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rand.New(rand.NewPCG(c.rng.Uint64(), 1))})
	c.mu.Lock()
	log := c.model.log[:len(c.model.log):len(c.model.log)]
	c.mu.Unlock()
	must := durable
	if c.mode == SyncPower || percent == 100 {
		must = max(must, answered)
	}
	if err := c.check(clone, log, must); err != nil {
		c.mu.Lock()
		c.failed = fmt.Errorf("operation %d, %d %% of unsynced data kept, record %d must be there: %w", c.ops, percent, must, err)
		c.mu.Unlock()
	}
	c.points++
	return nil
}

// check opens what a crash left and compares its end, and a point, to the model.
func (c *crasher) check(mem *vfs.MemFS, log []oracleWrite, must Seq) error {
	w := newWorld(mem)
	var again *vfs.MemFS
	if c.rng.IntN(10) == 0 { // crash once more while it recovers
		left := c.rng.IntN(30)
		var mu sync.Mutex // guards left and again
		w.onWrite(func(errorfs.Op) error {
			mu.Lock()
			defer mu.Unlock()
			if left--; left == 0 {
				again = mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: rand.New(rand.NewPCG(1, 1))})
			}
			return nil
		})
	}
	j, err := Open("j", c.options(w.fs))
	if must == 0 && errors.Is(err, ErrNotFound) {
		return nil // the crash came before there was a journal
	}
	if err != nil {
		return err
	}
	head, err := c.compare(j, log, must)
	if err == nil && j.Head().Durable.Seq != head {
		err = fmt.Errorf("recovered to %d, durable is %d", head, j.Head().Durable.Seq)
	}
	if err = errors.Join(err, j.Close()); err != nil || again == nil {
		return err
	}
	c.nested++
	j, err = Open("j", c.options(again))
	if err != nil {
		return fmt.Errorf("crashed in recovery: %w", err)
	}
	_, err = c.compare(j, log, head) // what was recovered had been made durable first
	return errors.Join(err, j.Close())
}

func (c *crasher) compare(j *Journal, log []oracleWrite, must Seq) (Seq, error) {
	h := j.Head()
	if h.Seq < must {
		return h.Seq, fmt.Errorf("the journal ends at record %d", h.Seq)
	}
	model := oracle{sizes: c.model.sizes, log: log}
	l := j.Lineage()
	for _, s := range []Seq{h.Seq, 1 + Seq(c.rng.Uint64N(uint64(h.Seq)+1))} {
		i, ok := l.Owner(s)
		if !ok {
			continue
		}
		v, err := j.View(context.Background(), Point{Position: Position{i.Epoch, s}})
		if err != nil {
			return h.Seq, err
		}
		for _, vol := range v.Volumes() {
			got := make([]byte, vol.Size)
			if err := v.ReadAt(context.Background(), vol.ID, got, 0); err != nil {
				return h.Seq, fmt.Errorf("at record %d of %d: %w", s, h.Seq, err)
			}
			if !bytes.Equal(got, model.image(vol.ID, s)) {
				return h.Seq, fmt.Errorf("volume %s at record %d of %d differs from the model", vol.Name, s, h.Seq)
			}
		}
	}
	return h.Seq, nil
}

// load lets writers write at once, each waiting for its answers.
func (c *crasher) load(w *Writer, writers, writes int, seed uint64) error {
	var g sync.WaitGroup
	errs := make([]error, writers)
	for k := range writers {
		g.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(k)))
			for i := range writes {
				if errs[k] = c.write(w, rng); errs[k] != nil {
					return
				}
				if i%8 == k {
					if errs[k] = c.flush(w); errs[k] != nil {
						return
					}
				}
			}
		})
	}
	g.Wait()
	return errors.Join(errs...)
}

func (c *crasher) write(w *Writer, rng *rand.Rand) error {
	v := c.vols[rng.IntN(len(c.vols))]
	sectors := v.Size / cbt.SectorBytes
	n := 1 + rng.Int64N(24)
	e := cbt.Extent{Offset: rng.Int64N(sectors-n) * cbt.SectorBytes, Length: n * cbt.SectorBytes}
	ev := cbt.Event{Kind: cbt.EventWrite, Volume: v.ID, Extent: e}
	if rng.IntN(8) == 0 {
		ev.Kind = cbt.EventZero
	} else {
		ev.Data = noise(rng, int(e.Length))
	}
	data := bytes.Clone(ev.Data)
	c.mu.Lock()
	p, err := w.Record(context.Background(), ev)
	if err != nil {
		c.mu.Unlock()
		return err
	}
	s := p.(pendingRecord).seq
	c.model.log = append(c.model.log, oracleWrite{s, v.ID, e.Offset, data, e.Length})
	c.mu.Unlock()
	if err := p.Wait(context.Background()); err != nil {
		return err
	}
	c.mu.Lock()
	c.answered = max(c.answered, s)
	c.mu.Unlock()
	return nil
}

func (c *crasher) flush(w *Writer) error {
	c.mu.Lock()
	s := c.answered
	c.mu.Unlock()
	if err := w.WaitDurable(context.Background()); err != nil {
		return err
	}
	c.mu.Lock()
	c.durable = max(c.durable, s)
	c.mu.Unlock()
	return nil
}

// Promises 1 and 2: wherever the disk stops, what was answered is there, what is
// there is a prefix, and its images are right; also when recovery is cut short.
func TestCrashAnywhere(t *testing.T) {
	want := scale.Scale(20000)
	rng := newSeed(t)
	points, nested := 0, 0
	for points < want {
		c := &crasher{t: t, mode: SyncMode(rng.IntN(2)), rng: rand.New(rand.NewPCG(rng.Uint64(), 2)), w: newWorld(vfs.NewCrashableMem()), every: 1 + rng.IntN(3)}
		c.vols = []cbt.Volume{volume("a", crashVolumeBytes), volume("b", crashVolumeBytes-512)}
		c.model.sizes = map[cbt.VolumeID]int64{c.vols[0].ID: crashVolumeBytes, c.vols[1].ID: crashVolumeBytes - 512}
		c.w.onWrite(c.crash)
		o := c.options(c.w.fs)
		o.Create = newIdentity()
		for range 3 {
			j := start(t, "j", o)
			w, err := j.BeginEpoch(soon(t), "a", Position{}, 0)
			for _, v := range c.vols {
				err = errors.Join(err, w.AddVolume(soon(t), v))
			}
			if err == nil {
				err = c.load(w, 3, 12, rng.Uint64())
			}
			c.mu.Lock()
			err = errors.Join(err, c.failed)
			c.mu.Unlock()
			if err != nil {
				t.Fatal(err)
			}
			j.close()
		}
		if c.failed != nil {
			t.Fatal(c.failed)
		}
		points, nested = points+c.points, nested+c.nested
	}
	t.Logf("%d of them crashed again inside recovery", nested)
	scale.Counted(t, "journal-crash-points", points, 20000)
}

// Countdown: the k-th operation fails, for every k. Nothing wrong is ever read, a
// failed sync or write ends the journal, a full disk refuses and is overcome.
func TestFailTheNthOperation(t *testing.T) {
	kinds := []struct {
		name string
		err  error
		hit  func(errorfs.Op) bool
	}{
		{"EIO", errorfs.ErrInjected, func(op errorfs.Op) bool { return !inIndex(op) }},
		{"fsync", errorfs.ErrInjected, func(op errorfs.Op) bool { return !inIndex(op) && isSync(op) }},
		{"ENOSPC", syscall.ENOSPC, func(op errorfs.Op) bool { return inSegment(op) && !isSync(op) }},
	}
	rng, injected := newSeed(t), 0
	for _, k := range kinds {
		stride := 1
		if !scale.Sweeps() {
			stride = 3
		}
		for n := 1; ; n += stride {
			hit, err := failAt(t, rng.Uint64(), n, k.err, k.hit)
			if err != nil {
				t.Fatalf("%s at operation %d: %v", k.name, n, err)
			}
			if !hit {
				break
			}
			injected++
		}
	}
	scale.Counted(t, "journal-injected-errors", injected, 150)
}

func failAt(t *testing.T, seed uint64, n int, inject error, match func(errorfs.Op) bool) (hit bool, err error) {
	w := newWorld(vfs.NewCrashableMem())
	c := &crasher{t: t, rng: rand.New(rand.NewPCG(seed, 2)), w: w}
	c.vols = []cbt.Volume{volume("a", crashVolumeBytes)}
	c.model.sizes = map[cbt.VolumeID]int64{c.vols[0].ID: crashVolumeBytes}
	o := c.options(w.fs)
	o.Create = newIdentity()
	var mu sync.Mutex
	w.onWrite(func(op errorfs.Op) error {
		mu.Lock()
		defer mu.Unlock()
		if !match(op) {
			return nil
		}
		if n--; n == 0 {
			hit = true
			return inject
		}
		return nil
	})
	full := errors.Is(inject, syscall.ENOSPC)
	j, err := Open("j", o)
	if err == nil {
		ctx, stop := context.WithCancel(context.Background())
		r := &running{Journal: j, t: t, stop: stop, done: make(chan error, 1)}
		go func() { r.done <- j.Run(ctx) }()
		if err := j.waitFor(soon(t), func() bool { return j.running }); err != nil && !errors.Is(err, ErrFailed) {
			return false, err
		}
		err = c.script(j, full)
		if e := r.end(); err == nil && e != nil && !errors.Is(e, ErrFailed) && !errors.Is(e, errorfs.ErrInjected) {
			err = e
		}
		if err != nil {
			return hit, err
		}
	} else if !errors.Is(err, inject) {
		return hit, fmt.Errorf("open: %w", err)
	}
	w.onWrite(nil)
	k, err := Open("j", o)
	if err != nil {
		return hit, fmt.Errorf("open again: %w", err)
	}
	_, err = c.compare(k, c.model.log, c.answered)
	return hit, errors.Join(err, k.Close())
}

// script writes until the journal fails; full: it must not, and what is refused
// must be told as a gap.
func (c *crasher) script(j *Journal, full bool) error {
	again := func(err error) bool { return full && errors.Is(err, ErrFull) }
	w, err := j.BeginEpoch(soon(c.t), "a", Position{}, 0)
	if again(err) {
		w, err = j.BeginEpoch(soon(c.t), "a", Position{}, 0)
	}
	if err == nil {
		err = w.AddVolume(soon(c.t), c.vols[0])
		if again(err) {
			err = w.AddVolume(soon(c.t), c.vols[0])
		}
	}
	if err == nil {
		var synced cbt.Pending
		synced, err = w.Record(soon(c.t), cbt.Event{Kind: cbt.EventSynced, Volume: c.vols[0].ID})
		if err == nil {
			err = synced.Wait(soon(c.t))
		}
	}
	rng := rand.New(rand.NewPCG(c.rng.Uint64(), 5))
	for range 24 {
		if err != nil && !again(err) {
			break
		}
		if err = c.write(w, rng); again(err) {
			c.dropRefused()
			err = c.checkGap(j)
		}
	}
	if !full && (errors.Is(err, ErrFailed) || errors.Is(err, ErrClosed) || errors.Is(err, errorfs.ErrInjected)) {
		return nil
	}
	return err
}

// dropRefused takes a refused write out of the model: its seq is given anew.
func (c *crasher) dropRefused() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.model.log = c.model.log[:len(c.model.log)-1]
}

// checkGap waits for the gap that a refused write owes.
func (c *crasher) checkGap(j *Journal) error {
	j.mu.Lock()
	owed, live := len(j.owed), j.live[c.vols[0].ID]
	j.mu.Unlock()
	if owed == 0 && live {
		return errors.New("a write was refused and no gap is owed")
	}
	if owed > 0 {
		return nil
	}
	if err := j.waitFor(soon(c.t), func() bool { return len(j.queue) == 0 && j.next == j.written+1 }); err != nil {
		return err
	}
	hs, err := j.Happenings(soon(c.t), time.Time{}, time.Time{})
	if err != nil {
		return err
	}
	for _, h := range hs {
		if h.Kind == KindGap && h.Cause == cbt.CauseDiskFull {
			return nil
		}
	}
	return errors.New("a write was refused and no gap is recorded")
}
