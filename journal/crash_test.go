package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal/journaltest"
	"github.com/novacron/afterimage/testbed/scale"
)

// crasher lets writers, a pinner and Maintain work at once on a journal and, at
// operations of the disk, opens what a crash there would leave. The model's answer
// has three values. What was answered by the mode, what is pinned and what no ladder
// has given up must be there; what was under way, and what a ladder gives up, may be
// there; anything else must not: no record that was never made, none of a history
// that was left, no bytes but those of the record that is asked for.
type crasher struct {
	t     testing.TB
	o     Options
	rng   *rand.Rand // under checking
	now   *clock
	w     *world
	vols  []cbt.Volume
	begun map[Position]*journaltest.State // the starts of epochs, by their parents, while they begin

	mu       sync.Mutex // guards all below
	moments  []moment   // what was recorded, in order of the calls
	state    *journaltest.State
	answered int // how many of moments were answered by the mode
	durable  int // how many were said to survive power loss
	pins     map[Position]bool
	horizon  time.Time // points before it may be gone
	failed   error

	checking sync.Mutex
	ops      int
	points   int
	still    bool // nobody calls Maintain
	nested   int
	afters   int
	every    int // check each so many operations
}

const crashVolumeBytes = 128 << 10

func newCrasher(t testing.TB, rng *rand.Rand) *crasher {
	c := &crasher{t: t, rng: rand.New(rand.NewPCG(rng.Uint64(), 2)), w: newWorld(vfs.NewCrashableMem()), every: 1 + rng.IntN(3),
		now: &clock{now: fixedTime}, pins: make(map[Position]bool), begun: make(map[Position]*journaltest.State)}
	c.vols = []cbt.Volume{volume("a", crashVolumeBytes), volume("b", crashVolumeBytes-512)}
	c.state = journaltest.Empty(crashVolumeBytes, crashVolumeBytes-512)
	c.o = Options{FS: c.w.fs, Create: newIdentity(), Sync: SyncMode(rng.IntN(2)), SegmentBytes: 48 << 10, Now: c.now.Now, Compress: Compression(rng.IntN(3)), PoolBytes: []int64{-1, 0, 1}[rng.IntN(3)]}
	if rng.IntN(3) == 0 {
		keys := &Keys{}
		must(t, keys.Add("tenant", bytes.Repeat([]byte{7}, 32)))
		c.o.Keys = keys
	}
	return c
}

// known is the model as of a crash.
type known struct {
	moments []moment
	must    int // so many of moments must be there
	pins    map[Position]bool
	horizon time.Time
	begun   map[Position]*journaltest.State
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
	percent := []int{0, 50, 100}[c.rng.IntN(3)]
	c.mu.Lock()
	k := known{must: c.durable, pins: make(map[Position]bool), begun: make(map[Position]*journaltest.State)}
	if c.o.Sync == SyncPower || percent == 100 {
		k.must = max(k.must, c.answered)
	}
	for p := range c.pins {
		k.pins[p] = true
	}
	failed := c.failed
	c.mu.Unlock()
	if failed != nil {
		return nil
	}
	clone := c.w.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rand.New(rand.NewPCG(c.rng.Uint64(), 1))})
	c.mu.Lock()
	k.moments, k.horizon = c.moments[:len(c.moments):len(c.moments)], c.horizon
	for p, s := range c.begun {
		k.begun[p] = s
	}
	c.mu.Unlock()
	if err := c.check(clone, k); err != nil {
		c.mu.Lock()
		c.failed = fmt.Errorf("operation %d, %d %% of unsynced data kept, %d of %d records must be there, %+v: %w", c.ops, percent, k.must, len(k.moments), []any{c.o.Sync, c.o.PoolBytes, c.o.Compress, c.o.Keys != nil}, err)
		c.mu.Unlock()
	}
	c.points++
	return nil
}

// check opens what a crash left and holds it to the model; now and then it crashes
// once more in the middle of the recovery, or goes on writing after it.
func (c *crasher) check(mem *vfs.MemFS, k known) error {
	w := newWorld(mem)
	var again *vfs.MemFS
	if c.rng.IntN(10) == 0 {
		left, seed := c.rng.IntN(30), c.rng.Uint64()
		var mu sync.Mutex // guards left and again
		w.onWrite(func(errorfs.Op) error {
			mu.Lock()
			defer mu.Unlock()
			if left--; left == 0 {
				again = mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: rand.New(rand.NewPCG(seed, 1))})
			}
			return nil
		})
	}
	o := c.o
	o.FS, o.Create = w.fs, nil
	j, err := Open("j", o)
	if k.must == 0 && errors.Is(err, ErrNotFound) {
		return nil // the crash came before there was a journal
	}
	if err != nil {
		return err
	}
	err = c.compare(j, k)
	h := j.Head()
	if err == nil && h.Durable.Seq != h.Seq {
		err = fmt.Errorf("recovered to %d, durable is %d", h.Seq, h.Durable.Seq)
	}
	if err = errors.Join(err, j.Close()); err != nil {
		return err
	}
	if again != nil {
		c.nested++
		o.FS = again
		if j, err = Open("j", o); err != nil {
			return fmt.Errorf("crashed in recovery: %w", err)
		}
		err = c.compare(j, k)
		if err == nil && j.Head().Position != h.Position { // what was recovered had been made durable first
			err = fmt.Errorf("recovered to %s, then to %s", h.Position, j.Head().Position)
		}
		return errors.Join(err, j.Close())
	}
	if c.rng.IntN(40) == 0 {
		c.afters++
		return c.goOn(o, k)
	}
	return nil
}

// goOn writes after a crash, maintains the journal and opens it once more: what was
// there stays there.
func (c *crasher) goOn(o Options, k known) error {
	j := start(c.t, "j", o)
	head := j.Head()
	s := k.at(head)
	if s == nil { // nothing, or an epoch that was being begun
		s = journaltest.Empty(c.vols[0].Size, c.vols[1].Size)
		if bs := j.Branches(); len(bs) > 0 {
			s = k.begun[bs[len(bs)-1].Parent.Position]
		}
	}
	w, err := j.BeginEpoch(soon(c.t), "b", Position{}, 0)
	if err == nil {
		k.moments = append(k.moments, moment{at: Position{w.epoch.ID, w.epoch.First()}, state: s, outside: true})
	}
	if err == nil && !head.IsZero() {
		vs, e := j.Volumes(Point{Position: j.Head().Position})
		for i, v := range c.vols {
			op := journaltest.Op{Kind: journaltest.Write, Volume: i, Off: 8192, Len: 1024, Data: bytes.Repeat([]byte{9}, 1024)}
			if len(vs) < len(c.vols) || e != nil {
				break // it is older than its volumes
			}
			var p cbt.Pending
			if p, e = w.Record(soon(c.t), cbt.Event{Kind: cbt.EventWrite, Volume: v.ID, Extent: cbt.Extent{Offset: op.Off, Length: op.Len}, Data: op.Data}); e == nil {
				e = p.Wait(soon(c.t))
				s = s.Then(op)
				k.moments = append(k.moments, moment{at: Position{w.epoch.ID, p.(pendingRecord).seq}, state: s, time: c.now.Now()})
			}
			err = errors.Join(err, e)
		}
		_, e = j.Maintain(soon(c.t), Maintenance{FoldBytes: 1})
		err = errors.Join(err, e)
	}
	if err = errors.Join(err, j.end()); err != nil {
		return fmt.Errorf("go on after a crash: %w", err)
	}
	k.must = 0
	again, err := Open("j", o)
	if err != nil {
		return fmt.Errorf("open after going on: %w", err)
	}
	if err = c.compare(again, k); err != nil {
		err = fmt.Errorf("after going on: %w", err)
	}
	return errors.Join(err, again.Close())
}

// begin forks an epoch at a record of state s, or at the head.
func (c *crasher) begin(j *running, parent Position, s *journaltest.State) (*Writer, error) {
	c.mu.Lock()
	at := parent
	if at.IsZero() {
		at = j.Head().Position
	}
	c.begun[at] = s
	c.mu.Unlock()
	w, err := j.BeginEpoch(soon(c.t), "a", parent, 0)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.state = s
	c.moments = append(c.moments, moment{at: Position{w.epoch.ID, w.epoch.First()}, state: s, time: c.now.Now(), outside: true})
	c.answered, c.durable = len(c.moments), len(c.moments)
	delete(c.begun, at)
	c.mu.Unlock()
	for _, v := range c.vols {
		if err := w.AddVolume(soon(c.t), v); err != nil {
			return nil, err
		}
	}
	for _, v := range c.vols {
		p, err := w.Record(soon(c.t), cbt.Event{Kind: cbt.EventSynced, Volume: v.ID})
		if err == nil {
			err = p.Wait(soon(c.t))
		}
		if err != nil {
			return nil, err
		}
	}
	return w, nil
}

// load lets writers write at once, each waiting for its answers, and the journal be
// maintained meanwhile.
func (c *crasher) load(j *running, w *Writer, writers, writes int, seed uint64) error {
	var g sync.WaitGroup
	errs := make([]error, writers+1)
	for k := range writers {
		g.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(k)))
			for i := range writes {
				err := c.write(w, rng)
				if err == nil && i%8 == k {
					err = c.flush(w)
				}
				if err == nil && i%12 == 4+k {
					err = c.pin(j, w, i%2 == 0)
				}
				if err == nil && i%4 == k {
					err = c.maintainOnce(j, rng.IntN(len(ladders)))
				}
				if errs[k] = err; err != nil {
					return
				}
			}
		})
	}
	g.Wait()
	return errors.Join(errs...)
}

func (c *crasher) write(w *Writer, rng *rand.Rand) error {
	c.now.step(time.Second)
	k := rng.IntN(len(c.vols))
	v := c.vols[k]
	sectors := v.Size / cbt.SectorBytes
	n := 1 + rng.Int64N(24)
	e := cbt.Extent{Offset: rng.Int64N(sectors-n) * cbt.SectorBytes, Length: n * cbt.SectorBytes}
	ev, op := cbt.Event{Kind: cbt.EventWrite, Volume: v.ID, Extent: e}, journaltest.Op{Kind: journaltest.Write, Volume: k, Off: e.Offset, Len: e.Length}
	switch rng.IntN(12) {
	case 0:
		ev.Kind, op.Kind = cbt.EventZero, journaltest.Zero
	case 1:
		ev.Kind, op.Kind = cbt.EventTrim, journaltest.Trim
	case 2:
		ev.Data = make([]byte, e.Length)
	default:
		ev.Data = noise(rng, int(e.Length))
	}
	op.Data = bytes.Clone(ev.Data)
	c.mu.Lock()
	at := c.now.Now() // others let the clock go on
	p, commit, err := placeInTurn(context.Background(), w, ev)
	if err != nil {
		c.mu.Unlock()
		return err
	}
	c.state = c.state.Then(op)
	c.moments = append(c.moments, moment{at: Position{w.epoch.ID, p.(pendingRecord).seq}, state: c.state, time: at})
	mine := len(c.moments)
	c.mu.Unlock()
	commit()
	if err := p.Wait(context.Background()); err != nil {
		return err
	}
	c.mu.Lock()
	c.answered = max(c.answered, mine)
	c.mu.Unlock()
	return nil
}

func (c *crasher) flush(w *Writer) error {
	c.mu.Lock()
	n := c.answered
	c.mu.Unlock()
	if err := w.WaitDurable(context.Background()); err != nil {
		return err
	}
	c.mu.Lock()
	c.durable = max(c.durable, n)
	c.mu.Unlock()
	return nil
}

// pin keeps a record that is durable.
func (c *crasher) pin(j *running, w *Writer, site bool) error {
	c.mu.Lock()
	m := c.moments[c.durable-1]
	c.mu.Unlock()
	if m.at.Epoch != w.epoch.ID || m.at.Seq < w.epoch.First()+4 {
		return nil // before the volumes were synced
	}
	_, err := j.Pin(soon(c.t), fmt.Sprint(m.at), Point{Position: m.at}, false)
	if gone(err) {
		return nil // thinned in time
	}
	if err == nil {
		c.mu.Lock()
		c.pins[m.at] = true
		c.mu.Unlock()
	}
	return err
}

// maintainOnce thins, unless somebody does.
func (c *crasher) maintainOnce(j *running, ladder int) error {
	if c.still {
		return nil
	}
	r, now := ladders[ladder], c.now.Now() // others let the clock go on
	if len(r.Ladder) > 0 {
		c.mu.Lock()
		if h := now.Add(-r.Ladder[0].For); h.After(c.horizon) {
			c.horizon = h
		}
		c.mu.Unlock()
	}
	_, err := j.Maintain(soon(c.t), Maintenance{Retention: r, FoldBytes: 1, Now: now})
	if errors.Is(err, ErrBusy) {
		return nil
	}
	return err
}

// Promises 1, 2 and 7: wherever the disk stops, what was answered is there, what is
// there is a prefix, its images are right, and what retention has to keep is kept;
// also when recovery is cut short. AFTERIMAGE_LONG=1 makes it fifty times as long.
func TestCrashAnywhere(t *testing.T) {
	t.Parallel()
	want := scale.Few(20000)
	rng := newSeed(t)
	var mu sync.Mutex // guards all below
	var g sync.WaitGroup
	points, nested, afters, failed := 0, 0, 0, error(nil)
	for range 2 { // as many as there are cores where it has to be quick
		own := rand.New(rand.NewPCG(rng.Uint64(), 1))
		g.Go(func() {
			for {
				c := newCrasher(t, own)
				if scale.Brief() {
					c.every *= 4
				}
				err := c.lives(own)
				mu.Lock()
				points, nested, afters = points+c.points, nested+c.nested, afters+c.afters
				failed = errors.Join(failed, err)
				done := points >= want || failed != nil
				mu.Unlock()
				if done {
					return
				}
			}
		})
	}
	g.Wait()
	if failed != nil {
		t.Fatal(failed)
	}
	t.Logf("%d of them crashed again inside recovery, after %d more was written", nested, afters)
	scale.CountedFew(t, "journal-crash-points", points, 20000)
}

// lives opens and writes three times.
func (c *crasher) lives(rng *rand.Rand) error {
	c.w.onWrite(c.crash)
	for life := range 3 {
		if err := c.live(life, rng); err != nil {
			return err
		}
	}
	return nil
}

// live opens the journal, writes, and closes it.
func (c *crasher) live(life int, rng *rand.Rand) error {
	j := start(c.t, "j", c.o)
	var parent Position
	s := c.state
	if life == 2 && rng.IntN(2) == 0 {
		for _, m := range c.moments {
			if c.pins[m.at] {
				parent, s = m.at, m.state
			}
		}
	}
	w, err := c.begin(j, parent, s)
	if err == nil {
		err = c.load(j, w, 3, 12, rng.Uint64())
	}
	if err == nil {
		err = c.maintainOnce(j, rng.IntN(len(ladders)))
	}
	c.mu.Lock()
	err = errors.Join(err, c.failed)
	c.mu.Unlock()
	if err = errors.Join(err, j.end()); err != nil {
		return err
	}
	return c.allAnswered()
}

// allAnswered is what a clean close means.
func (c *crasher) allAnswered() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answered, c.durable = len(c.moments), len(c.moments)
	return c.failed
}
