package journal

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal/journaltest"
	"github.com/novacron/afterimage/testbed/scale"
)

// befalls is what a countdown ends in: at the first operation that it fits, from the
// k-th on.
type befalls struct {
	name  string
	err   error
	fits  func(errorfs.Op) bool
	short bool // half of a write is written before it fails
	stall bool // the operation takes 30 s of the journal's clock, and the rest goes on meanwhile
}

var befallings = []befalls{
	{name: "EIO", err: syscall.EIO, fits: func(errorfs.Op) bool { return true }},
	{name: "ENOSPC", err: syscall.ENOSPC, fits: growing},
	{name: "short write", err: syscall.ENOSPC, fits: isWrite, short: true},
	{name: "fsync", err: syscall.EIO, fits: isSync},
	{name: "stall", stall: true, fits: func(errorfs.Op) bool { return true }},
}

func isWrite(op errorfs.Op) bool {
	return op.Kind == errorfs.OpFileWrite || op.Kind == errorfs.OpFileWriteAt
}

// growing is what a disk without room refuses.
func growing(op errorfs.Op) bool {
	return isWrite(op) || op.Kind == errorfs.OpFilePreallocate || op.Kind == errorfs.OpCreate || op.Kind == errorfs.OpMkdirAll
}

func (b befalls) full() bool { return errors.Is(b.err, syscall.ENOSPC) }

// countdown is a disk on which something befalls an operation. What is done to
// Pebble's files is not counted: the index has its own tests, and is expendable.
type countdown struct {
	*world
	befalls
	sticky bool
	clock  *clock

	mu     sync.Mutex // guards all below
	left   int        // operations until then
	hits   int
	synced bool // it befell a sync of a segment
	over   bool
}

const stickyStalls = 8 // operations, one after the other

func newCountdown(b befalls, sticky bool, k int) *countdown {
	c := &countdown{world: newWorld(vfs.NewCrashableMem()), befalls: b, sticky: sticky, left: k}
	c.onWrite(c.befall)
	return c
}

// befall is called before each operation that changes the disk.
func (c *countdown) befall(op errorfs.Op) error {
	if inIndex(op) || op.Kind == errorfs.OpFileClose {
		return nil
	}
	c.mu.Lock()
	c.left--
	hit := c.left <= 0 && !c.over && c.fits(op) && (c.hits == 0 || c.sticky)
	if hit {
		c.hits++
		c.synced = c.synced || isSync(op) && strings.Contains(op.Path, "segments")
	}
	stalls := c.stall && hit && c.hits <= stickyStalls
	c.mu.Unlock()
	switch {
	case stalls:
		c.clock.step(30 * time.Second)
		<-time.After(2 * time.Millisecond) // whatever can go on without it does
		return nil
	case hit && !c.stall && !c.short:
		return c.err
	case hit && c.short:
		return errHalf
	}
	return nil
}

// errHalf has a write done in half.
var errHalf = errors.New("half of it")

// halfFS does writes in half that are told to be.
type halfFS struct {
	vfs.FS
	c *countdown
}

type halfFile struct {
	vfs.File
	plain vfs.File // the same without the countdown
}

func (h halfFS) wrap(name string, f vfs.File, err error) (vfs.File, error) {
	if err != nil || strings.Contains(name, "/index") {
		return f, err
	}
	plain, err := h.c.mem.OpenReadWrite(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return halfFile{f, plain}, nil
}

func (h halfFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := h.FS.Create(name, c)
	return h.wrap(name, f, err)
}

func (h halfFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	f, err := h.FS.OpenReadWrite(name, c, o...)
	return h.wrap(name, f, err)
}

func (f halfFile) WriteAt(p []byte, off int64) (int, error) {
	n, err := f.File.WriteAt(p, off)
	if errors.Is(err, errHalf) {
		n, err = f.plain.WriteAt(p[:len(p)/2], off)
		err = errors.Join(err, syscall.ENOSPC)
	}
	return n, err
}

func (f halfFile) Write(p []byte) (int, error) {
	n, err := f.File.Write(p)
	if errors.Is(err, errHalf) {
		return 0, syscall.ENOSPC // where it would have begun is known to the file alone
	}
	return n, err
}

func (f halfFile) Close() error { return errors.Join(f.plain.Close(), f.File.Close()) }

// Countdown: the k-th operation fails, comes short or stalls, once or from then on,
// for every k of a script. No byte read is wrong and no answer false; a failed sync
// is the end of the journal; a lack of space refuses, and is told as a gap; nobody
// waits for ever; and what stalls changes no order. AFTERIMAGE_LONG=1 goes over all
// fifty times.
func TestCountdown(t *testing.T) {
	t.Parallel()
	rng := newSeed(t)
	type task struct {
		b      befalls
		sticky bool
		k      int
		seed   uint64
	}
	tasks := make(chan task)
	var g sync.WaitGroup
	var mu sync.Mutex // guards all below
	injected, failed := make(map[string]int), error(nil)
	for range 2 {
		g.Go(func() {
			for x := range tasks {
				n, err := countDown(t, x.b, x.sticky, x.k, x.seed)
				mu.Lock()
				injected[x.b.name] += n
				if err != nil {
					failed = errors.Join(failed, fmt.Errorf("%s at operation %d, sticky %v, seed %d: %w", x.b.name, x.k, x.sticky, x.seed, err))
				}
				mu.Unlock()
			}
		})
	}
	stride := 500 / min(scale.Scale(500), scale.Few(500)) // AFTERIMAGE_LONG goes over all again
	rounds := scale.Long(1000) / scale.Scale(1000)
	for _, b := range slices.Repeat(befallings, rounds) {
		for _, sticky := range []bool{false, true} {
			for k := 1 + int(rng.Uint64N(uint64(stride))); k <= 500; k += stride {
				mu.Lock()
				stop := failed != nil
				mu.Unlock()
				if !stop {
					tasks <- task{b, sticky, k, rng.Uint64()}
				}
			}
		}
	}
	close(tasks)
	g.Wait()
	if failed != nil {
		t.Fatal(failed)
	}
	total := 0
	for _, n := range injected {
		total += n
	}
	t.Log(injected)
	scale.CountedFew(t, "journal-countdown-faults", total, 5000)
}

// countDown runs a script under one fault, bounded in time, and tells whether it befell.
func countDown(t *testing.T, b befalls, sticky bool, k int, seed uint64) (int, error) {
	c := newCountdown(b, sticky, k)
	type result struct {
		n   int
		err error
	}
	done := make(chan result, 1)
	go func() {
		n, err := c.follow(t, rand.New(rand.NewPCG(seed, 3)))
		done <- result{n, err}
	}()
	late := time.NewTimer(10 * time.Minute)
	defer late.Stop()
	select {
	case r := <-done:
		return r.n, r.err
	case <-late.C:
		return 0, errors.New("somebody waits for ever")
	}
}

// A script goes on for afterwards operations once it has befallen, and until then for
// mostOps at most: what that does to the disk is a hundred times the 500 operations.
const (
	afterwards = 30
	mostOps    = 50_000
)

func (c *countdown) follow(t *testing.T, rng *rand.Rand) (int, error) {
	d := &driver{t: t, now: &clock{now: fixedTime}, depth: rng.IntN(6), fold: 1, own: true, pins: make(map[string]moment)}
	c.clock = d.now
	shape := journaltest.Shape{Sizes: []int64{48 << 10, 16 << 10}, MaxWrite: 16 << 10, Ladders: len(ladders),
		Only: []journaltest.Kind{journaltest.Write, journaltest.Fill, journaltest.Zero, journaltest.Trim, journaltest.Flush, journaltest.Mark, journaltest.Pin, journaltest.Maintain, journaltest.Fork, journaltest.Reopen, journaltest.Resize}}
	d.o = Options{FS: halfFS{c.fs, c}, Create: newIdentity(), Sync: SyncMode(rng.IntN(2)), SegmentBytes: 96 << 10, PoolBytes: []int64{-1, 0, 1}[rng.IntN(3)], Now: d.now.Now, Compress: Compression(rng.IntN(3))}
	for i, n := range shape.Sizes {
		d.vols = append(d.vols, volume(fmt.Sprintf("v%d", i), n))
	}
	d.state = journaltest.Empty(shape.Sizes...)
	err := c.script(d, journaltest.NewAuthor(rng, shape), rng)
	c.mu.Lock()
	c.over = true
	hits := min(c.hits, 1)
	c.mu.Unlock()
	if err != nil {
		return hits, err
	}
	return hits, c.judge(d, rng)
}

// script does what an author says until the journal fails.
func (c *countdown) script(d *driver, a *journaltest.Author, rng *rand.Rand) error {
	err := d.open()
	if err == nil {
		err = c.begin(d)
	}
	for n, since := 0, 0; err == nil && d.w != nil && n < mostOps && since < afterwards; n++ {
		if c.befell() {
			since++
		}
		op := a.Next()
		if !d.makesSense(op) {
			continue
		}
		if err = d.do(op); c.full() && errors.Is(err, ErrFull) {
			err = c.goOn(d, op)
		}
	}
	if err == nil && d.w != nil {
		err = d.land()
	}
	return c.end(d, err)
}

func (c *countdown) befell() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.hits > 0
}

// begin begins an epoch at the head. On a disk that stays full there is none.
func (c *countdown) begin(d *driver) error {
	for range 3 {
		err := d.begin(Position{}, d.state)
		if !c.full() || !errors.Is(err, ErrFull) {
			return err
		}
		d.w, d.flight = nil, nil // refused as a whole, or in its middle
	}
	return nil
}

// makesSense is for states that are the driver's own: what was refused did not happen.
func (d *driver) makesSense(op journaltest.Op) bool {
	size := d.state.Sizes()[op.Volume]
	switch op.Kind {
	case journaltest.Write, journaltest.Fill, journaltest.Zero, journaltest.Trim:
		return op.Off+op.Len <= size
	case journaltest.Resize:
		return op.Size != size
	case journaltest.Fork:
		_, ok := d.pins[op.Name]
		return ok
	}
	return true
}

// goOn wants the gap that a refusal owes, and has the volumes synced again.
func (c *countdown) goOn(d *driver, op journaltest.Op) error {
	if op.Kind == journaltest.Fork || op.Kind == journaltest.Reopen { // the writer that there was is fenced
		d.w, d.flight = nil, nil
		if d.j == nil {
			return nil
		}
		return c.begin(d)
	}
	_ = d.land() // refused as well
	j := d.j
	j.mu.Lock()
	owed, live := len(j.owed), len(j.live)
	j.mu.Unlock()
	if _, data := eventKinds[op.Kind]; data && live == len(d.vols) && owed == 0 && !d.repeats(op) {
		return fmt.Errorf("%v was refused, no gap is owed, and all is called synced", op)
	}
	for _, v := range d.vols {
		p, err := d.w.Record(soon(d.t), cbt.Event{Kind: cbt.EventSynced, Volume: v.ID})
		if err == nil {
			err = p.Wait(soon(d.t))
		}
		if errors.Is(err, ErrFull) {
			return nil // and no points until there is room
		}
		if err != nil {
			return err
		}
	}
	d.unsynced = false
	return nil
}

// repeats reports that op writes what is there: refused, it is missed by nobody.
func (d *driver) repeats(op journaltest.Op) bool {
	there := d.state.Image(op.Volume)
	return len(op.Data) > 0 && bytes.Equal(there[op.Off:op.Off+op.Len], op.Data)
}

// end closes what is open. What is not allowed by the fault is an error.
func (c *countdown) end(d *driver, err error) error {
	ours := func(err error) bool {
		return errors.Is(err, ErrFailed) || errors.Is(err, ErrClosed) || errors.Is(err, c.err) || errors.Is(err, ErrFull) && c.full()
	}
	if d.j != nil {
		_ = d.land()
		c.mu.Lock()
		synced := c.synced && c.name == "fsync"
		c.mu.Unlock()
		if synced && err == nil && d.w != nil {
			if e := d.w.WaitDurable(soon(d.t)); e == nil {
				err = errors.New("a sync of a segment failed and the journal goes on")
			}
		}
		if e := d.end(); err == nil && e != nil && !ours(e) {
			err = fmt.Errorf("close: %w", e)
		}
	}
	switch {
	case err == nil, !c.stall && ours(err):
		return nil
	}
	return err
}

// judge opens what is left, and what a crash would leave, without the fault.
//
// Of the moments it looks at the newest, at some that are pinned, and at a few more.
func (c *countdown) judge(d *driver, rng *rand.Rand) error {
	n := len(d.moments)
	some := append([]moment(nil), d.moments[max(0, n-2):]...)
	for _, p := range d.pins {
		if len(some) < 4 {
			some = append(some, p)
		}
	}
	for range min(n, 4) {
		some = append(some, d.moments[rng.IntN(n)])
	}
	for _, fs := range []vfs.FS{c.fs, c.mem.CrashClone(vfs.CrashCloneCfg{})} {
		crashed := fs != c.fs
		o := d.o
		o.FS = fs
		j, err := Open("j", o)
		if err != nil {
			return fmt.Errorf("open again, crashed %v: %w", crashed, err)
		}
		for _, m := range some {
			if crashed && d.o.Sync == SyncProcess {
				break
			}
			if _, e := d.check(j, m); e != nil {
				err = fmt.Errorf("crashed %v: record %s of %v, outside %v, horizon %v, pins %v, branches %v: %w", crashed, m.at, m.time.Sub(fixedTime), m.outside, d.horizon.Sub(fixedTime), d.pinned(), ends(j), e)
				break
			}
		}
		for _, m := range d.maybe {
			if _, e := d.check(j, m); e != nil && !gone(e) && !errors.Is(e, ErrUnknownParent) {
				err = errors.Join(err, fmt.Errorf("crashed %v: record %s, which was under way: %w", crashed, m.at, e))
			}
		}
		if err = errors.Join(err, j.Close()); err != nil {
			return err
		}
	}
	return nil
}

// pinned is where the pins are, for errors.
func (d *driver) pinned() (out []string) {
	for name, m := range d.pins {
		out = append(out, name+" "+m.at.String())
	}
	return out
}

// An entry that the disk had room for in half leaves nothing behind the shorter one
// that takes its place.
func TestSiteLogOutlivesAShortWrite(t *testing.T) {
	c := newCountdown(befalls{short: true, fits: isWrite}, false, 1<<30)
	c.clock = &clock{now: fixedTime}
	fs := halfFS{c.fs, c}
	must(t, fs.MkdirAll("j", 0o700))
	l, err := openSiteLog(fs, "j")
	must(t, err)
	must(t, l.remember("a", 1))
	c.mu.Lock()
	c.left = 0
	c.mu.Unlock()
	if err := l.remember("long", strings.Repeat("x", 9000)); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("a write in half: %v", err)
	}
	must(t, l.remember("a", 2))
	must(t, l.close())
	if l, err = openSiteLog(fs, "j"); err != nil {
		t.Fatal(err)
	}
	var a int
	if ok, err := l.recall("a", &a); err != nil || !ok || a != 2 {
		t.Fatalf("a is %d, %v", a, err)
	}
	if ok, _ := l.recall("long", new(string)); ok {
		t.Fatal("what was refused is remembered")
	}
	must(t, l.close())
}
