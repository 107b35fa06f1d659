package recovery

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Held reports whether a process of this host has the drive open as a QEMU has it, or
// writes to it as our own tools do: it keeps locks on its bytes (QEMU, block/file-posix.c,
// RAW_LOCK_PERM_BASE), whatever became of its monitor's socket. One that was told to lock
// nothing (locking=off) is not seen.
func (d Drive) Held() (bool, error) {
	f, err := os.OpenFile(d.Path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return false, fmt.Errorf("%w: %w", ErrDrive, err)
	}
	defer f.Close()
	return locked(f)
}
