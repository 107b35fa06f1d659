package qemu

import (
	"errors"
	"fmt"
	"syscall"
)

// rlimitMemlock is RLIMIT_MEMLOCK, which package syscall does not name.
const rlimitMemlock = 8

var errMemlockLimit = errors.New("RLIMIT_MEMLOCK is limited")

// lockMemory keeps all pages of this process in memory, later ones too. Under a
// limit nothing is locked: locking the future would make the runtime's next
// allocation fail, and the process with it.
func lockMemory() error {
	var lim syscall.Rlimit
	if err := syscall.Getrlimit(rlimitMemlock, &lim); err != nil {
		return fmt.Errorf("lock memory: %w", err)
	}
	if lim.Cur != ^uint64(0) && syscall.Geteuid() != 0 {
		return fmt.Errorf("lock memory: %w to %d bytes", errMemlockLimit, lim.Cur)
	}
	if err := syscall.Mlockall(syscall.MCL_CURRENT | syscall.MCL_FUTURE); err != nil {
		return fmt.Errorf("lock memory: %w", err)
	}
	return nil
}
