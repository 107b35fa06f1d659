package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/testbed/scale"
)

// aged is a closed journal of several segments, and what it held.
type aged struct {
	fs    *vfs.MemFS
	o     Options
	v     cbt.Volume
	epoch EpochID
	seqs  []Seq // seqs[i] wrote i+1 over block i
	last  uint64
}

const agedWrites = 60

func newAged(t testing.TB) *aged {
	t.Helper()
	a := &aged{fs: vfs.NewMem(), v: volume("a", agedWrites*4096)}
	a.o = Options{FS: a.fs, Create: newIdentity(), SegmentBytes: 64 << 10}
	j := start(t, "j", a.o)
	w := beginWith(t, j.Journal, a.v)
	a.epoch = w.epoch.ID
	for i := range agedWrites {
		a.seqs = append(a.seqs, put(t, w, a.v, int64(i)*4096, bytes.Repeat([]byte{byte(i + 1)}, 4096)))
	}
	a.last = j.out.number
	j.close()
	if a.last < 4 {
		t.Fatalf("only %d segments", a.last)
	}
	return a
}

func (a *aged) path(n uint64) string { return "j/segments/" + segmentName(n) }

func (a *aged) forget(t testing.TB) {
	t.Helper()
	if err := errors.Join(a.fs.RemoveAll("j/index"), a.fs.Remove("j/"+siteLogName)); err != nil {
		t.Fatal(err)
	}
}

// content is segment n up to the last page that was written: a file from the pool
// goes on behind it.
func (a *aged) content(t testing.TB, n uint64) []byte {
	t.Helper()
	b := contentOf(t, a.fs, a.path(n))
	used := len(bytes.TrimRight(b, "\x00"))
	return b[:min(len(b), (used+pageBytes-1)&^(pageBytes-1))]
}

func contentOf(t testing.TB, fs vfs.FS, path string) []byte {
	t.Helper()
	f, err := fs.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, st.Size())
	if _, err := f.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return errClose(t, f, b)
}

func errClose(t testing.TB, f vfs.File, b []byte) []byte {
	t.Helper()
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return b
}

func (a *aged) replace(t testing.TB, n uint64, b []byte) {
	t.Helper()
	replaceFile(t, a.fs, a.path(n), b)
}

func replaceFile(t testing.TB, fs vfs.FS, path string, b []byte) {
	t.Helper()
	f, err := fs.Create(path, vfs.WriteCategoryUnspecified)
	if err == nil {
		_, err = f.Write(bytes.Clone(b)) // a checking build of MemFS spoils what it is given
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// readable counts the blocks of the head that read as written; others must be
// damage that names a volume.
func (a *aged) readable(t testing.TB) int {
	t.Helper()
	j := start(t, "j", a.o)
	defer j.close()
	v, err := j.View(soon(t), Point{Position: Position{a.epoch, a.seqs[agedWrites-1]}})
	if err != nil {
		t.Fatal(err)
	}
	n, b := 0, make([]byte, 4096)
	for i := range agedWrites {
		err := v.ReadAt(soon(t), a.v.ID, b, int64(i)*4096)
		var d *DamageError
		switch {
		case err == nil && bytes.Equal(b, bytes.Repeat([]byte{byte(i + 1)}, 4096)):
			n++
		case err == nil:
			t.Fatalf("block %d reads %d", i, b[0])
		case !errors.As(err, &d) || d.Volume != a.v.ID || d.Seq != a.seqs[i]:
			t.Fatalf("block %d: %v", i, err)
		}
	}
	found, err := j.Verify(soon(t), nil)
	if err != nil || len(found) == 0 {
		t.Fatalf("verify found %v, %v", found, err)
	}
	return n
}

// Promise 6: a sealed segment that is flipped, gone, cut, swapped or rolled back is
// found and named; what lies elsewhere stays readable. The newest one gone, cut or
// rolled back is a loss and said so at open.
func TestDamagedSegments(t *testing.T) {
	t.Parallel()
	half := func(b []byte) []byte { return b[:len(b)/2&^(pageBytes-1)] }
	for _, c := range []struct {
		name string
		do   func(*testing.T, *aged)
		open error // want at open
	}{
		{"flipped payload", func(t *testing.T, a *aged) { flip(t, a.fs, a.path(2), 3*pageBytes-7) }, nil},
		{"flipped header of a frame", func(t *testing.T, a *aged) { flip(t, a.fs, a.path(2), pageBytes+50) }, nil},
		{"flipped header of a segment", func(t *testing.T, a *aged) { flip(t, a.fs, a.path(2), 50) }, nil},
		{"missing", func(t *testing.T, a *aged) { must(t, a.fs.Remove(a.path(2))) }, nil},
		{"cut", func(t *testing.T, a *aged) { a.replace(t, 2, half(a.content(t, 2))) }, nil},
		{"zeroed", func(t *testing.T, a *aged) { a.replace(t, 2, make([]byte, len(a.content(t, 2)))) }, nil},
		{"swapped", func(t *testing.T, a *aged) {
			two, three := a.content(t, 2), a.content(t, 3)
			a.replace(t, 2, three)
			a.replace(t, 3, two)
		}, nil},
		{"doubled", func(t *testing.T, a *aged) { a.replace(t, 3, a.content(t, 2)) }, nil},
		{"newest missing", func(t *testing.T, a *aged) { must(t, a.fs.Remove(a.path(a.last))) }, ErrTailLost},
		{"newest cut inside a frame", func(t *testing.T, a *aged) {
			b := a.content(t, a.last)
			a.replace(t, a.last, b[:len(b)-pageBytes-100])
		}, ErrTailLost},
		{"newest cut between frames", func(t *testing.T, a *aged) { a.replace(t, a.last, half(a.content(t, a.last))) }, ErrRolledBack},
		{"newest zeroed", func(t *testing.T, a *aged) { a.replace(t, a.last, make([]byte, len(a.content(t, a.last)))) }, ErrTailLost},
		{"newest rolled back", func(t *testing.T, a *aged) {
			b := a.content(t, a.last)
			clear(b[len(b)-2*pageBytes:])
			a.replace(t, a.last, b)
		}, ErrRolledBack},
		{"newest rolled back, the index lost", func(t *testing.T, a *aged) {
			a.replace(t, a.last, half(a.content(t, a.last)))
			must(t, a.fs.RemoveAll("j/index"))
		}, ErrTailLost},
		{"site log rolled back", func(t *testing.T, a *aged) {
			b := contentOf(t, a.fs, "j/"+siteLogName)
			replaceFile(t, a.fs, "j/"+siteLogName, b[:siteEntryHead+int(binary.LittleEndian.Uint32(b))])
		}, ErrRolledBack},
		{"one missing, all else lost", func(t *testing.T, a *aged) {
			a.forget(t)
			must(t, a.fs.Remove(a.path(2)))
		}, ErrMissingSegment},
		{"one cut, all else lost", func(t *testing.T, a *aged) {
			a.forget(t)
			a.replace(t, 2, half(a.content(t, 2)))
		}, ErrTailLost},
		{"another group's segment", func(t *testing.T, a *aged) {
			b := newAged(t)
			a.forget(t)
			a.replace(t, 1, b.content(t, 1))
		}, ErrWrongJournal},
		{"without its identity", func(t *testing.T, a *aged) { must(t, a.fs.Remove("j/"+identityName)) }, ErrWrongJournal},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := newAged(t)
			c.do(t, a)
			if c.open != nil {
				if j, err := Open("j", a.o); !errors.Is(err, c.open) {
					if err == nil {
						_ = j.Close()
					}
					t.Fatalf("open: %v, want %v", err, c.open)
				}
				return
			}
			if n := a.readable(t); n < agedWrites-2*8 {
				t.Fatalf("only %d of %d blocks can be read", n, agedWrites)
			}
		})
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// T11: any byte of any file of the segments, flipped: no read gives wrong bytes,
// and Verify finds it.
func TestFlippedByteAtRest(t *testing.T) {
	t.Parallel()
	rng := newSeed(t)
	a := newAged(t)
	flips := 0
	for range scale.Scale(2000) {
		n := 1 + rng.Uint64N(a.last-1) // sealed ones
		b := a.content(t, n)
		off := rng.Int64N(int64(len(b)))
		flip(t, a.fs, a.path(n), off)
		if got := a.readable(t); got < agedWrites-1 {
			t.Fatalf("byte %d of segment %d flipped: %d of %d blocks can be read", off, n, got, agedWrites)
		}
		a.replace(t, n, b)
		flips++
	}
	scale.Counted(t, "journal-flips-at-rest", flips, 2000)
}

// A damaged index is built anew from the segments.
func TestIndexIsExpendable(t *testing.T) {
	for _, how := range []string{"removed", "flipped", "cut"} {
		a := newAged(t)
		names, err := a.fs.List("j/index")
		must(t, err)
		for _, n := range names {
			p := "j/index/" + n
			st, err := a.fs.Stat(p)
			must(t, err)
			switch {
			case how == "removed" || st.IsDir() || st.Size() == 0 || filepath.Ext(n) != ".sst" && n[:3] != "MAN":
				if how == "removed" {
					must(t, a.fs.RemoveAll(p))
				}
			case how == "flipped":
				for off := int64(0); off < st.Size(); off += 16 {
					flip(t, a.fs, p, off)
				}
			case how == "cut":
				f, err := a.fs.Create(p, vfs.WriteCategoryUnspecified)
				must(t, err)
				must(t, f.Close())
			}
		}
		j := start(t, "j", a.o)
		b, err := readAs(t, j.Journal, Position{a.epoch, a.seqs[agedWrites-1]}, a.v)
		if err != nil || b[0] != 1 || b[len(b)-1] != agedWrites {
			t.Fatalf("%s: %v", how, err)
		}
		if found, err := j.Verify(soon(t), nil); err != nil || len(found) > 0 {
			t.Fatalf("%s: verify %v, %v", how, found, err)
		}
		j.close()
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(filepath.Join(dir, "none"), Options{}); !errors.Is(err, ErrNotFound) {
		t.Errorf("nothing there: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "none")); !os.IsNotExist(err) {
		t.Errorf("looking made it: %v", err)
	}
	o := Options{Create: newIdentity()}
	j := start(t, filepath.Join(dir, "j"), o)
	if _, err := Open(filepath.Join(dir, "j"), Options{}); !errors.Is(err, ErrLocked) {
		t.Errorf("a second process: %v", err)
	}
	beginWith(t, j.Journal, volume("a", 4096))
	j.close()
	if _, err := Open(filepath.Join(dir, "j"), Options{Create: newIdentity()}); !errors.Is(err, ErrWrongJournal) {
		t.Errorf("another group: %v", err)
	}
	for _, bad := range []Options{{SegmentBytes: 4096}, {QuotaBytes: -1}} {
		if _, err := Open(filepath.Join(dir, "j"), bad); err == nil {
			t.Errorf("options %+v were taken", bad)
		}
	}
	k, err := Open(filepath.Join(dir, "j"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if h := k.Head(); h.Seq != 3 || fmt.Sprint(k.Identity()) != fmt.Sprint(*o.Create) {
		t.Errorf("opened %v, %v", h, k.Identity())
	}
	must(t, k.Close())
}
