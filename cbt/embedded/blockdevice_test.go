package embedded

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/novacron/afterimage/cbt/cbttest"
	"github.com/novacron/afterimage/testbed/loop"
)

// whole is all that a device holds.
func whole(t *testing.T, path string) []byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A disk is moved under its writers onto a block device that held something else and is
// larger: what lies behind the disk stays as it was, and the next life goes on with it.
func TestADiskIsMovedOntoABlockDevice(t *testing.T) {
	seed := rand.Uint64()
	w := newWorld(t, 4<<20+512)
	device := loop.New(t, 8<<20)
	was := whole(t, device.Path)
	d, o := w.journaled(t)
	o.Image, o.Device = device.Path, true
	end := writers(t, d, seed)
	_, err := d.Move(t.Context(), o)
	end()
	if err != nil {
		t.Fatalf("seed %d: %v", seed, err)
	}
	level := func(when string) {
		t.Helper()
		has := whole(t, device.Path)
		if i := cbttest.FirstDifference(has[:w.v.Size], w.sink.Image(w.v.ID)); i >= 0 {
			t.Fatalf("seed %d: %s: device and journal differ first at %d", seed, when, i)
		}
		if !bytes.Equal(has[w.v.Size:], was[w.v.Size:]) {
			t.Errorf("seed %d: %s: what lies behind the disk was written to", seed, when)
		}
	}
	level("moved")
	if _, err := os.OpenFile(device.Path, os.O_RDWR|os.O_EXCL, 0); !errors.Is(err, unix.EBUSY) {
		t.Errorf("somebody else could mount it: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	end = writers(t, again, seed+1)
	if err := again.Checkpoint(t.Context()); err != nil {
		t.Error(err)
	}
	end()
	level("in the next life")
	if err := again.Close(); err != nil {
		t.Error(err)
	}
	o.Boot = "another run of the host" // all of it is compared then
	if f, err := os.OpenFile(device.Path, os.O_RDWR, 0); err != nil {
		t.Fatal(err)
	} else if _, err := f.WriteAt([]byte("lost by the host"), 1<<20); err != nil || f.Close() != nil {
		t.Fatal(err)
	}
	if err := w.memory.Remember(o.Key, memo{Place: w.hist.Head(), Boot: "the host's first run"}); err != nil {
		t.Fatal(err)
	}
	last, err := New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	level("after the host went down")
	if err := last.Close(); err != nil {
		t.Error(err)
	}
}

// A device that is too small, or that somebody uses, is not taken, and not written to.
func TestADeviceThatCannotHoldTheDiskIsRefused(t *testing.T) {
	w := newWorld(t, 4<<20)
	small, used := loop.New(t, 4<<20-512), loop.New(t, 4<<20)
	claim, err := os.OpenFile(used.Path, os.O_RDWR|os.O_EXCL, 0) // as a mount does
	if err != nil {
		t.Fatal(err)
	}
	file := w.image + ".file"
	if err := os.WriteFile(file, make([]byte, 4<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	d, o := w.journaled(t)
	o.Device = true
	for what, path := range map[string]string{"too small": small.Path, "mounted": used.Path, "a file": file, "a terminal": "/dev/null"} {
		before := []byte{}
		if path != "/dev/null" {
			before = whole(t, path)
		}
		o.Image = path
		if _, err := d.Move(t.Context(), o); !errors.Is(err, ErrDevice) {
			t.Errorf("%s: %v", what, err)
		}
		if path != "/dev/null" && !bytes.Equal(before, whole(t, path)) {
			t.Errorf("%s: it was written to", what)
		}
	}
	if err := claim.Close(); err != nil {
		t.Fatal(err)
	}
	o.Image = used.Path
	if _, err := d.Move(t.Context(), o); err != nil {
		t.Errorf("once it is free: %v", err)
	}
}
