package journal

import (
	"slices"
)

// lineagePart is a history that leaves go back through.
type lineagePart struct {
	leaf    EpochID // zero: the head's
	lineage Lineage
	last    map[uint32]Seq // by epoch ordinal
}

func (l *lineagePart) holds(o order) bool {
	last, ok := l.last[o.Ordinal]
	return ok && o.Seq <= last
}

// leavesLocked is the head's lineage and those of abandoned branches: every epoch
// that no other goes on from the end of.
func (j *Journal) leavesLocked() ([]lineagePart, error) {
	bs := slices.Clone(j.branches)
	n := len(bs)
	if n == 0 {
		return nil, nil
	}
	bs[n-1].Last.Seq = max(j.written, bs[n-1].Parent.Seq)
	inner := make(map[EpochID]bool)
	end := make(map[EpochID]Seq, n)
	for _, b := range bs {
		end[b.ID] = b.Last.Seq
	}
	for _, b := range bs {
		if !b.Parent.IsZero() && b.Parent.Seq >= end[b.Parent.Epoch] {
			inner[b.Parent.Epoch] = true
		}
	}
	var out []lineagePart
	for i := n - 1; i >= 0; i-- {
		if i < n-1 && (inner[bs[i].ID] || bs[i].Last.Seq < bs[i].First()) {
			continue
		}
		l, err := LineageOf(bs, bs[i].ID)
		if err != nil {
			return nil, err
		}
		p := lineagePart{leaf: bs[i].ID, lineage: l.written(), last: make(map[uint32]Seq)}
		if i == n-1 {
			p.leaf = EpochID{}
		}
		for _, v := range p.lineage {
			p.last[j.ordinalLocked(v.Epoch)] = v.Last
		}
		out = append(out, p)
	}
	return out, nil
}

// through is p as far as it passes through a range of folded records, with its
// bounds there; false if it does not.
func (l *lineagePart) through(after, to order, points []runPoint) (bounded, bool) {
	b := bounded{last: make(map[uint32]Seq)}
	var newest bound
	goesOn := l.leaf.IsZero()
	for o, last := range l.last {
		switch {
		case (order{o, last}).after(to):
			goesOn = true
			if o > to.Ordinal {
				continue
			}
			last = to.Seq
		case !(order{o, last}).after(after):
			continue
		}
		b.last[o] = last
		if newest.at.Ordinal < o {
			newest = bound{last, order{o, last}}
		}
	}
	if len(b.last) == 0 {
		return b, false
	}
	for _, p := range points {
		if l.holds(p.order) && p.after(after) && !p.after(to) {
			b.bounds = append(b.bounds, bound{p.Seq, p.order})
		}
	}
	slices.SortFunc(b.bounds, func(x, y bound) int { return int(int64(x.seq) - int64(y.seq)) })
	if n := len(b.bounds); goesOn && (n == 0 || b.bounds[n-1].seq < newest.seq) {
		b.bounds = append(b.bounds, newest)
	}
	return b, len(b.bounds) > 0
}
