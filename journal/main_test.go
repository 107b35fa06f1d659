package journal

import (
	"os"
	"runtime/debug"
	"testing"
)

// What these tests hold is disks in memory, by the hundred MiB: gathering garbage as
// often as a server does takes a third of their time.
func TestMain(m *testing.M) {
	debug.SetGCPercent(400)
	debug.SetMemoryLimit(3 << 30)
	os.Exit(m.Run())
}
