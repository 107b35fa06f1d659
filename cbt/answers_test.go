package cbt

import (
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"
)

// Whatever is counted, a quantile is not below the true one, nor above it by more than a
// part; and the parts add up.
func TestAnswersAreNeverToldTooShort(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	var m Meter
	var all []time.Duration
	for range 5000 {
		all = append(all, time.Duration(rng.Int64N(1<<(1+rng.IntN(34)))))
	}
	var wg sync.WaitGroup
	for part := range slices.Chunk(all, 1000) {
		wg.Go(func() {
			for _, d := range part {
				m.Answered(d)
			}
		})
	}
	wg.Wait()
	slices.Sort(all)
	a := m.Look()
	if a.Count != 5000 || a.Most != all[4999] {
		t.Errorf("seed %d: %d answers, the longest %v, want %v", seed, a.Count, a.Most, all[4999])
	}
	for _, q := range []float64{0, 0.01, 0.5, 0.9, 0.99, 0.999, 1} {
		want := all[max(int(math.Ceil(q*5000))-1, 0)]
		if got := a.Quantile(q); got < want || got > want+want/4+answerUnit {
			t.Errorf("seed %d: quantile %v is %v, told is %v", seed, q, want, got)
		}
	}
	for at, n := range a.Within() {
		if want := slices.IndexFunc(all, func(d time.Duration) bool { return d >= at }); want >= 0 && uint64(want) != n {
			t.Errorf("seed %d: %d answers within %v, told are %d", seed, want, at, n)
		}
	}
	var few Meter
	few.Answered(time.Microsecond)
	few.Answered(time.Second)
	if got := few.Look().Quantile(0.99); got < time.Second {
		t.Errorf("of 2 answers 99 %% came within %v, one took a second", got)
	}
	if empty := new(Meter).Look(); empty.Quantile(0.99) != 0 || empty.Count != 0 {
		t.Errorf("nothing was counted: %+v", empty)
	}
}

func TestAnswerPartsMeet(t *testing.T) {
	for i := range answerParts {
		if at := answerBound(i); answerPart(at) != i || i > 0 && answerPart(at-1) != i-1 {
			t.Errorf("part %d begins at %v, which is in %d, and what is before it in %d", i, at, answerPart(at), answerPart(at-1))
		}
	}
	if answerPart(-time.Second) != 0 || answerPart(time.Hour) != answerParts-1 {
		t.Error("what is out of bounds is not in the outer parts")
	}
}

func BenchmarkAnswered(b *testing.B) {
	var m Meter
	b.ReportAllocs()
	for i := range b.N {
		m.Answered(time.Duration(i & 0xfffff))
	}
}
