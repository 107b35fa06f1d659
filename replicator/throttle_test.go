package replicator

import (
	"context"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// The limit holds over every stretch of time, on a clock of its own, and it is used.
func TestThrottleHoldsItsLimit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := time.Unix(1000, 0)
		limit := rapid.Int64Range(10_000, 1<<30).Draw(t, "limit")
		burst := rapid.Int64Range(minBurstBytes, maxBurstBytes).Draw(t, "burst")
		th := newThrottle(func() time.Time { return now }, limit, burst)
		th.sleep = func(_ context.Context, d time.Duration, _ <-chan struct{}) error { now = now.Add(d); return nil }
		type sent struct {
			at time.Time
			n  int
		}
		var log []sent
		start, total := now, 0
		for range 200 {
			n := rapid.IntRange(1, th.step()).Draw(t, "bytes")
			if err := th.wait(context.Background(), n); err != nil {
				t.Fatal(err)
			}
			log, total = append(log, sent{now, n}), total+n
		}
		for i := range log {
			sum := 0
			for _, s := range log[i:] {
				sum += s.n
				allowed := float64(limit)*s.at.Sub(log[i].at).Seconds() + float64(burst) + float64(th.step())
				if float64(sum) > allowed*1.001 {
					t.Fatalf("%d bytes in %v, allowed %.0f", sum, s.at.Sub(log[i].at), allowed)
				}
			}
		}
		if ideal := time.Duration(float64(total) / float64(limit) * float64(time.Second)); now.Sub(start) > ideal+ideal/50+time.Millisecond {
			t.Fatalf("%d bytes took %v, the limit allows them in %v", total, now.Sub(start), ideal)
		}
	})
}

// A changed limit reaches those who already wait.
func TestThrottleChangeWakesWaiters(t *testing.T) {
	th := newThrottle(time.Now, 1, minBurstBytes) // a byte a second
	done := make(chan error, 1)
	asleep := make(chan struct{}, 1)
	th.sleep = func(ctx context.Context, d time.Duration, woken <-chan struct{}) error {
		asleep <- struct{}{}
		return sleepUnless(ctx, d, woken)
	}
	go func() { done <- th.wait(context.Background(), minBurstBytes) }()
	<-asleep
	th.set(0, 0)
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Fatal("still waits for the old limit")
	}
}

func TestBackoffIsBoundedAndJittered(t *testing.T) {
	b := backoff{first: time.Millisecond, limit: time.Second}
	seen := map[time.Duration]bool{}
	for i := range 100 {
		d := b.next()
		if d > time.Second || d < time.Millisecond/2 || (i > 12 && d < time.Second/2) {
			t.Fatalf("wait %d is %v", i, d)
		}
		seen[d] = true
	}
	if len(seen) < 20 {
		t.Errorf("%d different waits of 100", len(seen))
	}
	if b.reset(); b.next() > time.Millisecond {
		t.Error("the first wait after a reset is a short one")
	}
}
