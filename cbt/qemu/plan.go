package qemu

import "github.com/novacron/afterimage/cbt"

const (
	fillBytes = 1 << 20  // most of one read of the live disk
	holeBytes = 64 << 20 // most of a piece that is expected to hold nothing
)

// stretch is a part of the disk that a resync has to look at.
type stretch struct {
	cbt.Extent
	hole bool // it read as zeros a moment ago
}

// pieces cuts stretches into what is filled at once, inside [0,size). Cuts lie
// on multiples of the piece's size, so that cells are not split.
func pieces(ss []stretch, size int64) []stretch {
	var out []stretch
	for _, s := range ss {
		end := min(s.End(), size)
		step := int64(fillBytes)
		if s.hole {
			step = holeBytes
		}
		for at := max(s.Offset, 0); at < end; {
			next := min((at/step+1)*step, end)
			out = append(out, stretch{cbt.Extent{Offset: at, Length: next - at}, s.hole})
			at = next
		}
	}
	return out
}

// total is the bytes of all stretches that are not holes, and of all.
func total(ss []stretch) (data, all int64) {
	for _, s := range ss {
		all += s.Length
		if !s.hole {
			data += s.Length
		}
	}
	return data, all
}

// differing is where live and head differ, in whole cells (the last may be
// short), as extents of a volume in which both begin at off. Cells are those of
// the volume, so off need not be a cell's beginning.
func differing(off int64, live, head []byte) []cbt.Extent {
	var out []cbt.Extent
	for at := 0; at < len(live); {
		next := min(at+cbt.CellBytes-int((off+int64(at))%cbt.CellBytes), len(live))
		if string(live[at:next]) != string(head[at:next]) {
			e := cbt.Extent{Offset: off + int64(at), Length: int64(next - at)}
			if n := len(out); n > 0 && out[n-1].End() == e.Offset {
				out[n-1].Length += e.Length
			} else {
				out = append(out, e)
			}
		}
		at = next
	}
	return out
}

// overlap is the part of e inside each of fs, in their order.
func overlap(e cbt.Extent, fs []cbt.Extent) []cbt.Extent {
	var out []cbt.Extent
	for _, f := range fs {
		first, end := max(e.Offset, f.Offset), min(e.End(), f.End())
		if first < end {
			out = append(out, cbt.Extent{Offset: first, Length: end - first})
		}
	}
	return out
}
