package cbttest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/nbd"
)

// Load is a guest that writes at random: whole and odd extents, zeros and
// discards, Depth requests at once on each disk.
type Load struct {
	Seed    uint64
	Depth   int  // default 4
	Aligned bool // only whole sectors
}

// Run writes through guests until ctx ends or ops requests were answered in all,
// and returns how many were. An error of the guest is an error of the product:
// no break may ever reach it.
func (l Load) Run(ctx context.Context, guests []*nbd.Client, ops int) (int, error) {
	depth := l.Depth
	if depth == 0 {
		depth = 4
	}
	var mu sync.Mutex
	answered, begun := 0, 0
	var failed error
	var wg sync.WaitGroup
	for g, guest := range guests {
		for k := range depth {
			rng := rand.New(rand.NewPCG(l.Seed, uint64(g*1000+k)))
			wg.Go(func() {
				for ctx.Err() == nil {
					mu.Lock()
					stop := begun >= ops || failed != nil
					begun++
					mu.Unlock()
					if stop {
						return
					}
					err := l.step(rng, guest)
					mu.Lock()
					if err != nil {
						failed = fmt.Errorf("seed %d, disk %d: %w", l.Seed, g, err)
					} else {
						answered++
					}
					mu.Unlock()
				}
			})
		}
	}
	wg.Wait()
	return answered, failed
}

func (l Load) step(rng *rand.Rand, guest *nbd.Client) error {
	// A request that was sent is waited for, whatever ends the load.
	ctx := context.Background()
	size := guest.Info().Size
	longest := int64(64 << 10)
	if rng.IntN(20) == 0 {
		longest = 1 << 20
	}
	e := cbt.Extent{Length: 1 + rng.Int64N(min(longest, size/2))}
	e.Offset = rng.Int64N(size - e.Length)
	if l.Aligned || rng.IntN(2) == 0 {
		e = e.Round()
	}
	switch rng.IntN(12) {
	case 0:
		return guest.Zero(ctx, e, false, false)
	case 1:
		e = cbt.Extent{Offset: e.Offset &^ (64<<10 - 1), Length: 64 << 10}
		if !e.Within(size) {
			return nil
		}
		return guest.Trim(ctx, e, false)
	}
	p := make([]byte, e.Length)
	fill := rng.Uint64()
	for i := range p {
		p[i] = byte(fill >> (8 * (i % 8)))
	}
	return guest.WriteAt(ctx, p, e.Offset, rng.IntN(50) == 0)
}
