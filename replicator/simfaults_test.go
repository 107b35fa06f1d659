package replicator

import (
	"testing"

	"github.com/novacron/afterimage/testbed/scale"
)

// Each of these mistakes is found by some seed, and by one that comes soon: what a seed
// does not determine may let the first of them miss it.
func TestSimulationFindsPlantedFaults(t *testing.T) {
	for _, c := range []struct {
		mistake string
		plant   faults
		from    uint64 // the seed to begin with: one that is known to find it
	}{
		{"acknowledge before durable at the replica", faults{ackEarly: true}, 6},
		{"acknowledge what the source says it has", faults{ackUnseen: true}, 1},
		{"stream over a fork, and into a reign", faults{forkUnchecked: true}, 1},
		{"go on where the replica says", faults{cursorUnbound: true}, 1},
		{"count what is held of a branch that was left", faults{keepLeft: true}, 12},
		{"hand on pieces in whatever order they came", faults{anyOrder: true}, 0},
		{"a relay speaks of its own moments", faults{relayOwnClock: true}, 0},
		{"a relay speaks as if it were the primary", faults{relayUnmarked: true}, 0},
		{"take a group from two sites at once", faults{anySource: true}, 0},
		{"take a relay that is behind for a source that lost history", faults{behindIsLost: true}, 0},
		{"lag from the source's clock alone", faults{sourceClockOnly: true}, 1},
	} {
		t.Run(c.mistake, func(t *testing.T) {
			if scale.Race && c.plant.anyOrder {
				t.Skip("the seed finds it by the order of the usual scheduler, the race detector's is random: there striping_test.go finds it")
			}
			const most = 200
			for i := range uint64(most) {
				if r := simulate(t, c.from+i, c.plant); r.err != nil {
					t.Logf("found by %v", r.err)
					if r := simulate(t, c.from+i, faults{}); r.err != nil {
						t.Fatalf("without the fault: %v", r.err)
					}
					scale.Counted(t, "replicator-planted-faults", 1, 1)
					return
				}
			}
			t.Errorf("not found in %d worlds", most)
		})
	}
}
