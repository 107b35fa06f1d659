package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/novacron/afterimage/testbed/stamp"
)

// bufferBytes is what one direct read or write of a disk moves at most.
const bufferBytes = 64 * stamp.Size

// disk is one volume, opened past the page cache: a write is on the medium when it
// returns (O_DSYNC), a read comes from it. Its owner is one goroutine at a time.
type disk struct {
	file  *os.File
	bytes int64
	buf   []byte // bufferBytes, page-aligned as O_DIRECT wants it
}

// openDisks opens the virtio disks in the order of their letters. The nodes are
// there once virtio_blk is inserted: its probe ends before insertion returns.
func openDisks() ([]*disk, error) {
	paths, err := filepath.Glob("/dev/vd[a-z]")
	if err != nil {
		return nil, err
	}
	slices.Sort(paths)
	var disks []*disk
	for _, path := range paths {
		f, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT|unix.O_DSYNC, 0)
		if err != nil {
			return nil, err
		}
		size, err := f.Seek(0, 2)
		if err != nil {
			return nil, fmt.Errorf("size of %s: %w", path, err)
		}
		buf, err := unix.Mmap(-1, 0, bufferBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
		if err != nil {
			return nil, err
		}
		disks = append(disks, &disk{file: f, bytes: size, buf: buf})
	}
	return disks, nil
}

// close gives the device up, which may have gone.
func (d *disk) close() {
	d.file.Close()
	if err := unix.Munmap(d.buf); err != nil {
		panic(err) // it was mapped by openDisks
	}
}

// ReadAt reads at most bufferBytes, in whole stamps: what stamp.Scan asks for.
func (d *disk) ReadAt(p []byte, off int64) (int, error) {
	n, err := d.file.ReadAt(d.buf[:len(p)], off)
	copy(p, d.buf[:n])
	return n, err
}

// write puts s into its slot, durably.
func (d *disk) write(s stamp.Stamp, slots uint64) error {
	s.Encode(d.buf)
	_, err := d.file.WriteAt(d.buf[:stamp.Size], stamp.Offset(s.Number, slots))
	return err
}
