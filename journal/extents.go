package journal

import (
	"cmp"
	"slices"

	"github.com/novacron/afterimage/cbt"
)

// extents gathers ranges of a volume, merged now and then so that memory goes with
// the number of separate ones.
type extents struct {
	size  int64 // of the volume: what lies beyond is cut off
	list  []cbt.Extent
	limit int // merge when the list is this long
}

func newExtents(size int64) *extents { return &extents{size: size, limit: 1 << 12} }

func (x *extents) add(e cbt.Extent) {
	if e.Length = min(e.Length, x.size-e.Offset); e.Length <= 0 {
		return
	}
	if n := len(x.list); n > 0 && x.list[n-1].Offset <= e.Offset && e.Offset <= x.list[n-1].End() {
		x.list[n-1].Length = max(x.list[n-1].End(), e.End()) - x.list[n-1].Offset
		return
	}
	if x.list = append(x.list, e); len(x.list) >= x.limit {
		x.merged()
		x.limit = max(x.limit, 2*len(x.list))
	}
}

// merged is the ranges in order, disjoint and not touching.
func (x *extents) merged() []cbt.Extent {
	slices.SortFunc(x.list, func(a, b cbt.Extent) int { return cmp.Compare(a.Offset, b.Offset) })
	out := x.list[:0]
	for _, e := range x.list {
		if n := len(out); n > 0 && e.Offset <= out[n-1].End() {
			out[n-1].Length = max(out[n-1].End(), e.End()) - out[n-1].Offset
			continue
		}
		out = append(out, e)
	}
	x.list = out
	return out
}
