package e2e

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/novacron/afterimage/testbed/scale"
)

const (
	ownDiskBytes = 512 << 20
	fiFreeze     = 0xc0045877 // <linux/fs.h>, FIFREEZE
	fiThaw       = 0xc0045878
)

// ownDisk is a file system of its own in a file: it can be filled, and be made to
// stand still, without harm to others.
type ownDisk struct {
	t       *testing.T
	dir     string
	root    *os.File
	mu      sync.Mutex // held while it is frozen
	ballast string
}

func newOwnDisk(t *testing.T) *ownDisk {
	t.Helper()
	scale.Tools(t, "mkfs.ext4", "mount", "umount")
	work := t.TempDir()
	image := filepath.Join(work, "disk")
	dir, err := os.MkdirTemp("", "ai")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(dir) })
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, ownDiskBytes); err != nil {
		t.Fatal(err)
	}
	for _, c := range [][]string{{"mkfs.ext4", "-q", "-F", "-m", "0", image}, {"mount", "-o", "loop", image, dir}} {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			scale.Missing(t, "a file system in a file: "+err.Error()+": "+string(out))
		}
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", "-l", dir).CombinedOutput(); err != nil {
			t.Errorf("umount %s: %v: %s", dir, err, out)
		}
	})
	d := &ownDisk{t: t, dir: dir, ballast: filepath.Join(dir, "ballast")}
	if d.root, err = os.Open(dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.root.Close() })
	return d
}

// fill leaves no room.
func (d *ownDisk) fill() {
	d.t.Helper()
	f, err := os.Create(d.ballast)
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	for size := int64(ownDiskBytes); size >= 4096; {
		st, err := f.Stat()
		if err != nil {
			d.t.Fatal(err)
		}
		if err := unix.Fallocate(int(f.Fd()), 0, st.Size(), size); errors.Is(err, unix.ENOSPC) {
			size /= 2
		} else if err != nil {
			d.t.Fatal(err)
		}
	}
}

// empty gives the room back.
func (d *ownDisk) empty() {
	d.t.Helper()
	if err := os.Remove(d.ballast); err != nil {
		d.t.Fatal(err)
	}
}

// slow makes the disk stand still nine parts of the time until the returned function
// is called: what writes or syncs waits.
func (d *ownDisk) slow() (normal func()) {
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-stop:
				return
			}
			d.still(90 * time.Millisecond)
		}
	}()
	return func() { close(stop); <-done }
}

// still freezes the file system for so long.
func (d *ownDisk) still(span time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, d.root.Fd(), fiFreeze, 0); e != 0 {
		d.t.Errorf("freeze %s: %v", d.dir, e)
		return
	}
	defer func() {
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, d.root.Fd(), fiThaw, 0); e != 0 {
			d.t.Errorf("thaw %s: %v", d.dir, e)
		}
	}()
	<-time.After(span)
}
