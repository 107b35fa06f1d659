package recovery

import (
	"strings"
	"testing"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
)

// What is given up is never told too small, also where history was thinned and the
// writes of a volume cannot be counted any more.
func TestLossOverThinnedHistoryIsAnUpperBound(t *testing.T) {
	v := cbt.Volume{ID: cbt.VolumeID{1}, Name: "root"}
	in := Inputs{Volumes: []cbt.Volume{v}, Thinned: true, Since: journal.Since{Records: 900, Volumes: []journal.Change{{Volume: v.ID, Bytes: 8192}}}}
	l := lossOf(in)
	if l.Writes != 900 || l.Bytes != 8192 {
		t.Errorf("loss of %d writes, %d bytes", l.Writes, l.Bytes)
	}
	if w := strings.Join(warnings(in, l), "; "); !strings.Contains(w, "thinned") {
		t.Errorf("warnings: %s", w)
	}
	in.Thinned, in.Since.Volumes[0].Writes = false, 7
	if l := lossOf(in); l.Writes != 7 {
		t.Errorf("counted exactly: %d", l.Writes)
	}
}
