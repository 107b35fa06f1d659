package replicator

import (
	"context"
	"io"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	chunkBytes    = 64 << 10 // what is copied at once
	minBurstBytes = 4 << 10
	maxBurstBytes = 4 << 20
)

// throttle limits bytes per second, of all that goes to one peer or out of one group.
// Safe for concurrent use. No limit costs nothing.
type throttle struct {
	now   func() time.Time
	sleep func(ctx context.Context, d time.Duration, woken <-chan struct{}) error

	mu      sync.Mutex    // guards all below
	limiter *rate.Limiter // nil: no limit
	changed chan struct{} // closed by set
	chunk   int
}

func newThrottle(now func() time.Time, bytesPerSecond, burst int64) *throttle {
	t := &throttle{now: now, sleep: sleepUnless, changed: make(chan struct{}), chunk: chunkBytes}
	t.set(bytesPerSecond, burst)
	return t
}

// set changes the limit, also for those who wait now. 0 bytes per second: no
// limit. 0 burst: an eighth of a second's worth, within bounds.
func (t *throttle) set(bytesPerSecond, burst int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	close(t.changed)
	t.changed = make(chan struct{})
	if bytesPerSecond <= 0 {
		t.limiter, t.chunk = nil, chunkBytes
		return
	}
	if burst <= 0 {
		burst = bytesPerSecond / 8
	}
	burst = min(max(burst, minBurstBytes), maxBurstBytes)
	t.limiter = rate.NewLimiter(rate.Limit(bytesPerSecond), int(burst))
	t.limiter.AllowN(t.now(), int(burst)) // a new limit starts without credit
	t.chunk = int(min(burst, chunkBytes))
}

// step is how many bytes to ask for at once.
func (t *throttle) step() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.chunk
}

// wait returns once n bytes, at most what step said, may be sent.
func (t *throttle) wait(ctx context.Context, n int) error {
	for {
		t.mu.Lock()
		limiter, changed := t.limiter, t.changed
		t.mu.Unlock()
		if limiter == nil {
			return ctx.Err()
		}
		now := t.now()
		reserved := limiter.ReserveN(now, min(n, limiter.Burst()))
		delay := reserved.DelayFrom(now)
		if delay == 0 {
			return ctx.Err()
		}
		if err := t.sleep(ctx, delay, changed); err != nil {
			return err
		}
		select {
		case <-changed: // what was reserved was reserved of the old limit
		default:
			return nil
		}
	}
}

// copyN moves exactly n bytes through buf at the allowed rate and tells moved of each step.
func (t *throttle) copyN(ctx context.Context, w io.Writer, r io.Reader, n int64, buf []byte, moved func(int)) error {
	return throttles{t}.copyN(ctx, w, r, n, buf, moved)
}

// throttles are limits that all hold.
type throttles []*throttle

func (ts throttles) copyN(ctx context.Context, w io.Writer, r io.Reader, n int64, buf []byte, moved func(int)) error {
	for n > 0 {
		step := len(buf)
		for _, t := range ts {
			step = min(step, t.step())
		}
		part := buf[:min(int64(step), n)]
		if _, err := io.ReadFull(r, part); err != nil {
			return &readError{err}
		}
		for _, t := range ts {
			if err := t.wait(ctx, len(part)); err != nil {
				return err
			}
		}
		if _, err := w.Write(part); err != nil {
			return err
		}
		moved(len(part))
		n -= int64(len(part))
	}
	return nil
}

// readError marks an error of the source, not of the connection.
type readError struct{ err error }

func (e *readError) Error() string { return "read frame: " + e.err.Error() }
func (e *readError) Unwrap() error { return e.err }

// sleepUnless waits for d; it returns early, without error, when woken is closed.
func sleepUnless(ctx context.Context, d time.Duration, woken <-chan struct{}) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-woken:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}
