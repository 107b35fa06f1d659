package bench

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// disk is where a run works, and what is known of it.
type disk struct {
	dir    string
	inRAM  bool
	direct bool   // O_DIRECT is to be had
	stat   string // of the block device; empty where it cannot be told
	drop   bool   // the page cache can be dropped as a whole
}

const tmpfsMagic = 0x01021994

// diskOf looks at the disk below dir, which exists.
func diskOf(dir string) (disk, error) {
	d := disk{dir: dir}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return d, fmt.Errorf("look at %s: %w", dir, err)
	}
	d.inRAM = fs.Type == tmpfsMagic
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return d, fmt.Errorf("look at %s: %w", dir, err)
	}
	path := fmt.Sprintf("/sys/dev/block/%d:%d/stat", unix.Major(st.Dev), unix.Minor(st.Dev))
	if _, err := os.Stat(path); err == nil {
		d.stat = path
	}
	f, err := d.open(filepath.Join(dir, "probe"), os.O_RDWR|os.O_CREATE)
	if err != nil {
		return d, err
	}
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	d.direct = err == nil && flags&unix.O_DIRECT != 0
	d.drop = unix.Access("/proc/sys/vm/drop_caches", unix.W_OK) == nil
	return d, errors.Join(f.Close(), os.Remove(f.Name()))
}

// open opens a file for direct access, or without where there is none.
func (d disk) open(path string, flags int) (*os.File, error) {
	f, err := os.OpenFile(path, flags|unix.O_DIRECT, 0o600)
	if errors.Is(err, unix.EINVAL) {
		f, err = os.OpenFile(path, flags, 0o600)
	}
	return f, err
}

// free is how many bytes the disk has room for.
func (d disk) free() int64 {
	var fs unix.Statfs_t
	if unix.Statfs(d.dir, &fs) != nil {
		return 0
	}
	return int64(fs.Bavail) * fs.Bsize
}

// settle writes back what is dirty, so that no stretch pays for another.
func (d disk) settle() error {
	f, err := os.Open(d.dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
}

// written counts the bytes written so far: to the block device by everybody, and by
// this process. Where the device cannot be told, device is -1.
func (d disk) written() (device, process int64) {
	device, process = -1, -1
	if b, err := os.ReadFile(d.stat); err == nil {
		if f := strings.Fields(string(b)); len(f) > 6 {
			if n, err := strconv.ParseInt(f[6], 10, 64); err == nil {
				device = n * 512 // sectors of the kernel, whatever the device's are
			}
		}
	}
	if b, err := os.ReadFile("/proc/self/io"); err == nil {
		for line := range strings.Lines(string(b)) {
			if v, ok := strings.CutPrefix(line, "write_bytes: "); ok {
				process, _ = strconv.ParseInt(strings.TrimSpace(v), 10, 64) // the kernel prints a number
			}
		}
	}
	return device, process
}

// counter is how written bytes are told.
func (d disk) counter() string {
	if d.stat != "" {
		return "block device, whoever wrote"
	}
	return "this process"
}

// dropCache empties the page cache of all files below dir, or of everything.
func (d disk) dropCache() error {
	if err := d.settle(); err != nil {
		return err
	}
	if d.drop {
		return os.WriteFile("/proc/sys/vm/drop_caches", []byte("1"), 0)
	}
	return filepath.WalkDir(d.dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return nil // a file that goes meanwhile is not cached any more
		}
		f, err := os.Open(path)
		if err != nil {
			return nil
		}
		return errors.Join(unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED), f.Close())
	})
}

func (d disk) dropper() string {
	if d.drop {
		return "drop_caches"
	}
	return "posix_fadvise"
}

// aligned is n bytes that O_DIRECT takes.
func aligned(n int) ([]byte, error) {
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, fmt.Errorf("allocate %d bytes: %w", n, err)
	}
	return b, nil
}

// dirBytes is what the files below dir take.
func dirBytes(dir string) (int64, error) {
	var sum int64
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		i, err := e.Info()
		if err == nil {
			sum += i.Size()
		}
		return err
	})
	return sum, err
}
