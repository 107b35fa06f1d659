package qemu

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/cbttest"
	"github.com/novacron/afterimage/cbt/nbd"
	"github.com/novacron/afterimage/testbed/scale"
)

// op is one write of a guest that issues each only after the one before was answered,
// whichever disk that was to. Its first bytes are its number.
type op struct {
	disk int
	cbt.Extent
	data []byte
}

// history is what such a guest has done: the independent truth of every point.
type history struct {
	seed uint64
	rng  *rand.Rand

	mu       sync.Mutex // guards what follows
	ops      []op
	answered []time.Time // of the first writes, where run does them
}

func newHistory() *history {
	seed := rand.Uint64()
	return &history{seed: seed, rng: rand.New(rand.NewPCG(seed, 0))}
}

// next draws the next write, to disk i, and notes it: it may land from now on.
func (h *history) next(i int, size int64) op {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := cbt.SectorBytes * (1 + h.rng.Int64N(64))
	o := op{disk: i, Extent: cbt.Extent{Offset: cbt.SectorBytes * h.rng.Int64N((size-n)/cbt.SectorBytes), Length: n}}
	o.data = bytes.Repeat([]byte{byte(h.rng.Uint64()) | 1}, int(n))
	h.ops = append(h.ops, o)
	binary.BigEndian.PutUint64(o.data, uint64(len(h.ops)))
	return o
}

// put is next at a given place.
func (h *history) put(i int, off int64) op {
	o := h.next(i, 4<<20)
	h.mu.Lock()
	defer h.mu.Unlock()
	o.Offset = off
	h.ops[len(h.ops)-1] = o
	return o
}

// run writes until ctx ends, to one disk after the other.
func (h *history) run(ctx context.Context, guests []*nbd.Client, base [][]byte) error {
	for i := 0; ctx.Err() == nil; i++ {
		k := h.rng.IntN(len(guests))
		o := h.next(k, int64(len(base[k])))
		if err := guests[k].WriteAt(context.Background(), o.data, o.Offset, false); err != nil {
			return fmt.Errorf("seed %d: write %d: %w", h.seed, i, err)
		}
		h.mu.Lock()
		h.answered = append(h.answered, time.Now())
		h.mu.Unlock()
	}
	return nil
}

// judge finds how many writes the images hold, and holds them to just that: a prefix
// of what was done. images are changed along with it.
type prefixJudge struct {
	h      *history
	done   int
	images [][]byte // after done writes
	points []int    // done, at each point
}

func (j *prefixJudge) check(got [][]byte) error {
	j.h.mu.Lock()
	defer j.h.mu.Unlock()
	last := j.done
	for n := j.done; n < len(j.h.ops); n++ {
		o := j.h.ops[n]
		if bytes.Equal(got[o.disk][o.Offset:o.Offset+8], o.data[:8]) {
			last = n + 1 // nothing later can have overwritten the newest
		}
	}
	for ; j.done < last; j.done++ {
		o := j.h.ops[j.done]
		copy(j.images[o.disk][o.Offset:], o.data)
	}
	j.points = append(j.points, j.done)
	for i := range got {
		if at := cbttest.FirstDifference(j.images[i], got[i]); at >= 0 {
			return fmt.Errorf("seed %d: the point after %d writes differs from them on disk %d at %d", j.h.seed, j.done, i, at)
		}
	}
	return nil
}

// replay walks over a log and calls each at every record at which all volumes are
// synced, with their images.
func replay(log []cbt.Event, vs []cbt.Volume, each func(images [][]byte) error) (points int, err error) {
	images, index, synced := make([][]byte, len(vs)), map[cbt.VolumeID]int{}, map[cbt.VolumeID]bool{}
	for i, v := range vs {
		images[i], index[v.ID] = make([]byte, v.Size), i
	}
	for i, ev := range log {
		image := images[index[ev.Volume]]
		switch ev.Kind {
		case cbt.EventSynced:
			synced[ev.Volume] = true
		case cbt.EventGap:
			delete(synced, ev.Volume)
		case cbt.EventWrite, cbt.EventFill:
			copy(image[ev.Extent.Offset:], ev.Data)
		default:
			clear(image[ev.Extent.Offset:ev.Extent.End()])
		}
		if len(synced) == len(vs) {
			points++
			if err := each(images); err != nil {
				return points, fmt.Errorf("record %d: %w", i, err)
			}
		}
	}
	return points, nil
}

func (w *world) cycles(every time.Duration) *Tracker {
	w.options = func(o *Options) { o.Every = every }
	return w.tracker()
}

// points waits for n more closed cycles.
func (w *world) points(tr *Tracker, n uint64) {
	w.t.Helper()
	want := tr.opts.Cut.Stats().Points + n
	cbttest.Eventually(w.t, patience, "cycles are closed", func() bool { return tr.opts.Cut.Stats().Points >= want })
}

func (w *world) images() [][]byte {
	var out [][]byte
	for _, d := range w.machine.Disks {
		out = append(out, w.machine.Image(w.t, d.Name))
	}
	return out
}

// Every closed cycle is what a guest had done up to some write of it, on both disks
// together, although it went on while the cycle was read.
func TestCyclesAreOfOneInstant(t *testing.T) {
	w := newWorld(t, cbttest.DiskSpec{Name: "a", Bytes: 8 << 20}, cbttest.DiskSpec{Name: "b", Bytes: 4 << 20, Format: "qcow2"})
	w.write("a", bytes.Repeat([]byte{7}, 3<<20), 1<<20)
	judge := prefixJudge{h: newHistory(), images: w.images()}
	guests := []*nbd.Client{w.machine.Guest(t, "a"), w.machine.Guest(t, "b")}
	tr := w.cycles(10 * time.Millisecond)
	stop := w.run(tr)
	ctx, cancel := context.WithCancel(context.Background())
	wrote := make(chan error, 1)
	go func() { wrote <- judge.h.run(ctx, guests, judge.images) }()
	w.points(tr, 20)
	cancel()
	if err := <-wrote; err != nil {
		t.Fatalf("the guest saw %v", err)
	}
	w.points(tr, 2)
	if st := tr.Status()[0]; st.Mode != cbt.ModeCycles || st.Cycles.Points < 22 {
		t.Errorf("status %+v", st)
	}
	stop()
	points, err := replay(w.recorder.Log(), w.volumes, judge.check)
	if err != nil {
		t.Fatal(err)
	}
	stats := tr.opts.Cut.Stats()
	t.Logf("seed %d: %d points after %d writes, %d refused", judge.h.seed, points, len(judge.h.ops), stats.Refused)
	// A cycle that was closed while the tracker ended may be told of to nobody.
	if told := uint64(points); told < stats.Points || told > stats.Points+1 || judge.done != len(judge.h.ops) {
		t.Errorf("%d points in the log, %d were told; they reach to write %d of %d", points, stats.Points, judge.done, len(judge.h.ops))
	}
	w.checkImages()
	judge.checkTimes(t, w.recorder.Log(), w.volumes)
}

// checkTimes holds each point to its time: what was answered before that is in it.
func (j *prefixJudge) checkTimes(t *testing.T, log []cbt.Event, vs []cbt.Volume) {
	synced, n := map[cbt.VolumeID]bool{}, 0
	for _, ev := range log {
		switch ev.Kind {
		case cbt.EventSynced:
			synced[ev.Volume] = true
		case cbt.EventGap:
			delete(synced, ev.Volume)
		}
		if len(synced) < len(vs) {
			continue
		}
		if ev.At.IsZero() {
			t.Errorf("point %d has no time", n)
		} else if done := j.points[n]; done < len(j.h.answered) && j.h.answered[done].Before(ev.At) {
			t.Errorf("point %d has the time %v and %d writes; the next one was answered at %v", n, ev.At, done, j.h.answered[done])
		}
		n++
	}
}

// While an instant is held the guest writes to the second disk, and then again where
// the cycle is about to read the first one.
func TestPlantedCyclesReadTheLiveDisk(t *testing.T) {
	planted(t, func(f *faults) { f.liveCycles = true }, func(t *testing.T, f faults) error {
		w := newWorld(t, cbttest.DiskSpec{Name: "a", Bytes: 4 << 20}, cbttest.DiskSpec{Name: "b", Bytes: 8 << 20})
		judge := prefixJudge{h: newHistory(), images: w.images()}
		guests := []*nbd.Client{w.machine.Guest(t, "a"), w.machine.Guest(t, "b")}
		write := func(o op) {
			if err := guests[o.disk].WriteAt(cbttest.Context(t, patience), o.data, o.Offset, false); err != nil {
				t.Errorf("the guest saw %v", err)
			}
		}
		held := 0
		w.faults = f
		w.faults.afterDraw = func() {
			if held++; held > 3 {
				return
			}
			write(judge.h.put(1, int64(held)<<20)) // where no bitmap names anything yet
			write(judge.h.put(0, 0))
		}
		tr := w.cycles(5 * time.Millisecond)
		stop := w.run(tr)
		w.points(tr, 6)
		stop()
		points, err := replay(w.recorder.Log(), w.volumes, judge.check)
		t.Logf("seed %d: %d points, %d writes", judge.h.seed, points, len(judge.h.ops))
		if err == nil && judge.done != len(judge.h.ops) {
			t.Errorf("the last point holds %d of %d writes", judge.done, len(judge.h.ops))
		}
		return err
	})
}

// stillness lets no write of a guest be under way while it is held, by however many
// machines: what stop does to a real one.
type stillness struct {
	guest sync.Mutex // held by a write, or by those who keep it still

	mu   sync.Mutex // guards held
	held int
}

func (s *stillness) hold(context.Context, Monitor) (func(context.Context) error, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held == 0 {
		s.guest.Lock()
	}
	s.held++
	return func(context.Context) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.held--; s.held == 0 {
			s.guest.Unlock()
		}
		return nil
	}, nil
}

// A guest's writes to two machines depend on each other. No closed cycle shows one
// without what it depends on; a pause that would be too long gives no point.
func TestCyclesOfTwoMachinesAreOfOneInstant(t *testing.T) {
	cycles := scale.Scale(100)
	still := &stillness{}
	cut := &Cut{Machines: 2}
	var ws []*world
	var vs []cbt.Volume
	var guests []*nbd.Client
	for _, name := range []string{"a", "b"} {
		w := newWorld(t, cbttest.DiskSpec{Name: name, Bytes: 4 << 20})
		ws, vs, guests = append(ws, w), append(vs, w.volumes...), append(guests, w.machine.Guest(t, name))
	}
	recorder := cbttest.NewRecorder(vs...)
	judge := prefixJudge{h: newHistory(), images: [][]byte{make([]byte, 4<<20), make([]byte, 4<<20)}}
	var trs []*Tracker
	for _, w := range ws {
		w.recorder = recorder
		w.options = func(o *Options) { o.Every, o.Cut, o.Still = 5*time.Millisecond, cut, still.hold }
		tr := w.tracker()
		trs = append(trs, tr)
		w.run(tr)
	}
	ctx, cancel := context.WithCancel(context.Background())
	wrote := make(chan error, 1)
	go func() {
		wrote <- func() error {
			for ctx.Err() == nil {
				still.guest.Lock()
				o := judge.h.next(int(judge.h.rng.Int64N(2)), 4<<20)
				err := guests[o.disk].WriteAt(context.Background(), o.data, o.Offset, false)
				still.guest.Unlock()
				if err != nil {
					return err
				}
			}
			return nil
		}()
	}()
	cbttest.Eventually(t, 4*patience, "cycles are closed", func() bool { return cut.Stats().Points >= uint64(cycles) })
	cancel()
	if err := <-wrote; err != nil {
		t.Fatalf("the guest saw %v", err)
	}
	points, err := replay(recorder.Log(), vs, judge.check)
	if err != nil {
		t.Fatal(err)
	}
	s := cut.Stats()
	t.Logf("seed %d: %d points of two machines after %d writes; %d of %d cycles were refused (%.1f %%); they stood still for %v at most",
		judge.h.seed, points, len(judge.h.ops), s.Refused, s.Points+s.Refused, 100*float64(s.Refused)/float64(s.Points+s.Refused), s.Longest)
	scale.Counted(t, "cycles-of-two-machines", points, 100)
	for _, tr := range trs {
		if st := tr.Status()[0]; st.State != cbt.StateSynced || st.Cause != "" {
			t.Errorf("status %+v", st)
		}
	}
}

// A tracker that ends while a held instant is not durable gives its bits back; the
// tap that follows reads just the delta, and so do the cycles after it. A machine that
// is killed has no bitmap that could be trusted: all is read, what differs recorded.
func TestCyclesAndTapsHandOver(t *testing.T) {
	w := newWorld(t, cbttest.DiskSpec{Name: "a", Bytes: 16 << 20}, cbttest.DiskSpec{Name: "b", Bytes: 8 << 20, Format: "qcow2"})
	w.write("a", bytes.Repeat([]byte{1}, 8<<20), 0)
	judged := func(tr *Tracker, full bool, atMost int64) {
		t.Helper()
		for _, st := range tr.Status() {
			r := st.Resync
			t.Logf("%s: full %v %s, read %d, journaled %d", st.Volume.Name, r.Full, r.Why, r.BytesRead, r.BytesJournaled)
			if r.Full != full || r.BytesJournaled > atMost {
				t.Errorf("%s: resync %+v, want full %v and at most %d bytes journaled", st.Volume.Name, r, full, atMost)
			}
		}
	}
	tr := w.cycles(5 * time.Millisecond)
	stop := w.run(tr)
	w.points(tr, 2)
	w.recorder.Hold()
	w.write("a", bytes.Repeat([]byte{2}, 64<<10), 1<<20)
	if err := w.recorder.Until(cbttest.Context(t, patience), func() bool { return w.recorder.Unsafe() > 0 }); err != nil {
		t.Fatal(err)
	}
	w.write("b", bytes.Repeat([]byte{3}, 4096), 1<<20) // while the instant is held
	stop()
	w.recorder.Release()
	w.write("a", bytes.Repeat([]byte{4}, 4096), 12<<20)

	w.options = nil
	tap := w.tracker()
	stop = w.run(tap)
	w.awaitSynced()
	judged(tap, false, 128<<10)
	w.checkImages()
	w.write("b", bytes.Repeat([]byte{5}, 4096), 2<<20)
	stop()
	w.write("b", bytes.Repeat([]byte{6}, 4096), 3<<20)

	tr = w.cycles(5 * time.Millisecond)
	stop = w.run(tr)
	w.points(tr, 2)
	judged(tr, false, 64<<10)
	w.checkImages()

	w.machine.Kill()
	began := len(w.recorder.Log())
	w.machine.Boot(t)
	w.write("a", bytes.Repeat([]byte{8}, 4096), 14<<20)
	w.points(tr, 2)
	var journaled int64
	for _, ev := range w.recorder.Log()[began:] {
		journaled += int64(len(ev.Data))
	}
	w.checkImages()
	if journaled == 0 || journaled > 128<<10 {
		t.Errorf("%d bytes were journaled after the machine was killed", journaled)
	}
	stop()
}

// A machine that waits for another one, which may never come, keeps no disk from leaving.
func TestDiskLeavesWhileAnotherMachineIsAway(t *testing.T) {
	w := newWorld(t, cbttest.DiskSpec{Name: "a", Bytes: 1 << 20}, cbttest.DiskSpec{Name: "b", Bytes: 1 << 20})
	cut := &Cut{Machines: 2}
	w.options = func(o *Options) { o.Every, o.Cut = time.Hour, cut }
	tr := w.tracker()
	w.run(tr)
	cbttest.Eventually(t, patience, "the machine waits", func() bool {
		cut.mu.Lock()
		defer cut.mu.Unlock()
		return len(cut.here) == 1
	})
	if err := tr.Unplug(cbttest.Context(t, patience), w.volumes[1].ID, func(context.Context) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if st := tr.Status(); len(st) != 1 || cut.Stats().Points != 0 {
		t.Errorf("status %+v", st)
	}
}

// What is asked for at one machine is done in a cycle of all, whose time is far away.
func TestAskedOfOneMachineIsDoneByAll(t *testing.T) {
	cut := &Cut{Machines: 2}
	var trs []*Tracker
	for _, name := range []string{"a", "b"} {
		w := newWorld(t, cbttest.DiskSpec{Name: name, Bytes: 1 << 20})
		w.options = func(o *Options) { o.Every, o.Cut = time.Hour, cut }
		tr := w.tracker()
		trs = append(trs, tr)
		w.run(tr)
	}
	cbttest.Eventually(t, patience, "a cycle is closed", func() bool { return cut.Stats().Points > 0 })
	for _, tr := range trs {
		done := false
		if err := tr.AtPoint(cbttest.Context(t, patience), func(context.Context) error { done = true; return nil }); err != nil || !done {
			t.Fatalf("%v, done %v", err, done)
		}
	}
}
