package recovery

import (
	"cmp"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"time"

	"github.com/novacron/afterimage/journal"
)

// Verdict is what a check said of a point.
type Verdict string

// Verdicts of a check.
const (
	Good Verdict = "good"
	Bad  Verdict = "bad"
	Skip Verdict = "skip" // it cannot tell
)

// Tried is one point and what the check said of it.
type Tried struct {
	At      journal.Position `json:"at"`
	Number  uint64           `json:"epoch_number"`
	Verdict Verdict          `json:"verdict"`
	Exit    int              `json:"exit"`
	Seconds float64          `json:"seconds"`
	Time    time.Time        `json:"time"`
}

// Bisection is a search for the first bad point of a history between a good one and a
// bad one, by halves. All points are of the lineage that ends with Bad, so their seqs
// tell their order.
type Bisection struct {
	Good  journal.Position `json:"good"`
	Bad   journal.Position `json:"bad"`
	Tries []Tried          `json:"tries,omitempty"`
}

// ErrNotBetween: the good point is not in the history that leads to the bad one.
var ErrNotBetween = errors.New("the good point does not lead to the bad one")

// Halved is where a search stands.
type Halved struct {
	LastGood journal.Position
	FirstBad journal.Position
	// Next is the point to try; zero when there is none left.
	Next   journal.Position
	Number uint64 // of its epoch
	// Between is how many points that were not skipped lie between the two, and Left
	// how many tries that takes at most.
	Between uint64
	Left    int
	// Skipped are between the two as well; Exact says that nothing else is: the record
	// FirstBad is the one that did it.
	Skipped int
	Exact   bool
	// Moody: the check called a point good that lies behind a bad one.
	Moody bool
}

// Step says where b stands, by the points that there are. It is pure: spans may be
// thinner than at the last step. The tries of n points are at most ceil(log2 n), one
// more for each that is skipped.
func (b Bisection) Step(spans []journal.Span) (Halved, error) {
	if b.Good.Seq >= b.Bad.Seq {
		return Halved{}, fmt.Errorf("%w: %s is not before %s", ErrNotBetween, b.Good, b.Bad)
	}
	h := Halved{LastGood: b.Good, FirstBad: b.Bad}
	for _, t := range b.Tries {
		if t.Verdict == Bad && t.At.Seq < h.FirstBad.Seq {
			h.FirstBad = t.At
		}
	}
	var skipped []journal.Seq
	for _, t := range b.Tries {
		switch {
		case t.Verdict == Good && t.At.Seq > h.FirstBad.Seq:
			h.Moody = true
		case t.Verdict == Good && t.At.Seq > h.LastGood.Seq:
			h.LastGood = t.At
		}
	}
	for _, t := range b.Tries {
		if t.Verdict == Skip && t.At.Seq > h.LastGood.Seq && t.At.Seq < h.FirstBad.Seq {
			skipped = append(skipped, t.At.Seq)
		}
	}
	slices.Sort(skipped)
	skipped = slices.Compact(skipped)
	between := cut(spans, h.LastGood.Seq, h.FirstBad.Seq)
	var n uint64
	for _, s := range between {
		n += uint64(s.Last.Seq-s.First.Seq) + 1
	}
	for _, s := range skipped {
		if slices.ContainsFunc(between, func(x journal.Span) bool { return x.First.Seq <= s && s <= x.Last.Seq }) {
			n--
			h.Skipped++
		}
	}
	h.Between, h.Left = n, bits.Len64(n)
	h.Exact = n == 0 && h.Skipped == 0 && h.FirstBad.Seq == h.LastGood.Seq+1
	if n > 0 {
		h.Next, h.Number = nth(between, skipped, (n-1)/2)
	}
	return h, nil
}

// cut is what of spans lies between two seqs, both excluded, in order.
func cut(spans []journal.Span, after, before journal.Seq) []journal.Span {
	var out []journal.Span
	for _, s := range spans {
		s.First.Seq, s.Last.Seq = max(s.First.Seq, after+1), min(s.Last.Seq, before-1)
		if s.First.Seq <= s.Last.Seq {
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b journal.Span) int { return cmp.Compare(a.First.Seq, b.First.Seq) })
	return out
}

// nth is the point number n, from 0, of spans without those that were skipped.
func nth(spans []journal.Span, skipped []journal.Seq, n uint64) (journal.Position, uint64) {
	for _, s := range spans {
		at := s.First.Seq
		for _, x := range skipped {
			if x < at || x > s.Last.Seq {
				continue
			}
			if free := uint64(x - at); n < free {
				break
			} else {
				n, at = n-free, x+1
			}
		}
		if at <= s.Last.Seq {
			if free := uint64(s.Last.Seq-at) + 1; n >= free {
				n -= free
				continue
			}
			return journal.Position{Epoch: s.First.Epoch, Seq: at + journal.Seq(n)}, s.Number
		}
	}
	return journal.Position{}, 0
}
