package journal

import (
	"errors"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// A look-up that a fold takes the frames from under is done again and finds the point
// where it is kept; one that nothing is folded under is done once, whatever it finds.
func TestLookUpDuringFold(t *testing.T) {
	f := newFoldingOf(t, vfs.NewMem(), shortLadder, faults{}, 192<<10, 16<<10)
	defer func() { f.j.close() }()
	at := f.put(4096, 2, 4096)
	if _, err := f.j.Pin(soon(t), "x", Point{Position: at}, false); err != nil {
		t.Fatal(err)
	}
	must(t, f.settle())
	tries := 0
	p, err := steady(f.j.Journal, func() (Point, error) {
		tries++
		if tries > 1 {
			return f.j.pointAt(soon(t), at)
		}
		if _, err := f.j.frameOf(soon(t), at); err != nil {
			t.Fatalf("before the fold: %v", err)
		}
		f.maintain()
		_, err := f.j.frameOf(soon(t), at)
		if !errors.Is(err, ErrReclaimed) {
			t.Fatalf("the fold took nothing: %v", err)
		}
		return Point{}, err
	})
	if err != nil || p.Position != at || tries != 2 {
		t.Fatalf("after %d tries %v, %v", tries, p, err)
	}
	tries = 0
	if _, err := steady(f.j.Journal, func() (int, error) { tries++; return 0, ErrReclaimed }); !errors.Is(err, ErrReclaimed) || tries != 1 {
		t.Fatalf("nothing was folded, and after %d tries: %v", tries, err)
	}
}
