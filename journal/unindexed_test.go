package journal

import (
	"fmt"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// However long the index takes, no more waits for it of what is received than has a
// bound, and in the end it has all.
func TestReceivedFramesWaitForTheIndex(t *testing.T) {
	const body = 700 << 10 // a machine's definition, which lies among a frame's records
	id := newIdentity()
	src := start(t, "s", Options{FS: vfs.NewMem(), Create: id})
	defer src.close()
	w := beginWith(t, src.Journal, volume("a", 1<<20))
	for i := range 2 * maxUnindexed / body {
		definition := make([]byte, body)
		definition[0] = byte(i)
		must(t, w.Machine(soon(t), fmt.Sprintf("m%d", i), definition))
	}
	must(t, w.WaitDurable(soon(t)))
	dst := start(t, "r", Options{FS: vfs.NewMem(), Create: id, finishRest: time.Hour})
	defer dst.close()
	most := int64(0)
	for _, f := range ship(t, src.Journal, Position{}) {
		if _, _, err := f.to(dst.Journal); err != nil {
			t.Fatal(err)
		}
		most = max(most, dst.waiting())
	}
	if most > maxUnindexed || most < maxUnindexed/2 {
		t.Errorf("%d bytes waited for the index, want about %d and no more", most, maxUnindexed)
	}
	must(t, dst.waitHeld(soon(t), src.Head().Position))
	if left := dst.waiting(); left != 0 {
		t.Errorf("%d bytes wait for an index that has all", left)
	}
}

// waiting is what of received frames waits for the index.
func (r *running) waiting() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.unindexed
}
