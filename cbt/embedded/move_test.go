package embedded

import (
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"sync"
	"testing"

	"github.com/novacron/afterimage/cbt"
)

// journaled is a disk of the journal alone, and what it is moved with.
func (w *world) journaled(t *testing.T) (*Device, Options) {
	t.Helper()
	d := NewJournaled(w.v, w.sink)
	t.Cleanup(func() { _ = d.Close() })
	o := w.options()
	o.Key = "moved"
	return d, o
}

// writers write at random until the returned function is called.
func writers(t *testing.T, d *Device, seed uint64) (end func()) {
	t.Helper()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for n := range 4 {
		rng := rand.New(rand.NewPCG(seed, uint64(n)))
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				p := make([]byte, 1+rng.IntN(9000))
				for i := range p {
					p[i] = byte(rng.Uint32())
				}
				off := rng.Int64N(d.o.Volume.Size - int64(len(p)))
				var err error
				switch rng.IntN(4) {
				case 0:
					err = d.Zero(t.Context(), cbt.Extent{Offset: off, Length: int64(len(p))}, false, false)
				default:
					err = d.WriteAt(t.Context(), p, off, rng.IntN(8) == 0)
				}
				if err != nil {
					t.Errorf("seed %d: write: %v", seed, err)
					return
				}
			}
		})
	}
	return func() { close(stop); wg.Wait() }
}

// A disk is moved under its writers: afterwards image and journal hold the same, also
// after a crash at any moment behind the pivot, and the journal has every write.
func TestADiskIsMovedUnderItsWriters(t *testing.T) {
	for range 5 {
		seed := rand.Uint64()
		w := newWorld(t, 8<<20+512)
		d, o := w.journaled(t)
		end := writers(t, d, seed)
		var last int64
		o.Progress = func(_ string, done, total int64) {
			if done <= last || total != w.v.Size {
				t.Errorf("seed %d: progress %d of %d after %d", seed, done, total, last)
			}
			last = done
		}
		pause, err := d.Move(t.Context(), o)
		if err != nil || last != w.v.Size || pause <= 0 {
			t.Fatalf("seed %d: move: %v, pause %v, progress to %d", seed, err, pause, last)
		}
		if err := d.WriteAt(t.Context(), []byte("after the pivot"), 77, true); err != nil {
			t.Fatal(err)
		}
		end()
		w.level(t)
		if _, err := d.Move(t.Context(), o); !errors.Is(err, ErrMoving) {
			t.Errorf("a second move: %v", err)
		}
		// The process dies; what was written behind the memo is replayed.
		if err := os.Truncate(w.image, w.v.Size); err != nil {
			t.Fatal(err)
		}
		again, err := New(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		w.level(t)
		if err := again.Close(); err != nil {
			t.Error(err)
		}
	}
}

type deafMemory struct{ cbt.Memory }

var errDeaf = errors.New("deaf")

func (deafMemory) Remember(string, any) error { return errDeaf }

// A move that fails leaves the disk as it was and nothing of the image, whenever it
// fails.
func TestAMoveThatFailsLosesNothing(t *testing.T) {
	seed := rand.Uint64()
	w := newWorld(t, 8<<20)
	d, o := w.journaled(t)
	end := writers(t, d, seed)
	fails := func(what string, o Options, ctx context.Context, want error) {
		t.Helper()
		if _, err := d.Move(ctx, o); !errors.Is(err, want) {
			t.Errorf("seed %d: %s: %v, want %v", seed, what, err, want)
		}
		if _, err := os.Stat(w.image); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("seed %d: %s: the image is left: %v", seed, what, err)
		}
	}
	stopped, stop := context.WithCancelCause(t.Context())
	halfway := o
	halfway.Progress = func(_ string, done, total int64) {
		if done > total/2 {
			stop(errDeaf)
		}
	}
	fails("interrupted", halfway, stopped, errDeaf)
	deaf := o
	deaf.Memory = deafMemory{o.Memory}
	fails("not remembered", deaf, t.Context(), errDeaf)
	broken := o
	broken.Progress = func(_ string, done, _ int64) {
		if f := d.store.(*lodging).moving.Load(); done > 4<<20 && f != nil {
			f.take(errDeaf)
		}
	}
	fails("the image takes no more", broken, t.Context(), errDeaf)
	if err := os.WriteFile(w.image, []byte("somebody's"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Move(t.Context(), o); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over a file: %v", err)
	}
	if err := os.Remove(w.image); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Move(t.Context(), o); err != nil {
		t.Errorf("seed %d: after all that: %v", seed, err)
	}
	end()
	w.level(t)
}

// An image that is gone is made anew, also where it was known: what came after its
// checkpoint alone would be a disk of holes.
func TestAnImageThatIsGoneIsMadeAnew(t *testing.T) {
	w := newWorld(t, 1<<20)
	d := w.open(t)
	if err := d.WriteAt(t.Context(), []byte("kept"), 512, true); err != nil {
		t.Fatal(err)
	}
	if err := d.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(w.image); err != nil {
		t.Fatal(err)
	}
	w.open(t)
	w.level(t)
}
