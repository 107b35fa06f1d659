package link

import (
	"fmt"
	"math/rand/v2"
	"time"
)

// Config is a path's conditions; each holds for either direction. The zero Config
// is a perfect path.
type Config struct {
	RTT            time.Duration // half of it delays each direction
	Jitter         time.Duration // up to this much more, evenly; without reordering
	Loss           float64       // probability that a datagram is lost
	Duplicate      float64       // probability that it arrives twice
	Reorder        float64       // probability that later ones overtake it
	BytesPerSecond int64         // payload rate; 0 has no limit
	QueueBytes     int64         // what may wait; more is dropped; default 4 MiB at a rate, else 64 MiB
	Seed           uint64        // of the dice
}

const (
	defaultQueueBytes   = 4 << 20
	unlimitedQueueBytes = 64 << 20
	// reorderDelay is the least that a reordered datagram is held back, besides
	// half the delay of its direction.
	reorderDelay = 2 * time.Millisecond
)

func (c Config) validate() error {
	for name, p := range map[string]float64{"loss": c.Loss, "duplicate": c.Duplicate, "reorder": c.Reorder} {
		if !(p >= 0 && p <= 1) {
			return fmt.Errorf("link %s %v: want a probability", name, p)
		}
	}
	if c.RTT < 0 || c.Jitter < 0 || c.BytesPerSecond < 0 || c.QueueBytes < 0 {
		return fmt.Errorf("link: negative RTT, jitter, rate or queue")
	}
	return nil
}

func (c Config) queueBytes() int64 {
	switch {
	case c.QueueBytes > 0:
		return c.QueueBytes
	case c.BytesPerSecond > 0:
		return defaultQueueBytes
	}
	return unlimitedQueueBytes
}

// Stats are sums over one direction, in datagrams unless the name says bytes.
// Received = Lost + Overflowed + what is on the way + Delivered - Duplicated + Cut,
// where a duplicate's two copies count as two in Delivered and Cut.
type Stats struct {
	Received, ReceivedBytes   uint64
	Delivered, DeliveredBytes uint64
	Lost                      uint64 // by the dice
	Overflowed                uint64 // the queue was full
	Duplicated                uint64
	Reordered                 uint64
	Cut                       uint64 // the link was cut
}

// lane decides the fate of one direction's datagrams. It has no clock: times are
// since a start that its owner chose, and never fall. It is not safe for concurrent
// use.
type lane struct {
	config Config
	dice   *rand.Rand
	free   time.Duration // when the last admitted datagram has left at the rate
	latest time.Duration // when the last one that was not reordered arrives
	stats  Stats
}

func newLane(c Config, direction uint64) *lane {
	return &lane{config: c, dice: rand.New(rand.NewPCG(c.Seed, direction))}
}

// admit takes a datagram of size bytes at now, while waiting bytes wait for their
// time, and returns when it is to be delivered: never (n = 0), once, or twice.
func (l *lane) admit(now time.Duration, size, waiting int64) (at [2]time.Duration, n int) {
	c := l.config
	l.stats.Received++
	l.stats.ReceivedBytes += uint64(size)
	// All dice fall for every datagram: its fate hangs on its number alone.
	lost := l.dice.Float64() < c.Loss
	twice := l.dice.Float64() < c.Duplicate
	late := l.dice.Float64() < c.Reorder
	jitter := time.Duration(l.dice.Float64() * float64(c.Jitter))
	l.free = max(l.free, now)
	if c.BytesPerSecond > 0 {
		waiting = int64(float64(l.free-now) / float64(time.Second) * float64(c.BytesPerSecond))
	}
	if waiting+size > c.queueBytes() && waiting > 0 {
		l.stats.Overflowed++
		return at, 0
	}
	if c.BytesPerSecond > 0 {
		l.free += time.Duration(float64(size) / float64(c.BytesPerSecond) * float64(time.Second))
	}
	if lost {
		l.stats.Lost++
		return at, 0
	}
	arrives := l.free + c.RTT/2 + jitter
	if late {
		l.stats.Reordered++
		arrives += c.RTT/4 + reorderDelay
	} else {
		arrives = max(arrives, l.latest)
		l.latest = arrives
	}
	at[0], n = arrives, 1
	if twice {
		l.stats.Duplicated++
		at[1], n = arrives, 2
	}
	return at, n
}
