package e2e

import (
	"regexp"
	"strconv"
	"testing"

	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/testbed/scale"
)

// Machines that are captured in bitmap cycles move as those do whose every write arrives:
// they write until they are off, the last cycle of each is long over by then, and nothing
// of it is lost; and so home again.
func TestPromise13MachinesInCyclesMoveWithoutLoss(t *testing.T) {
	s := newShopBy(t, "{mode: bitmap, every: 1h}")
	s.b.launch()
	s.a.launch()
	s.all(s.a, control.StateCycles)
	for _, c := range s.consoles {
		if _, err := c.WaitStamped(t.Context(), c.Stamped()+20); err != nil {
			t.Fatal(err)
		}
	}
	s.ordered("planned", "latest")
	s.runsAt("b")
	for _, name := range shopMachines {
		s.nothingLost("planned", name, s.consoles[name].Stamped(), s.found(name))
	}
	read := 0
	for _, m := range regexp.MustCompile(`bytes=(\d+) bytes_read=(\d+) bytes_journaled=(\d+)`).FindAllStringSubmatch(s.a.log(), -1) {
		t.Logf("the end of a machine: %s", m[0])
		if n, err := strconv.Atoi(m[3]); err != nil || n < 4096 {
			t.Errorf("%s: %v", m[0], err)
		}
		read++
	}
	if read != len(shopMachines) {
		t.Errorf("%d ends were read", read)
	}
	s.writesOnAtB(15)
	s.ordered("failback", "latest")
	for _, name := range shopMachines {
		s.nothingLost("failback", name, s.stamped(name), s.atHome(name))
	}
	s.runsAt("a")
	s.all(s.a, control.StateCycles)
	s.all(s.b, control.StateReceiving)
	scale.Counted(t, "moves-in-cycles", read, 3)
}
