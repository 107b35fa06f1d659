package embedded

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// ErrDevice says that a block device cannot hold a disk: it is too small, or somebody
// uses it.
var ErrDevice = errors.New("the block device cannot hold the disk")

// openDevice opens a block device that is a volume's image: its first size bytes. It is
// claimed as a file system claims it that is mounted from there (open(2), O_EXCL): while
// one is, or a logical volume or another of ours lies on it, that is refused, and nobody
// of those comes to it before the image is closed. A QEMU claims nothing, and so may have it open at the same time.
func openDevice(path string, size int64) (*image, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if st.Mode()&os.ModeDevice == 0 || st.Mode()&os.ModeCharDevice != 0 {
		return nil, fmt.Errorf("%w: %s is no block device", ErrDevice, path)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) {
		return nil, fmt.Errorf("%w: %s is mounted, or in use in another way: %w", ErrDevice, path, err)
	}
	if err != nil {
		return nil, err
	}
	has, err := f.Seek(0, io.SeekEnd)
	if err == nil && has < size {
		err = fmt.Errorf("%w: %s has %d bytes, the volume %d", ErrDevice, path, has, size)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &image{f: f, device: true}, nil
}

// begin makes the image that a disk is moved into: a file that is not there yet, or a
// device. discard undoes that; a device keeps what has come to it.
func begin(o Options, size int64) (i *image, discard func() error, err error) {
	if o.Device {
		if i, err = openDevice(o.Image, size); err != nil {
			return nil, nil, err
		}
		return i, i.close, nil
	}
	f, err := os.OpenFile(o.Image, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, nil, err
	}
	discard = func() error { return errors.Join(f.Close(), os.Remove(o.Image)) }
	if err := f.Truncate(size); err != nil {
		return nil, nil, errors.Join(err, discard())
	}
	return &image{f: f, fresh: true}, discard, nil
}
