package replicator

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"
)

// Over any ten seconds what is sent is within five in a hundred of the limit, whatever
// pieces it is sent in, with pauses before that would have earned credit.
func TestThrottleIsWithinFivePercentOverTenSeconds(t *testing.T) {
	const window = 10 * time.Second
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for _, limit := range []int64{256 << 10, 1 << 20, 5 << 20, 40 << 20} {
		now := time.Unix(1000, 0)
		th := newThrottle(func() time.Time { return now }, limit, 0)
		th.sleep = func(_ context.Context, d time.Duration, _ <-chan struct{}) error { now = now.Add(d); return nil }
		now = now.Add(time.Hour) // idle
		type sent struct {
			at    time.Time
			total int64
		}
		var log []sent
		total := int64(0)
		for began := now; now.Sub(began) < 3*window; {
			n := 1 + rng.IntN(th.step())
			if err := th.wait(t.Context(), n); err != nil {
				t.Fatal(err)
			}
			total += int64(n)
			log = append(log, sent{now, total})
		}
		to := 0
		for _, from := range log {
			for to < len(log) && log[to].at.Sub(from.at) < window {
				to++
			}
			if to == len(log) {
				break
			}
			share := float64(log[to].total-from.total) / (float64(limit) * log[to].at.Sub(from.at).Seconds())
			if share < 0.95 || share > 1.05 {
				t.Fatalf("limit %d: %.3f of it in %v", limit, share, log[to].at.Sub(from.at))
			}
		}
	}
}
