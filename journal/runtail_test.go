package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/novacron/afterimage/cbt"
)

// tailless is a closed journal with a folded history, and another site's of the same.
type tailless struct {
	o     Options
	v     cbt.Volume
	head  Position
	image []byte
	kept  []runPoint
	files map[string][]byte
	peer  *running
}

func newTailless(t testing.TB) *tailless {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	o, v, files := twins(t, rand.New(rand.NewPCG(seed, 5)), nil)
	c := &tailless{o: o, v: v}
	there := o
	there.FS = plant(t, files)
	c.peer = start(t, "j", there)
	t.Cleanup(c.peer.close)
	c.o.FS = plant(t, files)
	j := start(t, "j", c.o)
	c.head = j.Head().Position
	j.fold(t)
	c.kept = j.history().kept
	var err error
	c.image, err = readAs(t, j.Journal, c.head, v)
	must(t, err)
	j.close()
	c.files = filesUnder(t, c.o.FS, "j")
	if len(c.kept) == 0 {
		t.Fatal("no point is kept")
	}
	return c
}

// tailCases are ways to lose a run's tail, or the run.
var tailCases = []struct {
	name string
	gone bool // all of the run
	do   func(b []byte, f runPage) []byte
}{
	{"footer zeroed", false, func(b []byte, f runPage) []byte { clear(b[len(b)-pageBytes:]); return b }},
	{"directory flipped", false, func(b []byte, f runPage) []byte { b[f.Body] ^= 1; return b }},
	{"points flipped", false, func(b []byte, f runPage) []byte { b[f.Body+f.Blocks*directoryBytes+4] ^= 1; return b }},
	{"leaves flipped", false, func(b []byte, f runPage) []byte { b[f.Body+f.tailBytes()-1] ^= 1; return b }},
	{"padding set", false, func(b []byte, f runPage) []byte { b[len(b)-pageBytes-1] ^= 1; return b }},
	{"tail cut off", false, func(b []byte, f runPage) []byte { return b[:f.Body] }},
	{"file missing", true, nil},
}

// Promise 6: a run whose tail is damaged, or whose file is gone, does not keep the
// journal from opening. What does not lie there reads as before, the run is named by
// reads, points and scrubs, and a repair brings the very same file back: alone where
// only the tail is damaged, from a peer's stored bytes where all of it is gone.
func TestRunWithoutTail(t *testing.T) {
	c := newTailless(t)
	name := slices.Sorted(maps.Keys(filesUnder(t, c.o.FS, "j/runs")))[0]
	for _, k := range tailCases {
		t.Run(k.name, func(t *testing.T) {
			o := c.o
			o.FS = plant(t, c.files)
			damageRun(t, o.FS, name, k.do)
			j := start(t, "j", o)
			defer j.close()
			if !slices.Equal(j.history().kept, c.kept) {
				t.Fatalf("%d points are kept, there were %d", len(j.history().kept), len(c.kept))
			}
			checkTailless(t, j.Journal, c, name, k.gone)
			if ds := j.Damages(); len(ds) != 1 || "j/runs/"+ds[0].File != name {
				t.Fatalf("remembered is %v", ds)
			}
			p, err := j.Resolve(soon(t), mustAt(t, "latest"))
			if err != nil || (p.Invalid != "") != k.gone {
				t.Fatalf("the newest point is invalid: %q, %v", p.Invalid, err)
			}
			found, err := j.Verify(soon(t), nil)
			if err != nil || len(found) == 0 || "j/runs/"+found[0].File != name {
				t.Fatalf("verify found %v, %v", found, err)
			}
			if r, err := j.Repair(soon(t), nil, nil); err != nil || (len(r.Left) > 0) != k.gone {
				t.Fatalf("repaired alone: %+v, %v", r, err)
			}
			if k.gone {
				frames := func(context.Context, Position) ([]byte, error) { return nil, ErrReclaimed }
				if r, err := j.Repair(soon(t), frames, c.peer.StoredCells); err != nil || len(r.Left) > 0 {
					t.Fatalf("repaired from a peer: %+v, refused %v, %v", r, r.Refused, err)
				}
			}
			if !bytes.Equal(contentOf(t, o.FS, name), c.files[name]) {
				t.Fatal("the run is another one")
			}
			if found, err := j.Verify(soon(t), nil); err != nil || len(found) > 0 {
				t.Fatalf("after the repair %v, %v", found, err)
			}
			checkTailless(t, j.Journal, c, name, false)
		})
	}
}

func damageRun(t testing.TB, fs vfs.FS, name string, do func([]byte, runPage) []byte) {
	t.Helper()
	if do == nil {
		must(t, fs.Remove(name))
		return
	}
	b := contentOf(t, fs, name)
	f, err := decodeRunPage(b[len(b)-pageBytes:], runFooterMagic)
	must(t, err)
	replaceFile(t, fs, name, do(b, f))
}

// checkTailless reads the head cell by cell: right, or damage that names the run, and
// that only where all of it is gone.
func checkTailless(t testing.TB, j *Journal, c *tailless, name string, gone bool) {
	t.Helper()
	v, err := j.View(soon(t), Point{Position: c.head})
	must(t, err)
	b, damaged := make([]byte, 4096), 0
	for at := int64(0); at < c.v.Size; at += 4096 {
		err := v.ReadAt(soon(t), c.v.ID, b, at)
		var d *DamageError
		switch {
		case errors.As(err, &d) && gone && "j/runs/"+d.File == name:
			damaged++
		case err != nil:
			t.Fatalf("cell at %d: %v", at, err)
		case !bytes.Equal(b, c.image[at:at+4096]):
			t.Fatalf("cell at %d is another one", at)
		}
	}
	if gone && damaged == 0 {
		t.Fatal("the run is gone and nothing is damaged")
	}
	must(t, v.Close())
}

func mustAt(t testing.TB, s string) At {
	t.Helper()
	a, err := ParseAt(s)
	must(t, err)
	return a
}

// An index that would have to be built anew without a run is refused, and stays.
func TestIndexStaysForLostRun(t *testing.T) {
	c := newTailless(t)
	name := slices.Sorted(maps.Keys(filesUnder(t, c.o.FS, "j/runs")))[0]
	o := c.o
	o.FS = plant(t, c.files)
	must(t, o.FS.Remove(name))
	mark, err := o.FS.Create("j/"+staleIndexName, vfs.WriteCategoryUnspecified)
	must(t, err)
	must(t, mark.Close())
	for _, accept := range []bool{false, true} { // it is the first run: nothing is left to accept
		o.AcceptLoss = accept
		if j, err := Open("j", o); !errors.Is(err, ErrRunLost) || !IsLoss(err) {
			t.Fatalf("opened %v, %v", j != nil, err)
		}
	}
	must(t, o.FS.Remove("j/"+staleIndexName))
	o.AcceptLoss = false
	j := start(t, "j", o)
	defer j.close()
	checkTailless(t, j.Journal, c, name, true)
	if r, err := j.Repair(soon(t), nil, c.peer.StoredCells); err != nil || len(r.Left) > 0 {
		t.Fatalf("repaired from a peer: %+v, refused %v, %v", r, r.Refused, err)
	}
	checkTailless(t, j.Journal, c, name, false)
}

// A run that is lost together with the index is refused, and cut off when a person
// accepts the loss: what was before it reads as it did, what lay behind is kept aside,
// and the journal goes on.
func TestAcceptLossOfRun(t *testing.T) {
	for _, whole := range []bool{false, true} { // the file is gone, or its tail
		t.Run(fmt.Sprint(whole), func(t *testing.T) {
			f := newFoldingOf(t, vfs.NewMem(), Retention{Ladder: []Rung{{0, time.Second}, {time.Second, 0}}}, faults{}, 768<<10, 256<<10+512)
			for len(f.j.history().state.Runs) < 3 {
				f.write(40, 3*time.Second)
				f.clock.step(time.Minute)
				f.maintain()
			}
			s := f.j.history().state
			f.j.close()
			lost := "j/runs/" + runName(s.Runs[1].Run)
			if whole {
				must(t, f.o.FS.Remove(lost))
			} else {
				damageRun(t, f.o.FS, lost, tailCases[0].do)
			}
			must(t, f.o.FS.RemoveAll("j/index"))
			o := f.o
			if j, err := Open("j", o); !errors.Is(err, ErrRunLost) {
				t.Fatalf("opened %v, %v", j != nil, err)
			}
			o.AcceptLoss = true
			f.j = start(t, "j", o)
			if got := f.j.Head().Position; got != s.Runs[0].Last {
				t.Fatalf("the head is %s, the first run ends with %s", got, s.Runs[0].Last)
			}
			ls, err := f.j.Losses()
			if err != nil || len(ls) != 1 || len(ls[0].Kept) < 2 {
				t.Fatalf("the site log says %+v, %v", ls, err)
			}
			for _, name := range ls[0].Kept {
				if ok, err := exists(o.FS, "j/lost/"+name); err != nil || !ok {
					t.Errorf("%s is not kept: %v", name, err)
				}
			}
			f.all = slices.DeleteFunc(f.all, func(c Candidate) bool { return c.Seq > s.Runs[0].Last.Seq })
			f.model.log = slices.DeleteFunc(f.model.log, func(w oracleWrite) bool { return w.seq > s.Runs[0].Last.Seq })
			must(t, f.checkImages(f.j.Journal, 20))
			f.j.close()
			f.o.AcceptLoss = false
			for range 2 { // it is a journal as any other
				f.open()
				f.write(60, 3*time.Second)
				f.clock.step(time.Minute)
				f.maintain()
				must(t, f.checkImages(f.j.Journal, 20))
				if found, err := f.j.Verify(soon(t), nil); err != nil || len(found) > 0 {
					t.Fatalf("verify: %v, %v", found, err)
				}
				f.j.close()
			}
		})
	}
}
