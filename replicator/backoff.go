package replicator

import (
	"math/rand/v2"
	"time"
)

// backoff is the wait between attempts: doubling from first to limit, each
// jittered down by up to half so that many peers do not call at once.
type backoff struct {
	first, limit time.Duration
	draw         func(n int64) int64 // below n; nil: by chance
	attempt      int
}

// next is the wait before the coming attempt.
func (b *backoff) next() time.Duration {
	d := b.limit
	if b.attempt < 32 {
		d = min(b.first<<b.attempt, b.limit)
	}
	if d <= 0 {
		d = b.limit
	}
	b.attempt++
	if b.draw != nil {
		return d/2 + time.Duration(b.draw(int64(d/2+1)))
	}
	return d/2 + rand.N(d/2+1)
}

// reset makes the next wait a short one.
func (b *backoff) reset() { b.attempt = 0 }
