package site

import (
	"testing"
	"time"
)

// A quota that nothing can be freed for is tried again soon and then more rarely, but
// never more rarely than each minute: records grow old enough to be thinned meanwhile.
func TestAttemptsInVainAreSpaced(t *testing.T) {
	var p patience
	now := time.Unix(1000, 0)
	if !p.over(now) {
		t.Error("the first attempt waits")
	}
	for _, want := range []time.Duration{2, 4, 8, 16, 32, 60, 60} {
		want *= time.Second
		p.note(now, true)
		if p.over(now.Add(want-1)) || !p.over(now.Add(want)) {
			t.Errorf("after %v the next attempt is due at %v", want, p.next.Sub(now))
		}
		now = now.Add(want)
	}
	p.note(now, false)
	if !p.over(now) {
		t.Error("after one that freed something the next one waits")
	}
}
