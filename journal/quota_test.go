package journal

import (
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Under pressure of the quota history is thinned down the ladder, the lock and pins
// aside, before a write is refused.
func TestQuotaThins(t *testing.T) {
	r := Retention{Ladder: []Rung{{0, 24 * time.Hour}, {time.Hour, 0}}, Lock: time.Minute, QuotaBytes: 4 << 20, WarnAt: []int{50}}
	f := newFoldingOf(t, vfs.NewMem(), r, faults{}, 512<<10, 64<<10)
	defer func() { f.j.close() }()
	at := f.put(0, 1, 8192)
	if _, err := f.j.Pin(soon(t), "x", Point{Position: at}, false); err != nil {
		t.Fatal(err)
	}
	warned := false
	for range 8 {
		if err := f.settle(); err != nil {
			t.Fatal(err)
		}
		got := f.maintain()
		warned = warned || got.Warning != ""
		if got.Used > r.QuotaBytes {
			t.Fatalf("%d bytes are used of %d", got.Used, r.QuotaBytes)
		}
	}
	if written := f.j.Head().Bytes; !warned || written < r.QuotaBytes {
		t.Errorf("warned: %v, %d bytes written", warned, written)
	}
	if err := f.checkImage(f.j.Journal, at); err != nil {
		t.Error(err)
	}
}
