// Package loop gives tests block devices: loop devices of the kernel, each over a file of
// the test's own. Only root has them, and not in every container: where there are none the
// test is skipped, and fails under testbed/check.
package loop

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/novacron/afterimage/testbed/scale"
)

// Device is a block device that is t's until it ends.
type Device struct {
	Path string // /dev/loopN
	t    testing.TB
}

// most is how many numbers are tried.
const most = 256

// New is a block device of a size in bytes, full of garbage. Its number is t's until t ends,
// as package port keeps ports: also while there is nothing behind it.
func New(t testing.TB, size int64) *Device {
	t.Helper()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		scale.Missing(t, fmt.Sprintf("no loop devices here: %v", err))
	}
	defer control.Close()
	backing := backing(t, size)
	for n := range most {
		held, err := net.Listen("unix", fmt.Sprintf("@afterimage-test-loop-%d", n))
		if err != nil {
			continue // another test's
		}
		d := &Device{Path: fmt.Sprintf("/dev/loop%d", n), t: t}
		_ = unix.IoctlSetInt(int(control.Fd()), unix.LOOP_CTL_ADD, n) // it may be there
		if d.bind(backing) != nil {
			held.Close() // somebody else's
			continue
		}
		t.Cleanup(func() {
			defer held.Close()
			if err := d.Unbind(); err != nil && !errors.Is(err, unix.ENXIO) {
				t.Errorf("%s is left: %v", d.Path, err)
			}
		})
		return d
	}
	scale.Missing(t, "no loop device is to be had")
	return nil
}

// Wipe makes all of the device zeroes.
func (d *Device) Wipe() {
	d.t.Helper()
	f, err := os.OpenFile(d.Path, os.O_RDWR, 0)
	if err != nil {
		d.t.Fatal(err)
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err == nil {
		_, err = f.WriteAt(make([]byte, size), 0)
	}
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		d.t.Fatal(err)
	}
}

// Another puts something else behind the path, as a host's next start may. What looks at
// all devices of the host may have it open for a moment, and lets go of it late.
func (d *Device) Another(size int64) {
	d.t.Helper()
	err := d.Unbind()
	if err != nil {
		d.t.Fatal(err)
	}
	backing := backing(d.t, size)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(time.Minute); ; <-tick.C {
		if err = d.bind(backing); !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
			break
		}
	}
	if err != nil {
		d.t.Fatal(err)
	}
}

// backing is a new file.
func backing(t testing.TB, size int64) string {
	t.Helper()
	p := make([]byte, size)
	_, _ = rand.Read(p) // never fails on Linux
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, p, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func (d *Device) bind(backing string) error {
	f, err := os.OpenFile(backing, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return d.ioctl(unix.LOOP_SET_FD, int(f.Fd()))
}

// Unbind takes what is behind the path away.
func (d *Device) Unbind() error { return d.ioctl(unix.LOOP_CLR_FD, 0) }

func (d *Device) ioctl(request uint, value int) error {
	f, err := os.OpenFile(d.Path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.IoctlSetInt(int(f.Fd()), request, value)
}
