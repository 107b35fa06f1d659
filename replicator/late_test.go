package replicator

import (
	"reflect"
	"testing"
	"time"
)

// What the replica lacks while later pieces are there goes out once more after a while,
// over another lane, and no sooner.
func TestWhatIsMissingGoesOverAnotherLane(t *testing.T) {
	now := time.Unix(1000, 0)
	l := newLanes(nil, Options{MaxConnections: 2, StallTimeout: time.Hour, Now: func() time.Time { return now }}, 0)
	slow, quick := &lane{}, &lane{}
	l.live, l.wanted, l.rtt = []*lane{slow, quick}, 2, 50*time.Millisecond
	f := l.flow(1, someGroup(), 1, 1<<20)
	for range 4 {
		if _, err := f.Write(make([]byte, maxPieceBytes)); err != nil {
			t.Fatal(err)
		}
	}
	f.push()
	late := l.take(slow)
	var rest []*piece
	for l.readyNow(f) {
		rest = append(rest, l.take(quick))
	}
	if len(rest) == 0 {
		t.Fatal("all is in one piece")
	}
	report := &taken{known: f.made, come: f.made - late.bytes(), missing: []stretch{{0, late.end()}}}
	hear := func() {
		t.Helper()
		if err := f.heard(report); err != nil {
			t.Fatal(err)
		}
	}
	if hear(); len(f.again) > 0 || f.underWayLocked() != late.bytes() {
		t.Errorf("%d pieces are late at once; %d bytes under way, want %d", len(f.again), f.underWayLocked(), late.bytes())
	}
	now = now.Add(time.Second)
	if hear(); len(f.again) != 1 || l.againLocked(slow) != nil {
		t.Fatalf("%d pieces are late after a second, or one goes where it went before", len(f.again))
	}
	if p := l.take(quick); p != late {
		t.Errorf("the piece at %d goes out, not the one that is late", p.position)
	}
	if hear(); len(f.again) > 0 {
		t.Error("it is late again at once")
	}
	now = now.Add(time.Minute)
	hear()
	report.missing = nil
	if hear(); f.underWayLocked() != 0 {
		t.Errorf("%d bytes under way, though all have come", f.underWayLocked())
	}
	if p := l.againLocked(slow); p != nil {
		t.Error("a piece goes out that has come meanwhile")
	}
	if err := f.heard(&taken{position: f.made, come: f.made, known: f.made}); err != nil || len(f.flight) > 0 || f.taken != f.made {
		t.Errorf("%d pieces are left once all is read: %v", len(f.flight), err)
	}
}

func (l *lanes) readyNow(f *flow) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return f.readyLocked()
}

// A replica tells what it lacks below what it has, the first of it if that is much.
func TestReplicaTellsWhatIsMissing(t *testing.T) {
	a := newAssembly(1<<20, &faults{}, func(taken) {})
	for _, at := range []int64{300, 100, 500, 600} {
		if err := a.put(at, make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
	}
	want := taken{come: 400, known: 700, missing: []stretch{{0, 100}, {200, 300}, {400, 500}}}
	if got := a.reportLocked(0); !reflect.DeepEqual(got, want) {
		t.Errorf("it tells %+v, want %+v", got, want)
	}
	for at := int64(1000); at < 1000+4*maxMissing; at += 2 {
		if err := a.put(at, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	got := a.reportLocked(0)
	if last := got.missing[len(got.missing)-1]; len(got.missing) != maxMissing || got.known != last.to+1 {
		t.Errorf("it tells of %d stretches, the last %v, known up to %d", len(got.missing), last, got.known)
	}
	for _, m := range []message{{envelope{open: 1}, &got}} {
		if b, err := encodeMessage(m); err != nil || len(b) > 2048 {
			t.Errorf("it is told in %d bytes: %v", len(b), err)
		}
	}
}
