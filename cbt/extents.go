package cbt

import (
	"cmp"
	"slices"
)

// Subtract is what of e no extent of holes covers, ascending and disjoint.
func Subtract(e Extent, holes []Extent) []Extent {
	hs := slices.Clone(holes)
	slices.SortFunc(hs, func(a, b Extent) int { return cmp.Compare(a.Offset, b.Offset) })
	var left []Extent
	at := e.Offset
	for _, h := range hs {
		if h.Length <= 0 || h.End() <= at {
			continue
		}
		if h.Offset >= e.End() {
			break
		}
		if h.Offset > at {
			left = append(left, Extent{at, h.Offset - at})
		}
		at = h.End()
	}
	if at < e.End() {
		left = append(left, Extent{at, e.End() - at})
	}
	return left
}

// Union is the ascending, disjoint cover of es; neighbours that touch are joined.
func Union(es []Extent) []Extent {
	s := slices.Clone(es)
	slices.SortFunc(s, func(a, b Extent) int { return cmp.Compare(a.Offset, b.Offset) })
	out := s[:0]
	for _, e := range s {
		switch {
		case e.Length <= 0:
		case len(out) > 0 && e.Offset <= out[len(out)-1].End():
			last := &out[len(out)-1]
			last.Length = max(last.End(), e.End()) - last.Offset
		default:
			out = append(out, e)
		}
	}
	return out
}
