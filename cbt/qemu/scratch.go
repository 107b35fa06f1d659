package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/novacron/afterimage/cbt"
)

// scratchFloor is the room, besides twice what is to be copied, that a round wants
// where it copies aside: a guest's write fails when QEMU cannot.
const scratchFloor = 64 << 20

// scratch is the file into which QEMU copies one disk's part of a held instant. It
// is ours on disk: neither the guest's progress nor the end of the job needs us.
type scratch struct {
	node string // and the job's id
	file *os.File
}

// prepareScratch makes an empty file as long as the disk, and a node of it.
func (c *collected) prepareScratch(ctx context.Context) error {
	o := c.disk.opts
	name := freshName(c.tap.volume.ID, "s")
	f, err := os.OpenFile(filepath.Join(o.Dir, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("make scratch: %w", err)
	}
	c.scratch = &scratch{node: name, file: f}
	err = f.Truncate(c.tap.volume.Size)
	if err == nil && o.SocketOwner != 0 {
		err = f.Chown(o.SocketOwner, -1)
	}
	if err == nil && o.SocketMode&0o022 != 0 {
		err = f.Chmod(o.SocketMode & 0o666)
	}
	if err != nil {
		return fmt.Errorf("make scratch: %w", err)
	}
	err = c.machine.do(ctx, "blockdev-add", args{"driver": "file", "node-name": name, "filename": f.Name(), "discard": "unmap"}, nil)
	if err != nil {
		return fmt.Errorf("add scratch node: %w", err)
	}
	return nil
}

// roomFor reports whether bytes can be copied aside in dir.
func roomFor(dir string, bytes int64) error {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("look for room in %s: %w", dir, err)
	}
	if room := int64(fs.Bavail) * fs.Bsize; room < 2*bytes+scratchFloor {
		return breakage(cbt.CauseDiskFull, fmt.Errorf("%d bytes are to be copied aside, %s has room for %d", bytes, dir, room))
	}
	return nil
}

// remove frees the file; nil does nothing.
func (s *scratch) remove() {
	if s == nil {
		return
	}
	_ = os.Remove(s.file.Name()) // a sweep takes what is left
	_ = s.file.Close()
}

// sweepScratch removes the files that an earlier life left for this disk.
func (d *disk) sweepScratch() error {
	names, err := filepath.Glob(filepath.Join(d.opts.Dir, prefix(d.conf.Volume.ID)+"s*"))
	if err != nil {
		return err
	}
	for _, n := range names {
		err = errors.Join(err, os.Remove(n))
	}
	return err
}
