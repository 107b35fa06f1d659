package journal

import (
	"bytes"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// What reads past the page cache knows the segment that is being written through it,
// from its first frame on.
func TestLiveSegmentIsKnown(t *testing.T) {
	v := volume("a", 1<<20)
	j := start(t, "j", Options{FS: vfs.NewMem(), Create: newIdentity(), SegmentBytes: 64 << 10})
	defer j.close()
	w := beginWith(t, j.Journal, v)
	for i := range 3 {
		put(t, w, v, 0, bytes.Repeat([]byte{byte(i + 1)}, 48<<10))
		j.fileMu.Lock()
		n := j.out.number
		j.fileMu.Unlock()
		if live := j.segs.live.Load(); live != n {
			t.Fatalf("segment %d is being written, readers hold %d for it", n, live)
		}
	}
}
