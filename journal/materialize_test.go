package journal

import (
	"bytes"
	"errors"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/novacron/afterimage/cbt"
)

// pieces collects what Materialize hands over, and fails on a byte that comes twice
// or not at all.
type pieces struct {
	mu    sync.Mutex // guards all
	image []byte
	seen  []int // times a sector
	zeros int64
}

func (c *pieces) each(e cbt.Extent, p []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for s := e.Offset / cbt.SectorBytes; s < e.End()/cbt.SectorBytes; s++ {
		c.seen[s]++
	}
	if p == nil {
		c.zeros += e.Length
		return nil
	}
	if int64(len(p)) != e.Length || !pageAligned(p[:len(p)&^(pageBytes-1)]) {
		return errors.New("a piece of another length, or memory that is not aligned")
	}
	copy(c.image[e.Offset:], p)
	return nil
}

func materialize(t *testing.T, j *Journal, at Position, v cbt.Volume) *pieces {
	t.Helper()
	view, err := j.View(soon(t), Point{Position: at})
	if err != nil {
		t.Fatal(err)
	}
	defer view.Close()
	c := &pieces{image: make([]byte, v.Size), seen: make([]int, v.Size/cbt.SectorBytes)}
	if err := view.Materialize(soon(t), v.ID, c.each); err != nil {
		t.Fatal(err)
	}
	for s, n := range c.seen {
		if n != 1 {
			t.Fatalf("sector %d was handed over %d times", s, n)
		}
	}
	return c
}

// The image of every kind of point is the oracle's, on the disk and in memory, of a
// size that is no multiple of a page, a piece or a window.
func TestMaterialize(t *testing.T) {
	t.Parallel()
	for _, o := range []struct {
		name string
		dir  string
		Options
	}{
		{"disk", t.TempDir(), Options{SegmentBytes: 2 << 20}},
		{"memory", "j", Options{FS: vfs.NewMem(), Sync: SyncPower}},
	} {
		t.Run(o.name, func(t *testing.T) {
			o.Create = newIdentity()
			j := start(t, o.dir, o.Options)
			defer j.close()
			v := volume("a", windowBytes+5*PieceBytes+7*cbt.SectorBytes)
			w := beginWith(t, j.Journal, v)
			rng := newSeed(t)
			model := &oracle{sizes: map[cbt.VolumeID]int64{v.ID: v.Size}}
			var at []Seq
			for range 400 {
				at = append(at, model.write(t, w, rng, v.ID))
			}
			for _, k := range []int{0, rng.IntN(len(at)), len(at) - 1} {
				c := materialize(t, j.Journal, Position{w.Epoch().ID, at[k]}, v)
				if !bytes.Equal(c.image, model.image(v.ID, at[k])) {
					t.Errorf("the image after write %d is another one", k)
				}
				if k == 0 && c.zeros < windowBytes {
					t.Errorf("only %d bytes were known as zeros after one write", c.zeros)
				}
			}
		})
	}
}

// Of a volume that is nearly all empty nothing is missed, whichever of the windows
// under way is looked at first.
func TestMaterializeSparse(t *testing.T) {
	j := start(t, "j", Options{FS: vfs.NewMem(), Create: newIdentity()})
	defer j.close()
	v := volume("a", 8*windowBytes)
	w := beginWith(t, j.Journal, v)
	rng := newSeed(t)
	want := make([]byte, v.Size)
	var last Seq
	for _, k := range []int64{2, 3, 7} {
		data, off := noise(rng, 4096), k*windowBytes+rng.Int64N(windowBytes/4096)*4096
		copy(want[off:], data)
		last = put(t, w, v, off, data)
	}
	for range 5 {
		if c := materialize(t, j.Journal, Position{w.Epoch().ID, last}, v); !bytes.Equal(c.image, want) {
			t.Fatal("the image is another one")
		}
	}
}

// A window that is made of thousands of single sectors is read in rounds, none lost.
func TestMaterializeSectors(t *testing.T) {
	j := start(t, "j", Options{FS: vfs.NewMem(), Create: newIdentity()})
	defer j.close()
	v := volume("a", 2*PieceBytes)
	w := beginWith(t, j.Journal, v)
	rng := newSeed(t)
	want := make([]byte, v.Size)
	var last cbt.Pending
	for _, s := range rng.Perm(int(v.Size / cbt.SectorBytes)) {
		data, off := noise(rng, cbt.SectorBytes), int64(s)*cbt.SectorBytes
		copy(want[off:], data)
		var err error
		if last, err = w.Record(soon(t), cbt.Event{Kind: cbt.EventWrite, Volume: v.ID, Extent: cbt.Extent{Offset: off, Length: cbt.SectorBytes}, Data: data}); err != nil {
			t.Fatal(err)
		}
	}
	if err := last.Wait(soon(t)); err != nil {
		t.Fatal(err)
	}
	if c := materialize(t, j.Journal, Position{w.Epoch().ID, last.(pendingRecord).seq}, v); !bytes.Equal(c.image, want) {
		t.Error("the image is another one")
	}
}

// A damaged cell ends it by name, and an error of the receiver as it is.
func TestMaterializeNamesDamage(t *testing.T) {
	mem := vfs.NewMem()
	j := start(t, "j", Options{FS: mem, Create: newIdentity()})
	v := volume("a", 3*windowBytes)
	w := beginWith(t, j.Journal, v)
	good := put(t, w, v, 0, noise(newSeed(t), 64<<10))
	bad := put(t, w, v, 2*windowBytes+pageBytes, noise(newSeed(t), 128<<10))
	at := Position{w.Epoch().ID, bad}
	s, err := j.frameOf(soon(t), at)
	if err != nil {
		t.Fatal(err)
	}
	flip(t, mem, j.segs.path(s.segment), s.offset+s.recs[bad-s.h.First].payload+5*pageBytes)
	defer j.close()
	view, err := j.View(soon(t), Point{Position: at})
	if err != nil {
		t.Fatal(err)
	}
	defer view.Close()
	before, err := j.View(soon(t), Point{Position: Position{w.Epoch().ID, good}})
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	var d *DamageError
	if err := view.Materialize(soon(t), v.ID, func(cbt.Extent, []byte) error { return nil }); !errors.As(err, &d) || d.Seq != bad || d.Volume != v.ID {
		t.Errorf("a flipped byte gave %v", err)
	}
	enough := errors.New("enough")
	if err := before.Materialize(soon(t), v.ID, func(cbt.Extent, []byte) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("the receiver's error came back as %v", err)
	}
}
