package journal

import (
	"errors"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// direct makes writes to f pass the page cache by, where file and file system take
// it (O_DIRECT). Buffers, offsets and lengths must then be multiples of pageBytes.
// A file that is no real one, or of a file system without it, stays as it is.
func direct(f vfs.File) bool { return setDirect(f, true) }

// buffered takes direct back.
func buffered(f vfs.File) bool { return setDirect(f, false) }

func setDirect(f vfs.File, on bool) bool {
	fd := f.Fd()
	if fd == vfs.InvalidFd {
		return false
	}
	flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0)
	if err != nil {
		return false
	}
	want := flags &^ unix.O_DIRECT
	if on {
		want |= unix.O_DIRECT
	}
	if want == flags {
		return true
	}
	_, err = unix.FcntlInt(fd, unix.F_SETFL, want)
	return err == nil
}

// writeDirect is f.WriteAt for a file that direct may have been called on: where the
// device wants a larger alignment than ours it goes on through the page cache.
func writeDirect(f vfs.File, p []byte, off int64) error {
	_, err := f.WriteAt(p, off)
	if errors.Is(err, syscall.EINVAL) && buffered(f) {
		_, err = f.WriteAt(p, off)
	}
	return err
}
