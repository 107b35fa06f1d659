package journal

import (
	"cmp"
	"slices"
	"sort"

	"github.com/novacron/afterimage/cbt"
)

// version is one entry of the index.
type version struct {
	indexEntry
	place place
}

// survivor is a version, or some whole nodes of one, that a kept point sees.
type survivor struct {
	version
	bound Seq  // the oldest bound of its lineage that sees it
	end   bool // the end of the range sees it
}

// bounded is a history that passes through a range of folded records, and the seqs
// in it whose images are needed: kept points, and the last record where the history
// goes on behind the range. Between two bounds only the last version of a sector is.
type bounded struct {
	last   map[uint32]Seq // of each epoch ordinal in it: the last seq that belongs to it
	bounds []bound        // ascending in seq
}

// bound is one of them, and its name in the journal's order.
type bound struct {
	seq Seq
	at  order
}

func (b *bounded) holds(v *version) bool {
	last, ok := b.last[v.ordinal]
	return ok && v.seq <= last
}

// bound is the number of the oldest bound that is not before s.
func (b *bounded) bound(s Seq) int {
	return sort.Search(len(b.bounds), func(i int) bool { return b.bounds[i].seq >= s })
}

const sectorsPerChunk = chunkBytes / cbt.SectorBytes

// sweep decides which versions of a chunk survive. It is pure but for its buffers.
type sweep struct {
	histories []bounded
	faults    faults
	newer     [sectorsPerChunk]Seq // per sector, of the history being swept: the next newer version's seq
	seen      [][]bool             // per version, per cell: some bound sees it
	only      map[order]int64      // stored bytes that one bound alone sees; nil: not wanted
}

const never = ^Seq(0)

// survivors is what is left of the versions of the chunk at offset. All larger ones
// that cover the chunk, which have no payload, must be among them; they are judged
// in the chunk that they begin with. A cell or piece survives whole if any of its sectors is seen.
func (s *sweep) survivors(offset int64, versions []version) []survivor {
	s.seen = s.seen[:0]
	bounds, ends := make([]Seq, len(versions)), make([]bool, len(versions))
	for i := range versions {
		cells := max(1, min(nodeBytes(versions[i].node.level), chunkBytes)/pageBytes)
		s.seen = append(s.seen, make([]bool, cells))
	}
	for h := range s.histories {
		s.sweepOne(&s.histories[h], offset, versions, bounds, ends)
	}
	var out []survivor
	for i := range versions {
		v := &versions[i]
		if v.node.level <= levelMegabyte {
			out = v.cutTo(s.seen[i], bounds[i], ends[i], out)
		} else if v.node.offset == offset && s.bigSurvives(v, versions) {
			out = append(out, survivor{*v, bounds[i], true})
		}
	}
	slices.SortStableFunc(out, func(a, b survivor) int {
		if a.end != b.end {
			if a.end {
				return -1
			}
			return 1
		}
		if a.end {
			return cmp.Compare(a.node.offset, b.node.offset)
		}
		return cmp.Or(-cmp.Compare(a.bound, b.bound), cmp.Compare(a.node.offset, b.node.offset))
	})
	return out
}

// bigSurvives reports that a zero larger than a chunk is needed: in some history
// no newer one covers all of it before its bound. What smaller versions cover of it
// is not looked at, for it takes no room.
func (s *sweep) bigSurvives(v *version, versions []version) bool {
	for h := range s.histories {
		b := &s.histories[h]
		k := b.bound(v.seq)
		if !b.holds(v) || k == len(b.bounds) {
			continue
		}
		covered := slices.ContainsFunc(versions, func(w version) bool {
			return w.node.level >= v.node.level && b.holds(&w) && w.seq > v.seq && w.seq <= b.bounds[k].seq
		})
		if !covered {
			return true
		}
	}
	return false
}

func (s *sweep) sweepOne(h *bounded, offset int64, versions []version, bounds []Seq, ends []bool) {
	var in []int
	for i := range versions {
		if h.holds(&versions[i]) {
			in = append(in, i)
		}
	}
	slices.SortFunc(in, func(a, b int) int { return -cmp.Compare(versions[a].seq, versions[b].seq) })
	for i := range s.newer {
		s.newer[i] = never
	}
	for _, i := range in {
		v := &versions[i]
		k := h.bound(v.seq)
		ok := k < len(h.bounds)
		first := max(v.node.offset, offset)
		end := min(v.node.offset+nodeBytes(v.node.level), offset+chunkBytes)
		any, alone := false, true
		for at := first; at < end; at += cbt.SectorBytes {
			x := (at - offset) / cbt.SectorBytes
			if ok && h.bounds[k].seq < s.newer[x] {
				s.seen[i][(at-first)/pageBytes] = true
				any = true
				if k+1 < len(h.bounds) && h.bounds[k+1].seq < s.newer[x] {
					alone = false
				}
				if h.bounds[len(h.bounds)-1].seq < s.newer[x] {
					ends[i] = true
				}
			}
			s.newer[x] = v.seq
		}
		if s.faults.ignoreSectors && v.node.level == levelSector {
			for x := (first - offset) / pageBytes * 8; x < (first-offset)/pageBytes*8+8; x++ {
				s.newer[x] = v.seq
			}
		}
		if any && (bounds[i] == 0 || h.bounds[k].seq < bounds[i]) {
			bounds[i] = h.bounds[k].seq
		}
		if any && alone && s.only != nil {
			s.only[h.bounds[k].at] += v.place.storedBytes()
		}
	}
}

// cutTo appends what is left of v when only the seen cells are needed.
func (v *version) cutTo(seen []bool, bound Seq, end bool, out []survivor) []survivor {
	n := 0
	for _, ok := range seen {
		if ok {
			n++
		}
	}
	switch {
	case n == 0:
		return out
	case n == len(seen) || v.place.format == valueZero || !v.place.divisible():
		return append(out, survivor{*v, bound, end})
	}
	for i := 0; i < len(seen); {
		k := i
		for k < len(seen) && seen[k] == seen[i] {
			k++
		}
		if seen[i] {
			e := cbt.Extent{Offset: v.node.offset + int64(i)*pageBytes, Length: int64(k-i) * pageBytes}
			cut(e, levelMegabyte, func(n node) {
				part := *v
				part.place = v.place.part((n.offset-v.node.offset)/pageBytes, nodeBytes(n.level)/pageBytes)
				part.node = n
				out = append(out, survivor{part, bound, end})
			})
		}
		i = k
	}
	return out
}

// divisible reports that a place of several cells can be cut into smaller ones.
func (p place) divisible() bool { return p.format == valueCells || p.format == valueSealedCells }

// part is the place of n cells of p, from cell first on.
func (p place) part(first, n int64) place {
	entry := int64(entryBytes(p.sealed()))
	p.offset += first * pageBytes
	p.crcs = p.crcs[first*entry : (first+n)*entry]
	if p.of != nil {
		of := *p.of
		of.before += first * pageBytes
		p.of = &of
	}
	return p
}
