package embedded

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/cbttest"
	"github.com/novacron/afterimage/cbt/nbd"
)

// history is a Recorder's log as a History: place n is after n events.
type history struct {
	r     *cbttest.Recorder
	epoch string
	from  uint64 // events before it are not there one by one

	changed map[Place][]cbt.Extent // what Changed answers
}

func (h *history) Head() Place        { return Place{h.epoch, uint64(len(h.r.Log()))} }
func (h *history) Holds(p Place) bool { return p.Epoch == h.epoch && p.Seq <= h.Head().Seq }
func (h *history) Replay(_ context.Context, after Place, each func(cbt.Event) error) error {
	if after.Seq < h.from {
		return ErrThinned
	}
	for _, ev := range h.r.Log()[after.Seq:] {
		if ev.Extent.Length > 0 {
			if err := each(ev); err != nil {
				return err
			}
		}
	}
	return nil
}

func (h *history) Changed(_ context.Context, from Place, _ cbt.VolumeID) ([]cbt.Extent, error) {
	es, ok := h.changed[from]
	if !ok {
		return nil, errors.New("nobody knows")
	}
	return es, nil
}

// world is one volume with everything around it.
type world struct {
	v      cbt.Volume
	sink   *cbttest.Recorder
	memory *cbttest.Memory
	hist   *history
	image  string
}

func newWorld(t *testing.T, size int64) *world {
	v := cbt.Volume{ID: cbt.VolumeID(cbt.NewID()), Name: "disk", Size: size}
	r := cbttest.NewRecorder(v)
	return &world{v, r, &cbttest.Memory{}, &history{r: r, epoch: "e1"}, filepath.Join(t.TempDir(), "disk.img")}
}

func (w *world) options() Options {
	return Options{Volume: w.v, Image: w.image, Sink: w.sink, History: w.hist, Memory: w.memory, Checkpoint: time.Millisecond}
}

func (w *world) open(t *testing.T) *Device {
	t.Helper()
	d, err := New(t.Context(), w.options())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// level fails unless image and journal hold the same bytes.
func (w *world) level(t *testing.T) {
	t.Helper()
	got, err := os.ReadFile(w.image)
	if err != nil {
		t.Fatal(err)
	}
	if i := cbttest.FirstDifference(got, w.sink.Image(w.v.ID)); i >= 0 {
		t.Fatalf("image and journal differ first at %d", i)
	}
}

// storm writes at random, overlapping and unaligned, from several goroutines.
func storm(t *testing.T, d *Device, seed uint64, n int) {
	t.Helper()
	var wg sync.WaitGroup
	errs := make(chan error, 4)
	for g := range uint64(4) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, g))
			for range n {
				if err := randomRequest(t.Context(), d, rng); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Fatalf("seed %d: %v", seed, err)
	}
}

func randomRequest(ctx context.Context, d *Device, rng *rand.Rand) error {
	size := d.o.Volume.Size
	off := rng.Int64N(size)
	n := min(1+rng.Int64N(20000), size-off)
	if rng.IntN(2) == 0 {
		off = off / 512 * 512
		n = max(n/512*512, 512)
		n = min(n, size-off)
	}
	e := cbt.Extent{Offset: off, Length: n}
	switch rng.IntN(8) {
	case 0:
		return d.Zero(ctx, e, false, false)
	case 1:
		return d.Trim(ctx, e, false)
	case 2:
		return d.ReadAt(ctx, make([]byte, n), off)
	}
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	return d.WriteAt(ctx, p, off, rng.IntN(16) == 0)
}

// Overlapping writes reach journal and image in one order.
func TestImageFollowsJournal(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	w := newWorld(t, 300<<10)
	d := w.open(t)
	storm(t, d, seed, 100)
	w.level(t)
	for _, ev := range w.sink.Log() {
		if ev.Extent.Length > 0 && !ev.Extent.Aligned() {
			t.Fatalf("recorded %v", ev.Extent)
		}
	}
}

// Promise 2 for an image: whatever of it the crash took, opening brings it to the
// journal's head, and the interval opens at once.
func TestOpenBringsImageToHead(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	w := newWorld(t, 256<<10)
	d := w.open(t)
	storm(t, d, seed, 20)
	if err := d.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	old, err := os.ReadFile(w.image)
	if err != nil {
		t.Fatal(err)
	}
	storm(t, d, seed+1, 20)
	if err := os.WriteFile(w.image, old, 0o600); err != nil { // the page cache is gone
		t.Fatal(err)
	}
	fills := countFills(w)
	w.open(t)
	w.level(t)
	if !w.sink.Synced(w.v.ID) || countFills(w) != fills {
		t.Fatalf("synced %v, %d new fills: want an interval and no fills", w.sink.Synced(w.v.ID), countFills(w)-fills)
	}
}

func countFills(w *world) int {
	n := 0
	for _, ev := range w.sink.Log() {
		if ev.Kind == cbt.EventFill {
			n++
		}
	}
	return n
}

// A full journal opens a gap and never stops the writer; when there is room again
// what differs is recorded and the interval opens anew.
func TestFullJournal(t *testing.T) {
	w := newWorld(t, 256<<10)
	d := w.open(t)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	storm(t, d, 1, 10)
	w.sink.Break(fmt.Errorf("full: %w", cbt.ErrDiskFull))
	storm(t, d, 2, 10)
	if d.Protected() {
		t.Fatal("protected while the journal takes nothing")
	}
	var m memo
	if ok, err := w.memory.Recall(d.key(), &m); !ok || err != nil || !m.Unprotected {
		t.Fatalf("memory says %+v, %v, %v", m, ok, err)
	}
	w.sink.Break(nil)
	cbttest.Eventually(t, 10*time.Second, "protection returns", d.Protected)
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	w.level(t)
	if !w.sink.Synced(w.v.ID) {
		t.Fatal("no interval is open")
	}
}

// forgetful is a memory on a full disk: it takes so many more values.
type forgetful struct {
	*cbttest.Memory
	room atomic.Int64
}

func (f *forgetful) Remember(key string, v any) error {
	if f.room.Add(-1) < 0 {
		return fmt.Errorf("remember: %w", cbt.ErrDiskFull)
	}
	return f.Memory.Remember(key, v)
}

// A disk stays full for long: attempts to get level again take none of its room,
// and no write fails for want of it.
func TestAttemptsOnAFullDiskTakeNoRoom(t *testing.T) {
	w := newWorld(t, 64<<10)
	memory := &forgetful{Memory: w.memory}
	memory.room.Store(1 << 40)
	o := w.options()
	o.Memory = memory
	d, err := New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	memory.room.Store(1) // for the mark
	w.sink.Break(fmt.Errorf("full: %w", cbt.ErrDiskFull))
	for i := range 10 {
		if err := d.WriteAt(t.Context(), bytes.Repeat([]byte{byte(i + 1)}, 4096), 8192, false); err != nil {
			t.Fatalf("write %d: %v", i, err)
		}
		if err := d.tick(t.Context()); !errors.Is(err, cbt.ErrDiskFull) || d.Protected() {
			t.Fatalf("attempt %d: %v, protected %v", i, err, d.Protected())
		}
	}
	memory.room.Store(1 << 40)
	w.sink.Break(nil)
	if err := d.tick(t.Context()); err != nil || !d.Protected() {
		t.Fatalf("with room again: %v, protected %v", err, d.Protected())
	}
	w.level(t)
}

// A crash while unprotected: the image holds more than the journal, which takes it.
func TestOpenAfterUnprotected(t *testing.T) {
	w := newWorld(t, 64<<10)
	d := w.open(t)
	w.sink.Break(fmt.Errorf("full: %w", cbt.ErrDiskFull))
	if err := d.WriteAt(t.Context(), bytes.Repeat([]byte{7}, 5000), 1234, false); err != nil {
		t.Fatal(err)
	}
	w.sink.Break(nil)
	w.open(t)
	w.level(t)
	if w.sink.Image(w.v.ID)[1234] != 7 {
		t.Fatal("the write made without a journal is lost")
	}
}

// Events that the image lacks were thinned: it is made from the head. What only an
// unprotected image holds is taken all the same.
func TestOpenOverThinnedHistory(t *testing.T) {
	w := newWorld(t, 64<<10)
	storm(t, w.open(t), 5, 20)
	if err := w.memory.Remember("embedded/"+w.v.ID.String(), memo{Place: Place{"e1", 1}}); err != nil {
		t.Fatal(err)
	}
	stale, err := os.OpenFile(w.image, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stale.Write(make([]byte, w.v.Size)); err != nil { // what the writes made of it never reached the disk
		t.Fatal(err)
	}
	stale.Close()
	w.hist.from = w.hist.Head().Seq
	d := w.open(t)
	w.level(t)
	w.sink.Break(fmt.Errorf("full: %w", cbt.ErrDiskFull))
	if err := d.WriteAt(t.Context(), bytes.Repeat([]byte{7}, 5000), 1234, false); err != nil {
		t.Fatal(err)
	}
	w.sink.Break(nil)
	w.hist.from = w.hist.Head().Seq + 1
	w.open(t)
	w.level(t)
	if w.sink.Image(w.v.ID)[1234] != 7 {
		t.Error("the write made without a journal is lost")
	}
	if at, ok, err := Checkpointed(w.memory, w.v.ID); err != nil || !ok || at.Seq == 0 {
		t.Errorf("checkpoint %+v, %v, %v", at, ok, err)
	}
}

// An image that is made anew never wipes a volume; one that is not known never
// mixes with content; one of another branch is made from the head.
func TestImageOfAnotherHistory(t *testing.T) {
	w := newWorld(t, 128<<10)
	storm(t, w.open(t), 3, 10)
	want := w.sink.Image(w.v.ID)

	w.image += ".new" // gone
	w.memory = &cbttest.Memory{}
	w.open(t)
	w.level(t)
	if !bytes.Equal(want, w.sink.Image(w.v.ID)) {
		t.Fatal("a new image changed the volume")
	}

	w.image += ".other" // a stranger
	if err := os.WriteFile(w.image, bytes.Repeat([]byte{9}, int(w.v.Size)), 0o600); err != nil {
		t.Fatal(err)
	}
	w.memory = &cbttest.Memory{}
	if _, err := New(t.Context(), w.options()); !errors.Is(err, ErrImage) {
		t.Fatalf("a strange image gave %v", err)
	}

	w.image += ".branch" // of another branch
	if err := os.WriteFile(w.image, bytes.Repeat([]byte{9}, int(w.v.Size)), 0o600); err != nil {
		t.Fatal(err)
	}
	d := &Device{o: w.options()}
	if err := w.memory.Remember(d.key(), memo{Place: Place{"other", 1}, Unprotected: true}); err != nil {
		t.Fatal(err)
	}
	w.open(t)
	w.level(t)
	if !bytes.Equal(want, w.sink.Image(w.v.ID)) {
		t.Fatal("an image of another branch changed the volume")
	}
}

// An image that existed before the journal is taken into it.
func TestAdopt(t *testing.T) {
	w := newWorld(t, 100<<10)
	data := make([]byte, w.v.Size)
	copy(data[5000:], "before")
	if err := os.WriteFile(w.image, data, 0o600); err != nil {
		t.Fatal(err)
	}
	w.open(t)
	w.level(t)
	for _, ev := range w.sink.Log() {
		if ev.Kind == cbt.EventFill && ev.Extent.Length > cbt.CellBytes {
			t.Fatalf("recorded %v for one cell", ev.Extent)
		}
	}
}

// A disk without an image reads and writes the journal alone, and is refused room
// with ENOSPC.
func TestJournaled(t *testing.T) {
	w := newWorld(t, 64<<10)
	d := NewJournaled(w.v, w.sink)
	storm(t, d, 4, 30)
	got := make([]byte, w.v.Size)
	if err := d.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, w.sink.Image(w.v.ID)) {
		t.Fatalf("reads differ from the journal: %v", err)
	}
	w.sink.Break(fmt.Errorf("full: %w", cbt.ErrDiskFull))
	if err := d.WriteAt(t.Context(), []byte{1}, 0, false); !errors.Is(err, nbd.ENOSPC) {
		t.Fatalf("full journal gave %v", err)
	}
}

// A waiter whose context ends leaves the lock as it was.
func TestRangesCancel(t *testing.T) {
	var r ranges
	unlock, err := r.lock(t.Context(), cbt.Extent{Offset: 0, Length: 10})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if _, err := r.lock(ctx, cbt.Extent{Offset: 5, Length: 10}); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	unlock()
	unlock, err = r.lock(t.Context(), cbt.Extent{Offset: 0, Length: 100})
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}
