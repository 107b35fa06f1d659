package journal

import (
	"os"
	"runtime/debug"
	"testing"

	"github.com/novacron/afterimage/testbed/scale"
)

// What these tests hold is disks in memory, by the hundred MiB: gathering garbage as
// often as a server does takes a third of their time. The race detector's shadow of
// what is not gathered costs more than that.
func TestMain(m *testing.M) {
	if !scale.Race {
		debug.SetGCPercent(400)
		debug.SetMemoryLimit(3 << 30)
	}
	os.Exit(m.Run())
}
