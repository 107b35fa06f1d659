package journal

import (
	"sort"
	"time"
)

// left is what is left of spans, which are those of l: in folded history the points
// that are kept, each a span of one record.
func (p *folds) left(spans []Span, l Lineage, ordinal func(EpochID) uint32) []Span {
	if len(p.state.Runs) == 0 {
		return spans
	}
	var out []Span
	for _, s := range spans {
		if !p.folded(order{ordinal(s.First.Epoch), s.First.Seq}) {
			out = append(out, s)
			continue
		}
		for _, i := range l {
			first, last := max(i.First, s.First.Seq), min(i.Last, s.Last.Seq)
			if first > last {
				continue
			}
			o := ordinal(i.Epoch)
			for _, k := range p.keptIn(o, first, last) {
				at := Position{i.Epoch, k.Seq}
				whole := at == s.Last
				out = append(out, Span{First: at, Last: at, Number: i.Number, Volumes: s.Volumes, Open: s.Open && whole, Ended: s.Ended, Detail: s.Detail, ended: s.ended})
			}
			if from := p.behind(o, first); from <= last {
				rest := s
				rest.First, rest.Number = Position{i.Epoch, from}, i.Number
				out = append(out, rest)
				break // and all intervals behind it
			}
		}
	}
	return out
}

// keptIn is the kept points of an epoch, from a seq to another.
func (p *folds) keptIn(ordinal uint32, first, last Seq) []runPoint {
	from := sort.Search(len(p.kept), func(i int) bool { return !(order{ordinal, first}).after(p.kept[i].order) })
	to := sort.Search(len(p.kept), func(i int) bool { return p.kept[i].after(order{ordinal, last}) })
	if from >= to {
		return nil
	}
	return p.kept[from:to]
}

// behind is the first seq of an epoch, not before first, that is not folded.
func (p *folds) behind(ordinal uint32, first Seq) Seq {
	switch {
	case ordinal < p.to.Ordinal:
		return never
	case ordinal == p.to.Ordinal:
		return max(first, p.to.Seq+1)
	}
	return first
}

// newestKept is the newest kept point of l that is not later than t.
func (j *Journal) newestKept(l Lineage, t time.Time) (Position, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for n := len(l) - 1; n >= 0; n-- {
		ks := j.past.keptIn(j.ordinalLocked(l[n].Epoch), l[n].First, l[n].Last)
		i := sort.Search(len(ks), func(i int) bool { return ks[i].time.After(t) })
		if i > 0 {
			return Position{l[n].Epoch, ks[i-1].Seq}, true
		}
	}
	return Position{}, false
}
