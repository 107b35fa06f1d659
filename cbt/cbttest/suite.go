package cbttest

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/nbd"
)

// patience bounds every wait of the suite.
const patience = 60 * time.Second

// World is a machine with disks, as a driver sees it.
type World struct {
	// Volumes are two at least: the first holds the largest request, and the size of the
	// second is no multiple of a cell's.
	Volumes []cbt.Volume
	// Guest is the guest's own way to a disk.
	Guest func(i int) *nbd.Client
	// Image is what a disk holds now.
	Image func(i int) []byte
	// Whole says that an attachment reads the disks whole, for want of a bitmap.
	Whole bool
	// Tracker makes a driver for the disks; several follow one another.
	Tracker func(sink cbt.Sink, memory cbt.Memory, life cbt.Incarnation, stallBudget time.Duration) cbt.Tracker
}

// TestTracker is the conformance suite of a driver; start makes a fresh World.
func TestTracker(t *testing.T, start func(t *testing.T) World) {
	for _, c := range []struct {
		name string
		test func(*session)
	}{
		{"InitialSync", testInitialSync},
		{"LoadDuringSyncAndAfter", testLoad},
		{"RequestsOfEveryShape", testShapes},
		{"SlowSinkLetsGo", testStall},
		{"FullSinkLetsGo", testFull},
		{"ReattachByDelta", testReattach},
		{"DisksKeepOneOrder", testOrder},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := start(t)
			c.test(&session{T: t, World: w, sink: NewRecorder(w.Volumes...), memory: new(Memory)})
		})
	}
}

// session is one World with its sink and memory.
type session struct {
	*testing.T
	World
	sink   *Recorder
	memory *Memory
}

// run starts a tracker; stop ends it and returns when it has.
func (s *session) run(budget time.Duration) (tr cbt.Tracker, stop func()) {
	tr = s.Tracker(s.sink, s.memory, cbt.Incarnation(cbt.NewID()), budget)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := tr.Run(ctx); err != nil {
			s.Errorf("run: %v", err)
		}
	}()
	stop = func() {
		cancel()
		select {
		case <-done:
		case <-time.After(patience):
			s.Errorf("the tracker does not end")
		}
	}
	s.Cleanup(stop)
	return tr, stop
}

func (s *session) guests() []*nbd.Client {
	var gs []*nbd.Client
	for i := range s.Volumes {
		gs = append(gs, s.Guest(i))
	}
	return gs
}

func (s *session) awaitSynced() {
	s.Helper()
	for _, v := range s.Volumes {
		if err := s.sink.Until(Context(s, patience), func() bool { return s.sink.Synced(v.ID) }); err != nil {
			s.Fatalf("%s is not synced: %v; gaps %v", v.Name, err, s.sink.Gaps(v.ID))
		}
	}
}

// checkImages compares every disk with what was recorded of it.
func (s *session) checkImages() {
	s.Helper()
	for i, v := range s.Volumes {
		if at := FirstDifference(s.Image(i), s.sink.Image(v.ID)); at >= 0 {
			s.Fatalf("%s: the record differs from the disk at %d", v.Name, at)
		}
	}
}

func (s *session) load(seed uint64, ops int) {
	s.Helper()
	n, err := Load{Seed: seed}.Run(Context(s, 2*patience), s.guests(), ops)
	if err != nil {
		s.Fatalf("seed %d: after %d requests: %v", seed, n, err)
	}
	if n < ops {
		s.Fatalf("seed %d: only %d of %d requests were answered", seed, n, ops)
	}
	s.Logf("seed %d: %d requests answered", seed, n)
}

func testInitialSync(s *session) {
	s.load(1, 60)
	s.run(2 * time.Second)
	s.awaitSynced()
	s.checkImages()
}

func testLoad(s *session) {
	s.load(2, 60)
	s.run(5 * time.Second)
	s.load(3, 300) // begins while the disks are being read
	s.awaitSynced()
	s.checkImages()
	s.load(4, 300)
	s.checkImages()
	for _, v := range s.Volumes {
		if !s.sink.Synced(v.ID) {
			s.Errorf("%s: gaps %v", v.Name, s.sink.Gaps(v.ID))
		}
	}
}

// testShapes makes requests that begin and end anywhere, up to the longest that there are
// and to the last byte of each disk, while all is synced.
func testShapes(s *session) {
	if s.Volumes[0].Size < cbt.MaxWriteBytes+cbt.CellBytes || s.Volumes[1].Size%cbt.CellBytes == 0 {
		s.Fatalf("the disks have %d and %d bytes", s.Volumes[0].Size, s.Volumes[1].Size)
	}
	s.run(30 * time.Second)
	s.awaitSynced()
	ctx := Context(s, 2*patience)
	for i, g := range s.guests() {
		size := s.Volumes[i].Size
		longest := min(cbt.MaxWriteBytes, size-cbt.CellBytes)
		for k, e := range []cbt.Extent{
			{Offset: cbt.SectorBytes, Length: longest}, {Offset: 1, Length: longest - 1}, // one that is not of whole sectors
			{Offset: 0, Length: 1}, {Offset: 4095, Length: 2}, {Offset: 777, Length: 4097}, {Offset: 3 << 20, Length: cbt.SectorBytes},
			{Offset: size - cbt.SectorBytes, Length: cbt.SectorBytes}, {Offset: size - 100, Length: 100}, {Offset: size - 1, Length: 1},
		} {
			if err := g.WriteAt(ctx, bytes.Repeat([]byte{byte(17*k + i + 1)}, int(e.Length)), e.Offset, false); err != nil {
				s.Fatalf("write %v: %v", e, err)
			}
		}
		for _, e := range []cbt.Extent{{Offset: 1 << 20, Length: 3 << 20}, {Offset: 5<<20 + 333, Length: 1<<20 + 1}, {Offset: size - 700, Length: 650}} {
			if err := g.Zero(ctx, e, false, false); err != nil {
				s.Fatalf("zero %v: %v", e, err)
			}
		}
		for _, e := range []cbt.Extent{{Offset: 6 << 20, Length: 1 << 20}, {Offset: 7<<20 + 100, Length: 200 << 10}, {Offset: size - 3*cbt.SectorBytes, Length: 3 * cbt.SectorBytes}} {
			if err := g.Trim(ctx, e, false); err != nil {
				s.Fatalf("trim %v: %v", e, err)
			}
		}
		if err := g.WriteAt(ctx, []byte("the end"), size-7, true); err != nil {
			s.Fatal(err)
		}
	}
	s.checkImages()
	for _, v := range s.Volumes {
		if !s.sink.Synced(v.ID) {
			s.Errorf("%s: gaps %v", v.Name, s.sink.Gaps(v.ID))
		}
	}
}

// testStall holds every record unsafe: the guest must go on within the budget.
func testStall(s *session) {
	const budget = 400 * time.Millisecond
	s.run(budget)
	s.awaitSynced()
	s.sink.Hold()
	g := s.Guest(0)
	began := time.Now()
	if err := g.WriteAt(Context(s, patience), bytes.Repeat([]byte{9}, 4096), 8192, false); err != nil {
		s.Fatalf("the guest saw an error: %v", err)
	}
	if took := time.Since(began); took < budget/2 || took > budget+time.Second {
		s.Errorf("the guest waited %v, the budget is %v", took, budget)
	}
	if err := s.sink.Until(Context(s, patience), func() bool { return !s.sink.Synced(s.Volumes[0].ID) }); err != nil {
		s.Fatal("no gap was recorded")
	}
	if gaps := s.sink.Gaps(s.Volumes[0].ID); gaps[len(gaps)-1] != cbt.CauseStall {
		s.Errorf("gaps %v", gaps)
	}
	s.load(5, 100) // while nothing is captured, or only just
	s.sink.Release()
	s.awaitSynced()
	s.checkImages()
}

func testFull(s *session) {
	s.run(2 * time.Second)
	s.awaitSynced()
	s.sink.Break(fmt.Errorf("append: %w", cbt.ErrDiskFull))
	s.load(6, 100)
	s.sink.Break(nil)
	for i := range s.Volumes {
		v := s.Volumes[i].ID
		if err := s.sink.Until(Context(s, patience), func() bool { return len(s.sink.Gaps(v)) > 0 }); err != nil {
			s.Fatal("no gap was recorded")
		}
		if gaps := s.sink.Gaps(v); gaps[0] != cbt.CauseDiskFull {
			s.Errorf("gaps %v", gaps)
		}
	}
	s.awaitSynced()
	s.checkImages()
}

// testReattach ends the tracker in the middle of a load. The next one reads what
// was written meanwhile and not the whole disk.
func testReattach(s *session) {
	s.load(7, 100)
	_, stop := s.run(2 * time.Second)
	s.awaitSynced()
	loaded := make(chan struct{})
	guests := s.guests()
	go func() {
		defer close(loaded)
		Load{Seed: 8, Aligned: true}.Run(Context(s, patience), guests[:1], 200)
	}()
	if err := s.sink.Until(Context(s, patience), func() bool { return len(s.sink.Log()) > 150 }); err != nil {
		s.Fatal(err)
	}
	stop()
	<-loaded
	for _, v := range s.Volumes {
		if s.sink.Synced(v.ID) {
			s.Errorf("%s: the interval stays open after the tracker left", v.Name)
		}
	}
	if err := guests[1].WriteAt(Context(s, patience), []byte("in between"), 70000, false); err != nil {
		s.Fatal(err)
	}
	tr, _ := s.run(2 * time.Second)
	s.awaitSynced()
	s.checkImages()
	for i, st := range tr.Status() {
		r := st.Resync
		s.Logf("%s: full %v %s, %d bytes of delta, %d read again, %d journaled, of %d", st.Volume.Name, r.Full, r.Why, r.BytesToRead, r.BytesRead, r.BytesJournaled, st.Volume.Size)
		if r.Full != s.Whole || r.BytesToRead == 0 {
			s.Errorf("%s was read whole: %v %s", st.Volume.Name, r.Full, r.Why)
		}
		if i == 1 && r.BytesJournaled > 2*cbt.CellBytes {
			s.Errorf("ten bytes cost %d in the journal", r.BytesJournaled)
		}
	}
}

// testOrder writes a counter to the first disk, and to the second only once that
// is answered. At every record at which both are synced the second must not be
// ahead, also while one tap after the other lets go.
func testOrder(s *session) {
	const budget = 300 * time.Millisecond
	s.sink.DelayGaps(budget / 5) // long enough for the second disk to overtake
	s.run(budget)
	s.awaitSynced()
	first, second := s.Guest(0), s.Guest(1)
	ctx := Context(s, 2*patience)
	count := uint64(0)
	put := func(g *nbd.Client) {
		var p [512]byte
		binary.BigEndian.PutUint64(p[:], count)
		if err := g.WriteAt(ctx, p[:], 4096, false); err != nil {
			s.Fatal(err)
		}
	}
	const breaks = 5
	for range breaks {
		s.awaitSynced()
		for range 30 {
			count++
			put(first)
			put(second)
		}
		s.sink.Stop() // the next write to the first disk outlasts its budget
		count++
		put(first)
		s.sink.Release()
		put(second)
	}
	s.awaitSynced()
	points := checkOrder(s.T, s.sink.Log(), s.Volumes[0].ID, s.Volumes[1].ID)
	s.Logf("%d points, %d breaks", points, breaks)
	if points < 30*breaks {
		s.Errorf("only %d points were compared", points)
	}
}

// checkOrder replays log and returns at how many records both were synced.
func checkOrder(t *testing.T, log []cbt.Event, first, second cbt.VolumeID) (points int) {
	counts, synced := map[cbt.VolumeID]uint64{}, map[cbt.VolumeID]bool{}
	for i, ev := range log {
		switch {
		case ev.Kind == cbt.EventSynced:
			synced[ev.Volume] = true
		case ev.Kind == cbt.EventGap:
			synced[ev.Volume] = false
		case ev.Extent.Offset <= 4096 && ev.Extent.End() >= 4104 && ev.Data != nil:
			counts[ev.Volume] = binary.BigEndian.Uint64(ev.Data[4096-ev.Extent.Offset:])
		}
		if synced[first] && synced[second] {
			points++
			if counts[second] > counts[first] {
				t.Fatalf("record %d: the second disk is at %d, the first at %d", i, counts[second], counts[first])
			}
		}
	}
	return points
}
