package site

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/novacron/afterimage/recovery/witness"
)

// openedAt is the absolute path of what the machine at a monitor has open by a relative
// one, which means nothing in this process; path itself, where that cannot be told.
func openedAt(monitor, path string) string {
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	pids, err := witness.Pack([]witness.Mark{witness.Mark(monitor)})
	if err != nil {
		return path
	}
	for _, pid := range pids {
		if abs := openedBy(pid, path); abs != "" {
			return abs
		}
	}
	return path
}

// openedBy is the absolute path of a file that a process has open and that has a name
// relative to its directory; "": there is none. A QEMU that put itself in the background
// (-daemonize) is in another directory than when it opened its disks, and one in a
// container sees other files by the same names, so what the file is called is not enough.
func openedBy(pid int, path string) string {
	proc := fmt.Sprintf("/proc/%d", pid)
	dir, err := os.Readlink(filepath.Join(proc, "cwd"))
	if err != nil {
		return ""
	}
	abs := filepath.Join(dir, path)
	file, err := os.Stat(abs)
	if err != nil {
		return ""
	}
	fds, err := os.ReadDir(filepath.Join(proc, "fd"))
	if err != nil {
		return ""
	}
	for _, fd := range fds {
		opened, err := os.Stat(filepath.Join(proc, "fd", fd.Name()))
		if err == nil && os.SameFile(file, opened) {
			return abs
		}
	}
	return ""
}
