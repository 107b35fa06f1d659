package bench

import (
	"os"
	"testing"

	"github.com/novacron/afterimage/testbed/scale"
)

// The old primary gets what differs, and little more: not the disk, not what it has.
func TestReprotectMovesWhatDiffers(t *testing.T) {
	scale.Lasting(t, "it measures")
	dir, err := os.MkdirTemp("", "ai")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	const differ = 8 << 20
	wire, err := Reprotect(t.Context(), dir, 1<<30, differ)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes for %d that differ", wire, differ)
	if wire < differ || wire > 2*differ {
		t.Errorf("%d bytes for %d that differ", wire, differ)
	}
}
