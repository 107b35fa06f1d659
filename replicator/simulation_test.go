package replicator

import (
	"fmt"
	"os"
	"strconv"
	"testing"
	"testing/synctest"

	"github.com/novacron/afterimage/testbed/scale"
)

// The simulation runs the replicator as it is shipped, with real journals at all of its
// sites, in worlds of two or three of them: the clock is a bubble's (testing/synctest), the
// network is stormtest's, the disks are disktest's. A seed draws a world (who sends which
// group to whom, how clocks stand, how disks and journals are set) and what happens in it:
//
//	guests write, marks are set, history is folded under a hold, new epochs begin
//	ways are cut, one or both, connections forgotten, pieces late, lost and overtaken
//	sites lose power or are killed, and come back; disks are slow, or full
//	peers are removed and come back, limits change, far behind is coalesced or not
//	a replica is promoted, at its end or before it, while the old primary writes on
//
// After each of these, once nobody can go on without the clock, what must always hold is
// looked at (simchecks_test.go). At the end everything heals, and all must become level.
//
// What a seed determines: the world, what happens and when, what is written, which piece
// is how late, and how long who tries again waits. What it does not: the order in which
// goroutines run that can run at the same instant, and with it how records are grouped
// into frames and between which operations of a disk its power is lost; the order of
// maps; which of several ready cases a select takes; random ids. Of the first nothing
// hangs on the last but what was seen: events are instants apart, and between them
// everybody has come to rest. Three worlds of four take the same steps to the microsecond
// each time, every second one stands alike after each of them (a story's two hashes). So a
// seed that fails fails again, mostly at once, else with a -count:
//
//	AFTERIMAGE_SEED=N go test -count=1 -run 'TestSimulation$' ./replicator
func TestSimulation(t *testing.T) {
	const shards = 2
	if s := os.Getenv("AFTERIMAGE_SEED"); s != "" {
		seed, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		if r := simulate(t, seed, faults{}); r.err != nil {
			t.Fatalf("seed %d: %v\n%s", seed, r.err, r.story)
		}
		return
	}
	n := scale.Few(1000)
	t.Run("all", func(t *testing.T) {
		for shard := range shards {
			t.Run(strconv.Itoa(shard), func(t *testing.T) {
				t.Parallel()
				for seed := shard; seed < n && !t.Failed(); seed += shards {
					if r := simulate(t, uint64(seed), faults{}); r.err != nil {
						t.Errorf("%v\n%s\nagain: AFTERIMAGE_SEED=%d go test -count=1 -run 'TestSimulation$' ./replicator", r.err, r.story, seed)
					}
				}
			})
		}
	})
	if !t.Failed() {
		scale.CountedFew(t, "replicator-simulations", n, 1000)
	}
}

// result is what came of a seed.
type result struct {
	err    error
	story  string // what happened, a line each
	plan   uint64 // of what happened
	course uint64 // of how all stood after each of it
}

// simulate runs one seed in a bubble of its own.
func simulate(t *testing.T, seed uint64, plant faults) (r result) {
	t.Helper()
	identities := simIdentities() // outside of the bubble: they outlive it
	synctest.Test(t, func(t *testing.T) {
		w := newSimulation(seed, plant, identities)
		r.err = w.run()
		r.story, r.plan, r.course = w.story(), w.plan.Sum64(), w.course.Sum64()
		for _, s := range w.sites {
			s.down()
		}
	})
	if r.err != nil {
		r.err = fmt.Errorf("seed %d: %w", seed, r.err)
	}
	return r
}
