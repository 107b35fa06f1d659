package cbt

import (
	"math"
	"math/bits"
	"sync/atomic"
	"time"
)

// answerParts are the parts into which Answers sorts: four to each doubling of the time,
// the first of one unit, the last of all from a good 14 s on.
const (
	answerParts = 96
	answerUnit  = 1024 * time.Nanosecond
)

// Meter measures how long a volume's writes waited for their answers, which is what
// capture adds to them on this side. It costs a few atomic additions. The zero Meter is
// ready; it is safe for concurrent use.
type Meter struct {
	parts [answerParts]atomic.Uint64
	sum   atomic.Int64
	most  atomic.Int64
}

// Answered counts one answer that took d.
func (m *Meter) Answered(d time.Duration) {
	m.parts[answerPart(d)].Add(1)
	m.sum.Add(int64(d))
	for most := m.most.Load(); int64(d) > most && !m.most.CompareAndSwap(most, int64(d)); {
		most = m.most.Load()
	}
}

// Look is what was counted so far; what is counted meanwhile may be in it in part.
func (m *Meter) Look() *Answers {
	a := &Answers{Sum: time.Duration(m.sum.Load()), Most: time.Duration(m.most.Load())}
	for i := range m.parts {
		a.parts[i] = m.parts[i].Load()
		a.Count += a.parts[i]
	}
	return a
}

func answerPart(d time.Duration) int {
	n := uint64(max(d, 0) / answerUnit)
	if n < 4 {
		return int(n)
	}
	l := bits.Len64(n)
	return min((l-2)*4+int(n>>(l-3)&3), answerParts-1)
}

// answerBound is the time at which part i begins.
func answerBound(i int) time.Duration {
	if i < 4 {
		return time.Duration(i) * answerUnit
	}
	return time.Duration(4+i%4) << (i/4 - 1) * answerUnit
}

// Answers are how long writes of a volume waited for their answers.
type Answers struct {
	Count uint64
	Sum   time.Duration
	Most  time.Duration // the longest

	parts [answerParts]uint64
}

// Quantile is a time within which the part q, from 0 to 1, of the answers came; never too
// low, and too high by a fourth at most.
func (a *Answers) Quantile(q float64) time.Duration {
	need, have := uint64(math.Ceil(q*float64(a.Count))), uint64(0)
	for i, n := range a.parts {
		if have += n; have > 0 && have >= need {
			return min(answerBound(i+1), a.Most)
		}
	}
	return a.Most
}

// Within is, by time, how many answers came in less: for each doubling from 16 µs to 4 s.
func (a *Answers) Within() map[time.Duration]uint64 {
	out, have := make(map[time.Duration]uint64), uint64(0)
	for i, n := range a.parts {
		if i%4 == 0 && i >= 12 && i <= 84 {
			out[answerBound(i)] = have
		}
		have += n
	}
	return out
}
