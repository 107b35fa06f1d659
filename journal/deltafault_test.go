package journal

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/novacron/afterimage/testbed/scale"
)

// deltaFolding is a source whose first history is folded, and a follower that has
// nothing, on a disk of its own.
func deltaFolding(t *testing.T, plant faults) (*folding, *follower, *world) {
	t.Helper()
	f, _ := faultFolding(t, plant)
	f.put(0, 1, 64<<10)
	f.put(4096, 2, 8192)
	f.put(8192+512, 3, 1024)
	if err := f.age(); err != nil {
		t.Fatal(err)
	}
	w := newWorld(vfs.NewCrashableMem())
	return f, newFollower(f, "p", w.fs), w
}

// A delta carries the newest version of every sector.
func deltaShowsNewest(t *testing.T, plant faults) error {
	f, p, _ := deltaFolding(t, plant)
	defer func() { p.to.close(); f.j.close() }()
	if err := p.follow(); err != nil {
		return err
	}
	if p.lands == 0 {
		return errors.New("no delta was needed")
	}
	return p.check()
}

// A delta of which a byte is not as it was sent is refused.
func deltaIsVerified(t *testing.T, plant faults) error {
	f, p, _ := deltaFolding(t, plant)
	defer func() { p.to.close(); f.j.close() }()
	d, err := f.j.OpenDelta(soon(t), Position{}, false)
	if err != nil {
		return err
	}
	defer d.Close()
	l, err := p.to.OpenLanding(soon(t), Position{}, nil)
	if err != nil {
		return err
	}
	defer l.Close()
	var b bytes.Buffer
	if err := d.Write(soon(t), &b, l.Place()); err != nil {
		return err
	}
	b.Bytes()[pageBytes+100] ^= 1 // of the first cell
	var damage *DamageError
	if _, err := l.Take(soon(t), &b, d.To()); !errors.As(err, &damage) {
		return fmt.Errorf("a flipped bit: %v", err)
	}
	return nil
}

// Once it has landed a delta outlives the loss of power.
func deltaOutlivesCrash(t *testing.T, plant faults) error {
	f, p, w := deltaFolding(t, plant)
	defer func() { f.j.close() }()
	if err := p.land(soon(t), false); err != nil {
		return err
	}
	at := p.to.Head().Durable
	clone := w.mem.CrashClone(vfs.CrashCloneCfg{RNG: crashRand()})
	p.to.close()
	o := p.o
	o.FS = clone
	j, err := Open("p", o)
	if err != nil {
		return err
	}
	defer func() { _ = j.Close() }()
	if j.Head().Durable != at {
		return fmt.Errorf("it ended at %v, then at %v", at, j.Head().Durable)
	}
	return f.checkImage(j, at.Position)
}

// What a follower saw where its history left the source's is there when it goes on
// from there, whatever it had beyond.
func deltaKeepsFork(t *testing.T, plant faults) error {
	f, _ := faultFolding(t, plant)
	p := newFollower(f, "p", vfs.NewMem())
	defer func() { p.to.close(); f.j.close() }()
	fork := f.put(0, 1, 8192)
	f.put(0, 2, 8192) // and never again
	if err := errors.Join(f.w.WaitDurable(soon(t)), p.follow()); err != nil {
		return err
	}
	if _, err := p.to.Maintain(soon(t), Maintenance{Retention: f.r}); err != nil {
		return err
	}
	f.fork(fork)
	for k := range 4 {
		f.put(16384, byte(10+k), 4096)
		if err := f.age(); err != nil {
			return err
		}
	}
	if err := p.follow(); err != nil {
		return err
	}
	if p.lands == 0 {
		return errors.New("no delta was needed")
	}
	return p.check()
}

// deltaCrasher crashes a follower at every operation of a landing, and opens what
// each crash leaves: it is as it was before or as it is behind the delta, reads what
// it lists right, and follows on.
type deltaCrasher struct {
	*follower
	before Cursor
	after  Cursor
	ops    [2]int // that left it before, behind
}

func (c *deltaCrasher) check(mem *vfs.MemFS) error {
	w := newWorld(mem)
	p := *c.follower
	p.o.FS, p.o.Create = w.fs, nil
	j, err := Open(p.name, p.o)
	if err != nil {
		return err
	}
	at := j.Head().Durable
	behind := 0
	switch at {
	case c.before:
	case c.after:
		behind = 1
	default:
		err = fmt.Errorf("it ends at %v, neither %v nor %v", at, c.before, c.after)
	}
	c.ops[behind]++
	spans, serr := j.Spans(soon(c.t))
	for _, s := range spans {
		err = errors.Join(err, c.checkImage(j, s.First), c.checkImage(j, s.Last))
	}
	if err = errors.Join(err, serr, j.Close()); err != nil {
		return err
	}
	if (c.ops[0]+c.ops[1])%5 != 0 {
		return nil
	}
	p.to = start(c.t, p.name, p.o)
	defer func() { p.to.close() }()
	if err := p.follow(); err != nil {
		return fmt.Errorf("going on: %w", err)
	}
	if err := (&p).check(); err != nil {
		return fmt.Errorf("gone on: %w", err)
	}
	return onlyWhatIsNeeded(p.to.Journal, w.fs)
}

func TestLandingCrashesEverywhere(t *testing.T) {
	total := 0
	for _, away := range []bool{false, true} {
		f, p, w := deltaFolding(t, faults{})
		if away { // it has history of its own
			if err := p.follow(); err != nil {
				t.Fatal(err)
			}
			for k := range 3 {
				f.put(int64(k)*4096, byte(100+k), 8192)
			}
			if err := f.age(); err != nil {
				t.Fatal(err)
			}
		}
		f.put(0, 200, 4096) // frames that follow the delta
		if err := f.w.WaitDurable(soon(t)); err != nil {
			t.Fatal(err)
		}
		at, err := p.common()
		if err != nil {
			t.Fatal(err)
		}
		d, err := f.j.OpenDelta(soon(t), at, false)
		if err != nil {
			t.Fatal(err)
		}
		c := &deltaCrasher{follower: p, before: p.to.Head().Durable, after: d.To().Cursor}
		d.Close()
		var mu sync.Mutex // guards clones and ops
		var clones []*vfs.MemFS
		percent, ops := []int{0, 50, 100}, 0
		w.onWrite(func(op errorfs.Op) error {
			mu.Lock()
			defer mu.Unlock()
			if ops++; !inIndex(op) || ops%2 == 0 {
				clones = append(clones, w.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent[len(clones)%3], RNG: crashRand()}))
			}
			return nil
		})
		if err := p.land(soon(t), false); err != nil {
			t.Fatal(err)
		}
		w.onWrite(nil)
		mu.Lock() // one that is under way still
		clones = append(clones, w.mem.CrashClone(vfs.CrashCloneCfg{RNG: crashRand()}))
		left := clones
		mu.Unlock()
		for i, mem := range left {
			if err := c.check(mem); err != nil {
				t.Fatalf("away %v, crash %d of %d: %v", away, i, len(left), err)
			}
		}
		t.Logf("away %v: %d crashes left it as it was, %d behind the delta", away, c.ops[0], c.ops[1])
		if c.ops[0] == 0 || c.ops[1] == 0 {
			t.Error("one of the two never came")
		}
		total += len(left)
		p.to.close()
		f.j.close()
	}
	scale.Counted(t, "journal-landing-crashes", total, 12)
}

// A follower without the key takes a delta of a sealed group, folds it on, and reads
// nothing; given the key it reads all.
func TestDeltaOfEveryForm(t *testing.T) {
	for _, form := range forms {
		t.Run(form.name, func(t *testing.T) {
			f, _ := faultFolding(t, faults{})
			f.j.close()
			ring := ringOf(t, "acme-1")
			if f.o.Compress = form.compress; form.sealed {
				f.o.Keys = ring
			}
			f.open()
			for k := range 4 {
				f.put(int64(k)*4096, byte(k+1), 64<<10)
			}
			f.put(4096+512, 9, 2048)
			if err := f.age(); err != nil {
				t.Fatal(err)
			}
			p := newFollower(f, "p", vfs.NewMem())
			if err := p.follow(); err != nil {
				t.Fatal(err)
			}
			f.put(8192, 77, 4096)
			if err := errors.Join(f.w.WaitDurable(soon(t)), p.follow()); err != nil {
				t.Fatal(err)
			}
			if form.sealed {
				var no *KeyError
				if err := p.check(); !errors.As(err, &no) || !errors.Is(err, ErrNoKey) {
					t.Errorf("without the key: %v", err)
				}
			}
			p.to.close()
			p.o.Keys = ring
			p.to = start(t, p.name, p.o)
			if err := p.check(); err != nil {
				t.Error(err)
			}
			p.to.close()
			f.j.close()
		})
	}
}
