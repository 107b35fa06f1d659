package qemu

import (
	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/mode"
)

// Forget makes the next resync of v a full read. It is for whoever gives the
// sink another history than the one it had, such as a fork anywhere but at its
// head: bitmaps tell what changed since what the sink knew then.
func Forget(m cbt.Memory, v cbt.VolumeID) error {
	return m.Remember(memoryKey(v), mode.Remembered{})
}
