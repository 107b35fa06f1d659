package bench

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/testbed/stamp"
)

// load writes stamp k to slot k mod slots, in order, each when its time has come;
// at most 32 are unanswered.
type load struct {
	writer   *journal.Writer
	volume   cbt.Volume
	o        EndLoad
	rng      *rand.Rand
	run64    uint64        // which run of a load this is
	answered atomic.Uint64 // every stamp up to here is answered

	mu      sync.Mutex // guards all below
	done    map[uint64]bool
	answers []time.Time // of stamp k at k-1; those that have none yet are zero
}

func newLoad(w *journal.Writer, v cbt.Volume, o EndLoad) *load {
	rng := rand.New(rand.NewPCG(o.Seed, 2))
	return &load{writer: w, volume: v, o: o, rng: rng, run64: rng.Uint64(), done: make(map[uint64]bool)}
}

// run writes until ctx ends. A writer that falls behind its rate does not catch up
// in a burst: the load is then what the journal takes.
func (l *load) run(ctx context.Context) error {
	gap := time.Second / time.Duration(l.o.Writes)
	inFlight := make(chan struct{}, 32)
	var wg sync.WaitGroup
	var failed atomic.Pointer[error]
	filler := make([]byte, l.o.WriteBytes)
	for i := range filler {
		filler[i] = byte(l.rng.Uint32())
	}
	next := time.Now()
	for k := uint64(1); ctx.Err() == nil && failed.Load() == nil; k++ {
		now := time.Now()
		if wait := next.Sub(now); wait > 0 {
			t := time.NewTimer(wait)
			select {
			case <-t.C:
			case <-ctx.Done():
			}
			t.Stop()
		} else if -wait > 20*time.Millisecond {
			next = now
		}
		next = next.Add(gap)
		select {
		case inFlight <- struct{}{}:
		case <-ctx.Done():
			continue
		}
		p := make([]byte, l.o.WriteBytes)
		copy(p, filler)
		stamp.Stamp{Number: k, Writer: l.run64, Time: time.Now()}.Encode(p)
		ev := cbt.Event{Kind: cbt.EventWrite, Volume: l.volume.ID, Extent: cbt.Extent{Offset: int64(k%slots) * l.o.WriteBytes, Length: l.o.WriteBytes}, Data: p}
		pending, err := l.writer.Record(ctx, ev) // in order: any prefix holds a gapless range
		if err != nil {
			if ctx.Err() == nil {
				failed.Store(&err)
			}
			break
		}
		wg.Go(func() {
			defer func() { <-inFlight }()
			if err := pending.Wait(context.WithoutCancel(ctx)); err != nil {
				failed.Store(&err)
				return
			}
			l.answer(k)
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return errors.Join(errors.New("write load"), *err)
	}
	return nil
}

// missing is how long ago, at a moment, the first write after stamp last was
// answered: what is lost, in time, if nothing after last arrives. 0 if it was not.
func (l *load) missing(last uint64, at time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if last >= uint64(len(l.answers)) || l.answers[last].IsZero() {
		return 0
	}
	return max(at.Sub(l.answers[last]), 0)
}

func (l *load) answer(k uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for uint64(len(l.answers)) < k {
		l.answers = append(l.answers, time.Time{})
	}
	l.done[k], l.answers[k-1] = true, time.Now()
	for n := l.answered.Load() + 1; l.done[n]; n++ {
		delete(l.done, n)
		l.answered.Store(n)
	}
}
