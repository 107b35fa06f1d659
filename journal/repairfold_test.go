package journal

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// A segment that is folded while a repair writes it anew is mended, and does not come
// back; what a crash leaves beside the segments goes at the next opening.
func TestRepairedSegmentIsFoldedMeanwhile(t *testing.T) {
	c, w := newFoldCrasher(t, "plain", CompressOff, false)
	floor := c.j.history().state.floor()
	name := segmentName(floor)
	path := "j/segments/" + name
	h, _, err := c.j.segs.frameAt(floor, pageBytes)
	must(t, err)
	at := pageBytes + h.Bytes - 1
	flip(t, w.mem, path, at)
	found, err := c.j.Verify(soon(t), nil)
	must(t, err)
	if !slices.ContainsFunc(found, func(d DamageError) bool { return d.File == name }) {
		t.Fatalf("verify finds %v", found)
	}
	flip(t, w.mem, path, at) // the disk has thought better of it
	folded := false
	w.onWrite(func(op errorfs.Op) error {
		if folded || !isSync(op) || !strings.HasSuffix(op.Path, name+asideSuffix) {
			return nil
		}
		folded = true
		c.maintain()
		return nil
	})
	r, err := c.j.Repair(soon(t), nil, nil)
	w.onWrite(nil)
	if err != nil || len(r.Left) > 0 || !folded {
		t.Fatalf("repaired %+v, folded meanwhile: %v: %v", r, folded, err)
	}
	if c.j.history().state.floor() <= floor {
		t.Fatal("the segment was not folded")
	}
	must(t, onlyWhatIsNeeded(c.j.Journal, w.mem))
	must(t, c.checkImages(c.j.Journal, 6))

	c.j.close()
	for _, stray := range []string{path, "j/segments/" + segmentName(99) + asideSuffix, "j/runs/" + runName(99) + asideSuffix} {
		f, err := w.mem.Create(stray, vfs.WriteCategoryUnspecified)
		must(t, err)
		_, err = f.Write(make([]byte, pageBytes))
		must(t, errors.Join(err, f.Close()))
	}
	o := c.o
	o.Create = nil
	j, err := Open("j", o)
	must(t, err)
	must(t, onlyWhatIsNeeded(j, w.mem))
	must(t, c.checkImages(j, 6))
	must(t, j.Close())
}
