package site

import (
	"testing"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
)

// What a decision gives up is never told as less than it is.
func TestLossOfADecisionIsNeverTooSmall(t *testing.T) {
	v := cbt.VolumeID{1}
	for _, c := range []struct {
		what   string
		since  journal.Since
		writes uint64
		bytes  int64
	}{
		{"as written", journal.Since{Records: 5, Volumes: []journal.Change{{Volume: v, Writes: 3, Bytes: 300}}}, 3, 300},
		{"a resync's blocks", journal.Since{Records: 9, Volumes: []journal.Change{{Volume: v, Writes: 3, Bytes: 300, Fills: 6, FillBytes: 600}}}, 3, 900},
		{"only a resync's", journal.Since{Records: 6, Volumes: []journal.Change{{Volume: v, Fills: 6, FillBytes: 600}}}, 0, 600},
		{"thinned", journal.Since{Records: 7, Volumes: []journal.Change{{Volume: v, Bytes: 400}}}, 7, 400},
		{"thinned in part", journal.Since{Records: 7, Partly: true, Volumes: []journal.Change{{Volume: v, Writes: 2, Bytes: 200}}}, 7, 200},
		{"nothing", journal.Since{}, 0, 0},
	} {
		if got := lossOf(c.since, nil); got.Writes != c.writes || got.Bytes != c.bytes {
			t.Errorf("%s: %d writes, %d bytes; want %d, %d", c.what, got.Writes, got.Bytes, c.writes, c.bytes)
		}
	}
}
