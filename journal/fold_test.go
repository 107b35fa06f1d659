package journal

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/testbed/scale"
)

// folding is a journal that writes under a clock of its own, and what it must hold.
type folding struct {
	t     *testing.T
	rng   *rand.Rand
	clock *clock
	o     Options
	r     Retention
	j     *running
	w     *Writer
	model oracle
	vols  []cbt.Volume
	times map[Seq]time.Time
	epoch map[Seq]EpochID
	all   []Candidate // every point there ever was
}

func newFolding(t *testing.T, fs vfs.FS, r Retention) *folding {
	return newFoldingOf(t, fs, r, faults{}, 3<<20, 1<<20+512)
}

// newFoldingOf has two volumes of the sizes a and b.
func newFoldingOf(t *testing.T, fs vfs.FS, r Retention, plant faults, a, b int64) *folding {
	f := &folding{t: t, rng: newSeed(t), clock: &clock{now: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)}, r: r,
		times: make(map[Seq]time.Time), epoch: make(map[Seq]EpochID)}
	f.vols = []cbt.Volume{volume("a", a), volume("b", b)}
	f.model.sizes = map[cbt.VolumeID]int64{f.vols[0].ID: f.vols[0].Size, f.vols[1].ID: f.vols[1].Size}
	f.o = Options{FS: fs, Create: newIdentity(), SegmentBytes: 128 << 10, Now: f.clock.Now, faults: plant}
	f.open()
	return f
}

// open opens the journal and begins an epoch with all volumes synced.
func (f *folding) open() {
	f.t.Helper()
	f.j = start(f.t, "j", f.o)
	f.w = beginWith(f.t, f.j.Journal, f.vols...)
	f.note()
}

// note takes down what points there are since the last call.
func (f *folding) note() {
	f.t.Helper()
	j := f.j.Journal
	l, err := j.settled(soon(f.t))
	if err != nil {
		f.t.Fatal(err)
	}
	spans, err := j.allSpans(l)
	if err != nil {
		f.t.Fatal(err)
	}
	from := Seq(0)
	if n := len(f.all); n > 0 {
		from = f.all[n-1].Seq
	}
	for _, s := range spans {
		for q := max(s.First.Seq, from+1); q <= s.Last.Seq; q++ {
			i, _ := l.Owner(q)
			p := Position{i.Epoch, q}
			at, err := j.timeAt(soon(f.t), p)
			if err != nil {
				f.t.Fatal(err)
			}
			f.all = append(f.all, Candidate{Point: Point{Position: p, Number: i.Number, Time: at}})
		}
	}
}

// write records n writes, some seconds from one to the next.
func (f *folding) write(n int, apart time.Duration) {
	f.t.Helper()
	for range n {
		f.model.write(f.t, f.w, f.rng, f.vols[f.rng.IntN(2)].ID)
		f.clock.step(time.Duration(f.rng.Int64N(int64(2*apart) + 1)))
	}
	if err := f.w.WaitDurable(soon(f.t)); err != nil {
		f.t.Fatal(err)
	}
	f.note()
}

func (f *folding) maintain() Maintained {
	f.t.Helper()
	got, err := f.j.Maintain(soon(f.t), Maintenance{Retention: f.r, FoldBytes: 1})
	if err != nil {
		f.t.Fatal(err)
	}
	return got
}

// checkImages compares every point that must be there with the model, and finds
// those that must be gone gone. It reads at most n of the points.
func (f *folding) checkImages(j *Journal, n int) error {
	kept := make(map[Position]bool)
	past := j.history()
	for _, k := range past.kept {
		kept[Position{j.branches[k.Ordinal-1].ID, k.Seq}] = true
	}
	picked := f.all
	for len(picked) > n {
		k := f.rng.IntN(len(picked) - n + 1)
		picked = picked[k:]
		break
	}
	for i, c := range picked {
		if i >= n {
			break
		}
		folded := past.folded(j.orderOf(c.Position))
		if folded && !kept[c.Position] {
			if _, err := j.View(soon(f.t), c.Point); !errors.Is(err, ErrReclaimed) {
				return fmt.Errorf("record %d is gone and opens: %v", c.Seq, err)
			}
			continue
		}
		if err := f.checkImage(j, c.Position); err != nil {
			return err
		}
	}
	for p := range kept {
		if err := f.checkImage(j, p); err != nil {
			return err
		}
	}
	return nil
}

func (f *folding) checkImage(j *Journal, p Position) error {
	v, err := j.View(soon(f.t), Point{Position: p})
	if err != nil {
		return err
	}
	for _, vol := range v.Volumes() {
		got, want := make([]byte, vol.Size), f.model.image(vol.ID, p.Seq)
		if err := v.ReadAt(soon(f.t), vol.ID, got, 0); err != nil {
			return fmt.Errorf("at record %d: %w", p.Seq, err)
		}
		if !bytes.Equal(got, want) {
			k := 0
			for got[k] == want[k] {
				k++
			}
			return fmt.Errorf("volume %s at record %d differs at %d", vol.Name, p.Seq, k)
		}
	}
	return v.Close()
}

// checkKept compares the points that are kept with what the policy names.
func (f *folding) checkKept(refs ...Reference) error {
	j := f.j.Journal
	want := make(map[Position]bool)
	for _, k := range Choose(f.all, f.r, refs, f.clock.Now()) {
		want[k.Position] = true
	}
	past := j.history()
	n := 0
	for _, c := range f.all {
		o := j.orderOf(c.Position)
		if !past.folded(o) {
			continue
		}
		n++
		if _, kept := past.keeps(o); kept != want[c.Position] {
			return fmt.Errorf("record %d of %v is kept: %v, the policy says %v", c.Seq, c.Time, kept, want[c.Position])
		}
	}
	f.t.Logf("%d records folded, %d points of them kept", n, len(past.kept))
	return nil
}

func (f *folding) reopen(withoutIndex bool) {
	f.t.Helper()
	f.j.close()
	if withoutIndex {
		if err := f.o.FS.RemoveAll("j/index"); err != nil && !os.IsNotExist(err) {
			f.t.Fatal(err)
		}
	}
	f.open()
}

// What is folded reads as before at every point that the policy keeps, whatever is
// merged and however often the journal and its index are opened anew.
func TestFoldKeepsImages(t *testing.T) {
	t.Parallel()
	r := Retention{Ladder: []Rung{{0, 2 * time.Minute}, {20 * time.Second, 20 * time.Minute}, {2 * time.Minute, time.Hour}}}
	f := newFoldingOf(t, vfs.NewMem(), r, faults{}, 768<<10, 256<<10+512)
	images, rounds := 20, 14
	if scale.Race {
		images, rounds = 5, 6
	}
	var total Maintained
	for round := range rounds {
		f.write(40, 3*time.Second)
		got := f.maintain()
		total.Folded, total.Merged, total.Freed = total.Folded+got.Folded, total.Merged+got.Merged, total.Freed+got.Freed
		if err := f.checkKept(); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if err := f.checkImages(f.j.Journal, images); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if found, err := f.j.Verify(soon(t), nil); err != nil || len(found) > 0 {
			t.Fatalf("round %d: verify: %v, %v", round, found, err)
		}
		switch round % 3 {
		case 0:
			f.reopen(false)
		case 1:
			f.reopen(true)
		}
		if err := f.checkImages(f.j.Journal, images); err != nil {
			t.Fatalf("round %d, opened anew: %v", round, err)
		}
	}
	t.Logf("%+v", total)
	if total.Folded == 0 || total.Merged == 0 && !scale.Race || total.Freed == 0 {
		t.Errorf("nothing was done: %+v", total)
	}
	f.j.close()
}
