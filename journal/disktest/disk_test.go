package disktest

import (
	"errors"
	"math/rand/v2"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

func create(t *testing.T, d *Disk, name string) vfs.File {
	t.Helper()
	f, err := d.FS().Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func write(t *testing.T, f vfs.File, text string) {
	t.Helper()
	if _, err := f.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
}

func settle(t *testing.T, d *Disk, f vfs.File) {
	t.Helper()
	dir, err := d.FS().OpenDir("")
	if err == nil {
		err = errors.Join(f.Sync(), dir.Sync(), dir.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

func sizeOf(d *Disk, name string) int64 {
	s, err := d.FS().Stat(name)
	if err != nil {
		return -1
	}
	return s.Size()
}

func TestPowerIsLost(t *testing.T) {
	d := New()
	f := create(t, d, "x")
	write(t, f, "abc")
	settle(t, d, f)
	write(t, f, "def")
	for percent, want := range map[int]int64{0: 3, 100: 6} {
		if got := sizeOf(d.Loss(percent, rand.New(rand.NewPCG(1, 1))), "x"); got != want {
			t.Errorf("%d %% of what is not synced: %d bytes, want %d", percent, got, want)
		}
	}
}

func TestPowerIsLostBetweenOperations(t *testing.T) {
	d := New()
	f := create(t, d, "x")
	settle(t, d, f)
	sprung := 0
	d.LoseAfter(1, 100, rand.New(rand.NewPCG(1, 1)), func() { sprung++ })
	for range 3 {
		write(t, f, "a")
	}
	left := d.Lost()
	if left == nil || sprung != 1 {
		t.Fatalf("nothing was lost, or often: %d", sprung)
	}
	if got := sizeOf(left, "x"); got != 1 {
		t.Errorf("%d bytes are left of three operations, one of which came before", got)
	}
	if d.Lost() != nil {
		t.Error("it is lost twice")
	}
}

func TestFullAndSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := New()
		f, err := d.FS().OpenReadWrite("1.seg", vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		took := func(text string) time.Duration {
			if _, err := f.WriteAt([]byte(text), 0); err != nil {
				t.Fatal(err)
			}
			begun := time.Now()
			if err := f.SyncData(); err != nil {
				t.Fatal(err)
			}
			return time.Since(begun)
		}
		d.Slow(time.Second)
		if took("data") != time.Second || took("AiTr") != 0 {
			t.Error("a sync of data is slow, one of a trailer is not")
		}
		d.Full(true)
		if _, err := f.WriteAt([]byte("data"), 4); !errors.Is(err, syscall.ENOSPC) || !d.IsFull() {
			t.Errorf("a full disk takes data: %v", err)
		}
		d.Full(false)
		d.Slow(0)
		if took("data") != 0 {
			t.Error("it stays slow")
		}
	})
}
