package journal

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// shortLadder keeps every write for a minute and one point an hour behind it.
var shortLadder = Retention{Ladder: []Rung{{0, time.Minute}, {time.Hour, 0}}}

// put writes n bytes of b to the first volume and takes that into the model.
func (f *folding) put(off int64, b byte, n int) Position {
	f.t.Helper()
	return f.putBytes(off, bytes.Repeat([]byte{b}, n))
}

func (f *folding) putBytes(off int64, data []byte) Position {
	f.t.Helper()
	s := put(f.t, f.w, f.vols[0], off, data)
	f.model.log = append(f.model.log, oracleWrite{s, f.vols[0].ID, off, data, int64(len(data))})
	f.clock.step(time.Second)
	return Position{f.w.epoch.ID, s}
}

// age makes all that was written so far old enough to be folded, and folds it.
func (f *folding) age() error {
	f.t.Helper()
	if err := f.settle(); err != nil {
		return err
	}
	_, err := f.j.Maintain(soon(f.t), Maintenance{Retention: f.r, FoldBytes: 1})
	return err
}

func (f *folding) settle() error {
	for range 12 { // more segments
		data := make([]byte, 64<<10) // that nothing packs
		for at := 0; at < len(data); at += 8 {
			binary.LittleEndian.PutUint64(data[at:], f.rng.Uint64())
		}
		f.putBytes(f.vols[0].Size-64<<10, data)
	}
	return f.rest()
}

// rest waits until all that was written is old, durable and indexed.
func (f *folding) rest() error {
	f.clock.step(2 * time.Minute)
	return errors.Join(f.w.WaitDurable(soon(f.t)), f.j.waitFor(soon(f.t), func() bool { return f.j.indexed >= f.j.written }))
}

func faultFolding(t *testing.T, plant faults) (*folding, *world) {
	w := newWorld(vfs.NewCrashableMem())
	return newFoldingOf(t, w.fs, shortLadder, plant, 512<<10, 64<<10), w
}

// Retention keeps a pinned point, and what it shows.
func pinIsKept(t *testing.T, plant faults) error {
	f, _ := faultFolding(t, plant)
	defer func() { f.j.close() }()
	f.put(0, 1, 8192)
	at := f.put(4096, 2, 4096)
	if _, err := f.j.Pin(soon(t), "x", Point{Position: at}, false); err != nil {
		return err
	}
	f.put(0, 3, 8192)
	if err := f.age(); err != nil {
		return err
	}
	if !f.j.history().folded(f.j.orderOf(at)) {
		return errors.New("nothing was folded")
	}
	return f.checkImage(f.j.Journal, at)
}

// An open view reads on through a fold of what it shows.
func viewIsKept(t *testing.T, plant faults) error {
	f, _ := faultFolding(t, plant)
	defer func() { f.j.close() }()
	f.put(0, 1, 8192)
	at := f.put(4096, 2, 4096)
	v, err := f.j.View(soon(t), Point{Position: at})
	if err != nil {
		return err
	}
	defer func() { _ = v.Close() }()
	f.put(0, 3, 8192)
	if err := f.age(); err != nil {
		return err
	}
	got := make([]byte, f.vols[0].Size)
	if err := v.ReadAt(soon(t), f.vols[0].ID, got, 0); err != nil {
		return err
	}
	if !bytes.Equal(got, f.model.image(f.vols[0].ID, at.Seq)) {
		return errors.New("the view shows something else after the fold")
	}
	return nil
}

// What was written just behind a point is no part of it.
func runHoldsPoints(t *testing.T, plant faults) error {
	f, _ := faultFolding(t, plant)
	defer func() { f.j.close() }()
	at := f.put(0, 1, 8192)
	if _, err := f.j.Pin(soon(t), "x", Point{Position: at}, false); err != nil {
		return err
	}
	f.put(0, 2, 8192)
	if err := f.age(); err != nil {
		return err
	}
	return f.checkImage(f.j.Journal, at)
}

// The first frame that is left chains on to the last that was folded.
func chainGoesOn(t *testing.T, plant faults) error {
	f, w := faultFolding(t, plant)
	f.put(0, 1, 8192)
	if err := f.age(); err != nil {
		return err
	}
	var s runState
	if _, err := f.j.Recall(runStateKey, &s); err != nil || len(s.Runs) == 0 {
		return fmt.Errorf("nothing was folded: %w", err)
	}
	s.End.Chain[0] ^= 1 // as if another history had been folded
	s.Runs[len(s.Runs)-1].Out = s.End.Chain
	for i := range s.Recent {
		s.Recent[i].Chain[0] ^= 1
	}
	if err := f.j.Remember(runStateKey, s); err != nil {
		return err
	}
	f.j.close()
	o := f.o
	o.FS = w.fs
	j, err := Open("j", o)
	var d *DamageError
	if err == nil {
		return errors.Join(errors.New("it opens behind another history"), j.Close())
	}
	if !errors.As(err, &d) {
		return err
	}
	return nil
}

// An index that is built from runs knows the epochs that they hold.
func rebuildKnowsEpochs(t *testing.T, plant faults) error {
	f, w := faultFolding(t, plant)
	for b := range byte(3) {
		at := f.put(int64(b)*4096, b+1, 8192)
		if _, err := f.j.Pin(soon(t), fmt.Sprint("pin ", b), Point{Position: at}, false); err != nil {
			return err
		}
		if b < 2 {
			f.j.close()
			f.open()
		}
	}
	if err := f.age(); err != nil {
		return err
	}
	at := f.j.history().kept
	var kept []Position
	for _, k := range at {
		kept = append(kept, Position{f.j.branches[k.Ordinal-1].ID, k.Seq})
	}
	if len(kept) == 0 {
		return errors.New("nothing was folded")
	}
	f.j.close()
	if err := f.o.FS.RemoveAll("j/index"); err != nil {
		return err
	}
	o := f.o
	o.FS = w.fs
	j, err := Open("j", o)
	if err != nil {
		return err
	}
	for _, p := range kept {
		err = errors.Join(err, f.checkImage(j, p))
	}
	if n := len(j.Branches()); n != 3 {
		err = errors.Join(err, fmt.Errorf("%d epochs are held, want 3", n))
	}
	return errors.Join(err, j.Close())
}

// What is counted as used is never less than what a loss of power would leave.
func quotaCountsWhatIsThere(t *testing.T, plant faults) error {
	f, w := faultFolding(t, plant)
	defer func() { f.j.close() }()
	if err := f.settle(); err != nil {
		return err
	}
	frames := make(map[uint64]int64)
	ns, err := f.j.segmentList()
	if err != nil {
		return err
	}
	for _, n := range ns {
		for at := int64(pageBytes); ; {
			h, _, err := f.j.segs.frameAt(n, at)
			if err != nil {
				break
			}
			at, frames[n] = at+h.Bytes, frames[n]+h.Bytes
		}
	}
	var mu sync.Mutex
	var less error
	w.onWrite(func(op errorfs.Op) error {
		if inIndex(op) || !mu.TryLock() {
			return nil
		}
		defer mu.Unlock()
		used := f.j.Usage().Used
		clone := w.mem.CrashClone(vfs.CrashCloneCfg{})
		names, err := clone.List("j/segments")
		var there int64
		for _, name := range names {
			if n, ok := parseSegmentName(name); ok {
				there += frames[n]
			}
		}
		if err == nil && used < there {
			less = fmt.Errorf("%d bytes are counted, %d are there", used, there)
		}
		return nil
	})
	_, err = f.j.Maintain(soon(t), Maintenance{Retention: f.r, FoldBytes: 1})
	w.onWrite(nil)
	mu.Lock()
	defer mu.Unlock()
	return errors.Join(err, less)
}

// A sector that was written in a cell leaves the rest of the cell as it was.
func sectorsAreApart(t *testing.T, plant faults) error {
	f, _ := faultFolding(t, plant)
	defer func() { f.j.close() }()
	f.put(0, 1, 8192)
	at := f.put(4096+512, 2, 512)
	if _, err := f.j.Pin(soon(t), "x", Point{Position: at}, false); err != nil {
		return err
	}
	if err := f.age(); err != nil {
		return err
	}
	return f.checkImage(f.j.Journal, at)
}

// Reclaim under load, with a view open, a cursor behind and a pin inside: all three
// keep what they need, and once they are gone it is given back.
func TestReclaimUnderLoad(t *testing.T) {
	f := newFoldingOf(t, vfs.NewMem(), shortLadder, faults{}, 1<<20, 64<<10)
	defer func() { f.j.close() }()
	f.write(30, time.Second)
	at := f.put(8192, 7, 4096)
	f.note()
	view, err := f.j.View(soon(t), Point{Position: at})
	if err != nil {
		t.Fatal(err)
	}
	pinned := f.put(12288, 8, 4096)
	if _, err := f.j.Pin(soon(t), "before the change", Point{Position: pinned}, false); err != nil {
		t.Fatal(err)
	}
	f.write(60, time.Second)
	cursor := f.all[len(f.all)-1].Position
	hold := Reference{Kind: ReferenceCursor, Name: "b", At: cursor, Until: f.clock.Now().Add(24 * time.Hour)}
	ctx, stop := context.WithCancel(soon(t))
	var maintaining sync.WaitGroup
	var folded, freed atomic.Int64
	maintaining.Go(func() {
		for ctx.Err() == nil {
			got, err := f.j.Maintain(ctx, Maintenance{Retention: f.r, References: []Reference{hold}, FoldBytes: 1})
			if err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, ErrBusy) {
				t.Error(err)
			}
			folded.Add(got.Folded)
			freed.Add(got.Freed)
			select {
			case <-ctx.Done():
			case <-time.After(5 * time.Millisecond):
			}
		}
	})
	want := f.model.image(f.vols[0].ID, at.Seq)
	for range 12 {
		f.write(20, 10*time.Second)
		f.clock.step(time.Minute)
		got := make([]byte, f.vols[0].Size)
		if err := view.ReadAt(soon(t), f.vols[0].ID, got, 0); err != nil {
			t.Fatalf("open view: %v", err)
		}
		if !bytes.Equal(got, want) {
			t.Fatal("the open view changed")
		}
		if err := f.checkImage(f.j.Journal, pinned); err != nil {
			t.Fatalf("pinned point: %v", err)
		}
	}
	until(t, func() bool { return folded.Load() > 0 && freed.Load() > 0 })
	stop()
	maintaining.Wait()
	// The cursor's frames are all there, and go on from it.
	st, err := f.j.Stream(soon(t), cursor)
	if err != nil {
		t.Fatal(err)
	}
	for next := cursor.Seq; next < f.j.Head().Durable.Seq; {
		fr, err := st.Next(soon(t))
		if err != nil {
			t.Fatalf("frames behind the cursor: %v", err)
		}
		if fr.First.Seq > next+1 {
			t.Fatalf("a frame begins with record %d after %d", fr.First.Seq, next)
		}
		next = fr.Last.Seq
	}
	if _, err := f.j.Pins(); err != nil {
		t.Fatal(err)
	}
	if p, err := resolve(t, f.j.Journal, "#"+at.Seq.String()); err != nil || p.Position != at {
		t.Errorf("the viewed point resolves to %v, %v", p, err)
	}
	if err := errors.Join(view.Close(), f.j.Unpin("before the change")); err != nil {
		t.Fatal(err)
	}
	f.clock.step(48 * time.Hour)
	f.maintain()
	if err := f.checkKept(); err != nil {
		t.Error(err)
	}
	if st, err = f.j.Stream(soon(t), cursor); err == nil {
		_, err = st.Next(soon(t))
	}
	if !errors.Is(err, ErrReclaimed) {
		t.Errorf("frames behind a cursor past its hold: %v", err)
	}
	if err := f.checkImages(f.j.Journal, 50); err != nil {
		t.Error(err)
	}
}

// A week under a ladder keeps exactly the points that the policy names.
func TestWeekUnderALadder(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	r := Retention{Ladder: []Rung{{0, 3 * time.Hour}, {30 * time.Minute, day}, {4 * time.Hour, 3 * day}, {day, 0}}}
	f := newFoldingOf(t, vfs.NewMem(), r, faults{}, 256<<10, 64<<10)
	defer func() { f.j.close() }()
	pins := []Reference{}
	for end := f.clock.Now().Add(7 * day); f.clock.Now().Before(end); {
		f.write(30, 8*time.Minute)
		if len(pins) < 3 && f.rng.IntN(3) == 0 {
			c := f.all[len(f.all)-1-f.rng.IntN(10)]
			name := fmt.Sprint("pin ", len(pins))
			if _, err := f.j.Pin(soon(t), name, c.Point, false); err != nil {
				t.Fatal(err)
			}
			pins = append(pins, Reference{Kind: ReferencePin, Name: name, At: c.Position})
		}
		f.maintain()
		if err := f.checkKept(pins...); err != nil {
			t.Fatal(err)
		}
		if f.rng.IntN(8) == 0 {
			f.reopen(f.rng.IntN(2) == 0)
		}
	}
	ks, err := f.j.Points(soon(t), time.Time{}, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range ks {
		if len(k.Reasons) == 0 {
			t.Errorf("point %s of %v is listed without a reason", k.Point, k.Time)
		}
		if err := f.checkImage(f.j.Journal, k.Position); err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d records in a week, %d points listed", len(f.all), len(ks))
	back, err := resolve(t, f.j.Journal, "-100h")
	if no := (*NoPointError)(nil); errors.As(err, &no) && no.Before != nil { // the journal was opened just then
		back, err = *no.Before, nil
	}
	if err != nil || f.clock.Now().Sub(back.Time) < 100*time.Hour {
		t.Errorf("-100h is %v of %v: %v", back, back.Time, err)
	}
}
