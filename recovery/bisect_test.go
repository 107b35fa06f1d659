package recovery

import (
	"errors"
	"math/bits"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/testbed/scale"
)

// Random histories of epochs, gaps and thinned stretches, with a first bad record: it
// is found in ceil(log2 n) tries, or the interval between the two points that are left
// around it is, and said to be one. Checks that skip cost their tries and nothing else.
func TestBisectFindsTheFirstBadRecord(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	n := scale.Scale(2000)
	kinds := map[string]int{}
	for range n {
		spans, seqs := randomSpans(rng)
		if len(seqs) < 2 {
			continue
		}
		g := rng.IntN(len(seqs) - 1)
		bad := g + 1 + rng.IntN(len(seqs)-g-1)
		first := g + 1 + rng.IntN(bad-g) // of seqs, the first that is bad
		skips := map[journal.Seq]bool{}
		if rng.IntN(3) == 0 {
			for _, s := range seqs[g+1 : bad] {
				if s != seqs[first] && rng.IntN(4) == 0 {
					skips[s] = true
				}
			}
		}
		b := Bisection{Good: at(spans, seqs[g]), Bad: at(spans, seqs[bad])}
		limit := bits.Len(uint(bad - g - 1))
		h := finish(t, &b, spans, func(s journal.Seq) Verdict {
			switch {
			case skips[s]:
				return Skip
			case s >= seqs[first]:
				return Bad
			}
			return Good
		})
		skipped := 0
		for _, x := range b.Tries {
			if x.Verdict == Skip {
				skipped++
			}
		}
		if tries := len(b.Tries) - skipped; tries > limit {
			t.Fatalf("%d tries for %d points, %d at most", tries, bad-g, limit)
		}
		// The last point that the check can call good, and the first that it calls bad.
		lo, hi := first-1, first
		for lo > g && skips[seqs[lo]] {
			lo--
		}
		if h.LastGood.Seq != seqs[lo] || h.FirstBad.Seq != seqs[hi] {
			t.Fatalf("found %d to %d, want %d to %d; skipped %d", h.LastGood.Seq, h.FirstBad.Seq, seqs[lo], seqs[hi], skipped)
		}
		exact := lo == first-1 && seqs[hi] == seqs[lo]+1
		if h.Exact != exact {
			t.Fatalf("exact %v, want %v", h.Exact, exact)
		}
		switch {
		case exact:
			kinds["exact"]++
		case lo != first-1:
			kinds["skipped"]++
		default:
			kinds["thinned"]++
		}
	}
	t.Logf("%v", kinds)
	scale.Counted(t, "bisect-histories", kinds["exact"]+kinds["thinned"]+kinds["skipped"], 1000)
}

// finish tries until there is nothing to try; it begins anew from what is kept of it
// now and then, over a history that is thinner by then.
func finish(t *testing.T, b *Bisection, spans []journal.Span, check func(journal.Seq) Verdict) Halved {
	t.Helper()
	last := 64
	for {
		h, err := b.Step(spans)
		must(t, err)
		if h.Next.IsZero() {
			if h.Left != 0 || h.Between != 0 {
				t.Fatalf("at the end %+v", h)
			}
			return h
		}
		v := check(h.Next.Seq)
		if h.Left > last {
			t.Fatalf("%d tries are left after %d were", h.Left, last)
		}
		if last = h.Left; v != Skip {
			last--
		}
		if slices.ContainsFunc(b.Tries, func(x Tried) bool { return x.At == h.Next }) {
			t.Fatalf("%v is tried twice", h.Next)
		}
		b.Tries = append(b.Tries, Tried{At: h.Next, Verdict: v})
	}
}

func at(spans []journal.Span, s journal.Seq) journal.Position {
	for _, x := range spans {
		if x.First.Seq <= s && s <= x.Last.Seq {
			return journal.Position{Epoch: x.First.Epoch, Seq: s}
		}
	}
	return journal.Position{}
}

// randomSpans is a history and the seqs of its points.
func randomSpans(rng *rand.Rand) (spans []journal.Span, seqs []journal.Seq) {
	seq := journal.Seq(1)
	for e := byte(1); e <= byte(1+rng.IntN(4)); e++ {
		for range 1 + rng.IntN(5) {
			seq += journal.Seq(rng.IntN(4)) // a gap, or what was thinned
			n := journal.Seq(1)
			if rng.IntN(3) > 0 {
				n = 1 + journal.Seq(rng.IntN(60))
			}
			id := journal.EpochID{e}
			spans = append(spans, journal.Span{First: journal.Position{Epoch: id, Seq: seq}, Last: journal.Position{Epoch: id, Seq: seq + n - 1}, Number: uint64(e)})
			for s := seq; s < seq+n; s++ {
				seqs = append(seqs, s)
			}
			seq += n
		}
		seq++
	}
	return spans, seqs
}

// A hundred thousand records take seventeen tries; a check that changes its mind is
// found out; points the wrong way round are refused.
func TestBisectBounds(t *testing.T) {
	id := journal.EpochID{1}
	spans := []journal.Span{{First: journal.Position{Epoch: id, Seq: 1}, Last: journal.Position{Epoch: id, Seq: 100_001}, Number: 1}}
	for _, first := range []journal.Seq{2, 3, 50_000, 77_777, 100_000, 100_001} {
		b := Bisection{Good: at(spans, 1), Bad: at(spans, 100_001)}
		h := finish(t, &b, spans, func(s journal.Seq) Verdict {
			if s >= first {
				return Bad
			}
			return Good
		})
		if !h.Exact || h.FirstBad.Seq != first || len(b.Tries) > 17 {
			t.Errorf("first bad %d: found %+v in %d tries", first, h, len(b.Tries))
		}
	}
	b := Bisection{Good: at(spans, 1), Bad: at(spans, 9), Tries: []Tried{{At: at(spans, 4), Verdict: Bad}, {At: at(spans, 6), Verdict: Good}}}
	if h, err := b.Step(spans); err != nil || !h.Moody || h.FirstBad.Seq != 4 || h.LastGood.Seq != 1 {
		t.Errorf("a check that changes its mind: %+v, %v", h, err)
	}
	b = Bisection{Good: at(spans, 9), Bad: at(spans, 9)}
	if _, err := b.Step(spans); !errors.Is(err, ErrNotBetween) {
		t.Errorf("nothing between: %v", err)
	}
}
