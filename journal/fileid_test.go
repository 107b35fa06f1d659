package journal

import "testing"

// A file's number and kind come back from the name and from the index.
func TestFileNames(t *testing.T) {
	for n := uint64(1); n < 1<<40; n *= 7 {
		s, r := segmentID(n), runID(n)
		if s.isRun() || !r.isRun() || s.number() != n || r.number() != n || s == r {
			t.Fatalf("file %d: %v, %v", n, s, r)
		}
		if got, ok := parseSegmentName(s.name()); !ok || got != n {
			t.Errorf("segment %d is named %s", n, s.name())
		}
		if got, ok := parseRunName(r.name()); !ok || got != n {
			t.Errorf("run %d is named %s", n, r.name())
		}
		if _, ok := parseRunName(s.name()); ok {
			t.Errorf("%s is a run", s.name())
		}
	}
}
