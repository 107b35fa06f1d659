package embedded

import (
	"context"
	"errors"
	"os"
	"testing"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/cbttest"
)

// The journal has forked behind the image: only where the histories differ is the
// image written, and it is half-way there, and again, before it is done.
func TestImageFollowsItsJournalToAnotherBranch(t *testing.T) {
	w := newWorld(t, 4<<20)
	d := w.open(t)
	fill(t, d, 0, 4<<20, 1)
	if err := d.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	at := w.hist.Head()
	fill(t, d, 1<<20, 8192, 2) // given up
	if err := d.store.close(); err != nil {
		t.Fatal(err)
	}

	// The recorder stands for the fork: its image gets back what was there.
	w.hist.epoch = "e2"
	w.hist.changed = map[Place][]cbt.Extent{at: {{Offset: 1 << 20, Length: 8192}, {Offset: 3 << 20, Length: 4096}}}
	record(t, w, 1<<20, 8192, 1)
	record(t, w, 3<<20, 512, 7) // the new branch has a write as well
	for stop := 1; stop <= 3; stop++ {
		o := w.options()
		o.Sink = &failing{Recorder: w.sink, left: stop}
		if _, err := New(t.Context(), o); !errors.Is(err, errGone) {
			t.Fatalf("after %d reads of the head: %v", stop-1, err)
		}
		var m memo
		if _, err := w.memory.Recall(keyOf(w.v.ID), &m); err != nil || m.Place != at {
			t.Fatalf("half-way the image counts as %v, %v", m.Place, err)
		}
	}
	sink := &failing{Recorder: w.sink, left: 1000}
	o := w.options()
	o.Sink = sink
	d, err := New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	w.level(t)
	if read := 1000 - sink.left; read > 4 {
		t.Errorf("%d reads of the head for two extents", read)
	}

	// Nobody knows what differs: all of it is compared.
	fill(t, d, 0, 4096, 3)
	if err := d.store.close(); err != nil {
		t.Fatal(err)
	}
	w.hist.epoch = "e3"
	record(t, w, 0, 4096, 1)
	w.open(t)
	w.level(t)
}

// A host that goes down writes pages back as it likes: the image is trusted with
// nothing then. One that was closed before is.
func TestImageIsComparedAfterTheHostWentDown(t *testing.T) {
	for _, c := range []struct {
		name  string
		ended bool
	}{{"in use", false}, {"closed before", true}} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, 1<<20)
			o := w.options()
			o.Boot = "one"
			d, err := New(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			fill(t, d, 0, 1<<20, 1)
			if c.ended {
				err = d.Close()
			} else {
				err = errors.Join(d.Checkpoint(t.Context()), d.store.close())
			}
			if err != nil {
				t.Fatal(err)
			}
			f, err := os.OpenFile(w.image, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt([]byte("a page that the journal lost"), 512<<10); err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			sink := &failing{Recorder: w.sink, left: 1000}
			o.Boot, o.Sink = "two", sink
			if d, err = New(t.Context(), o); err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			if c.ended {
				if sink.left != 1000 {
					t.Error("an image that was closed before was compared")
				}
				return
			}
			w.level(t)
		})
	}
}

// What the image does not give back is not called level.
func TestLostWriteIsFound(t *testing.T) {
	w := newWorld(t, 1<<20)
	d := w.open(t)
	fill(t, d, 0, 4096, 1)
	record(t, w, 0, 4096, 2)
	d.store = losing{d.store}
	if _, err := d.level(t.Context(), d.whole()); !errors.Is(err, ErrWriteLost) {
		t.Fatalf("an image that takes no writes: %v", err)
	}
}

// An image that failed a write is behind its journal: no checkpoint passes it.
func TestNoCheckpointPassesAFailedWrite(t *testing.T) {
	w := newWorld(t, 1<<20)
	d := w.open(t)
	good := d.store
	d.store = failingStore{good}
	if err := d.WriteAt(t.Context(), pattern(4096, 5), 0, false); !errors.Is(err, errGone) {
		t.Fatal(err)
	}
	d.store = good
	if err := d.Checkpoint(t.Context()); !errors.Is(err, errGone) {
		t.Fatalf("a checkpoint: %v", err)
	}
	if err := d.store.close(); err != nil {
		t.Fatal(err)
	}
	w.open(t)
	w.level(t)
}

type losing struct{ store }

func (losing) writeAt([]byte, int64) error { return nil }
func (losing) zero(cbt.Extent) error       { return nil }

type failingStore struct{ store }

func (failingStore) writeAt([]byte, int64) error { return errGone }

var errGone = errors.New("gone")

// failing answers so many reads of the head and no more.
type failing struct {
	*cbttest.Recorder
	left int
}

func (f *failing) ReadHead(ctx context.Context, v cbt.VolumeID, off int64, p []byte) error {
	if f.left--; f.left <= 0 {
		return errGone
	}
	return f.Recorder.ReadHead(ctx, v, off, p)
}

func pattern(n int64, with byte) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = with
	}
	return p
}

func fill(t *testing.T, d *Device, off, n int64, with byte) {
	t.Helper()
	if err := d.WriteAt(t.Context(), pattern(n, with), off, false); err != nil {
		t.Fatal(err)
	}
}

// record puts a write into the journal alone.
func record(t *testing.T, w *world, off, n int64, with byte) {
	t.Helper()
	p, err := w.sink.Record(t.Context(), cbt.Event{Kind: cbt.EventWrite, Volume: w.v.ID, Extent: cbt.Extent{Offset: off, Length: n}, Data: pattern(n, with)})
	if err == nil {
		err = p.Wait(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
}
