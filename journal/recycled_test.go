package journal

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// A clean restart on a recycled segment says nothing of a torn tail, though stale bytes
// stand behind the last frame.
func TestRecycledSegmentIsNotTorn(t *testing.T) {
	f := newFoldingOf(t, vfs.NewMem(), shortLadder, faults{}, 192<<10, 16<<10)
	for range 4 { // segments come back to the pool, and out of it
		must(t, f.age())
	}
	var log bytes.Buffer
	f.o.Log = slog.New(slog.NewTextHandler(&log, nil))
	stale := 0
	for k := range 12 {
		f.put(int64(k)*4096, byte(k+1), 4096)
		f.j.close()
		f.j = start(t, "j", f.o)
		f.j.mu.Lock()
		end := f.j.chained[len(f.j.chained)-1]
		f.j.mu.Unlock()
		if !f.j.emptyAt(end) {
			stale++
		}
		f.w = beginWith(t, f.j.Journal, f.vols...)
	}
	f.j.close()
	if stale == 0 {
		t.Fatal("no end was ever followed by stale bytes")
	}
	if strings.Contains(log.String(), "torn tail") {
		t.Fatalf("of %d ends with stale bytes behind them the log says:\n%s", stale, log.String())
	}
}
