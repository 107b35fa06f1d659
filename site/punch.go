package site

import (
	"os"

	"golang.org/x/sys/unix"

	"github.com/novacron/afterimage/cbt"
)

// punch makes e of f a hole, which reads as zeros and takes no space.
func punch(f *os.File, e cbt.Extent) error {
	return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, e.Offset, e.Length)
}
