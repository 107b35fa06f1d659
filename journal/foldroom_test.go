package journal

import (
	"errors"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// narrow is a disk that says how much is free.
type narrow struct {
	vfs.FS
	free atomic.Uint64
}

func (n *narrow) GetDiskUsage(string) (vfs.DiskUsage, error) {
	return vfs.DiskUsage{AvailBytes: n.free.Load()}, nil
}

// A fold takes no more segments than the disk has room for beside its reserve: fewer
// at once where there is little, and none, with a word, where there is none.
func TestFoldFitsTheDisk(t *testing.T) {
	disk := &narrow{FS: vfs.NewMem()}
	disk.free.Store(1 << 40)
	f := newFoldingOf(t, disk, shortLadder, faults{}, 512<<10, 64<<10)
	defer func() { f.j.close() }()
	if err := f.settle(); err != nil {
		t.Fatal(err)
	}
	fold := func(room int64) (uint64, Maintained, error) {
		disk.free.Store(uint64(f.j.o.ReserveBytes + room))
		to, ok, err := (&maintainer{j: f.j.Journal, m: Maintenance{Retention: f.r}, now: f.clock.Now()}).foldable(nil, 1)
		if !ok {
			to = 0
		}
		if err != nil || room > 1<<30 {
			got, err := f.j.Maintain(soon(t), Maintenance{Retention: f.r, FoldBytes: 1})
			return to, got, err
		}
		return to, Maintained{}, nil
	}
	first := f.j.history().state.floor()
	var sizes [2]int64 // a segment that the pool had no file for ends with its last frame
	for i := range sizes {
		var err error
		if sizes[i], err = f.j.segs.size(first + uint64(i)); err != nil {
			t.Fatal(err)
		}
	}
	if to, got, err := fold(sizes[0] - 1); to != 0 || got.Folded != 0 || !errors.Is(err, ErrFull) {
		t.Errorf("without room for a segment it folds up to %d, %+v: %v", to, got, err)
	}
	if to, _, err := fold(sizes[0] + sizes[1]); to != first+1 || err != nil {
		t.Errorf("with room for two segments it folds %d up to %d: %v", first, to, err)
	}
	if to, got, err := fold(1 << 40); to <= first+1 || got.Folded == 0 || err != nil {
		t.Errorf("with room it folds up to %d, %+v: %v", to, got, err)
	}
}
