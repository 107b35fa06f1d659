package detect

import (
	"slices"

	"github.com/novacron/afterimage/cbt"
)

const (
	maxExtents = 64
	nearBytes  = 1 << 20 // between two writes that count as one range: most go unseen
)

// extents are the ranges of the writes that were turned, by the samples: in order, those
// that lie near together in one. Past maxExtents those that are nearest become one too,
// so that none is forgotten.
type extents struct {
	list    []cbt.Extent
	widened bool
}

func (x *extents) add(e cbt.Extent) {
	if e.Length == 0 {
		return
	}
	at, _ := slices.BinarySearchFunc(x.list, e.Offset, func(a cbt.Extent, off int64) int {
		if a.Offset < off {
			return -1
		}
		return 1
	})
	x.list = slices.Insert(x.list, at, e)
	for _, i := range []int{at, at - 1} { // with what is behind it, with what is before it
		for i >= 0 && i+1 < len(x.list) && x.gap(i) <= nearBytes {
			x.join(i)
		}
	}
	if len(x.list) <= maxExtents {
		return
	}
	x.widened = true
	nearest := 0
	for i := range len(x.list) - 1 {
		if x.gap(i) < x.gap(nearest) {
			nearest = i
		}
	}
	x.join(nearest)
}

// gap is what lies between extent i and the next.
func (x *extents) gap(i int) int64 { return x.list[i+1].Offset - x.list[i].End() }

func (x *extents) join(i int) {
	end := max(x.list[i].End(), x.list[i+1].End())
	x.list[i].Length = end - x.list[i].Offset
	x.list = slices.Delete(x.list, i+1, i+2)
}
