package embedded

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/nbd"
)

// store is where a volume's content lies besides the journal.
type store interface {
	readAt(ctx context.Context, p []byte, off int64) error
	writeAt(p []byte, off int64) error
	zero(e cbt.Extent) error
	sync(ctx context.Context) error
	forget() error // what is read next comes from the disk, as far as that can be asked for
	status(ctx context.Context, e cbt.Extent) ([]nbd.StatusExtent, error)
	standsAlone() bool // it holds every write by itself
	close() error
}

func applyTo(s store, ev cbt.Event) error {
	if ev.Data != nil {
		return s.writeAt(ev.Data, ev.Extent.Offset)
	}
	return s.zero(ev.Extent)
}

// headStore is the journal's head: what is recorded needs no second place.
type headStore struct {
	sink cbt.Sink
	v    cbt.Volume
}

func (h headStore) readAt(ctx context.Context, p []byte, off int64) error {
	e := cbt.Extent{Offset: off, Length: int64(len(p))}
	if e.Aligned() {
		return h.sink.ReadHead(ctx, h.v.ID, off, p)
	}
	whole := e.Round()
	buf := make([]byte, whole.Length)
	if err := h.sink.ReadHead(ctx, h.v.ID, whole.Offset, buf); err != nil {
		return err
	}
	copy(p, buf[off-whole.Offset:])
	return nil
}
func (headStore) writeAt([]byte, int64) error { return nil }
func (headStore) zero(cbt.Extent) error       { return nil }
func (headStore) sync(context.Context) error  { return nil }
func (headStore) forget() error               { return nil }
func (headStore) standsAlone() bool           { return false }
func (headStore) close() error                { return nil }
func (headStore) status(_ context.Context, e cbt.Extent) ([]nbd.StatusExtent, error) {
	return []nbd.StatusExtent{{Length: e.Length}}, nil
}

// image is a raw file, or a block device.
type image struct {
	f      *os.File
	fresh  bool // made by this opening
	device bool
}

// openImage opens path, which must be size bytes long, or makes it, sparse.
func openImage(path string, size int64) (*image, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	i := &image{f: f}
	st, err := f.Stat()
	switch {
	case err != nil:
	case !st.Mode().IsRegular():
		err = fmt.Errorf("image %s is not a regular file", path)
	case st.Size() == 0:
		i.fresh, err = true, f.Truncate(size)
	case st.Size() != size:
		err = fmt.Errorf("image %s has %d bytes, the volume %d", path, st.Size(), size)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return i, nil
}

func (i *image) readAt(_ context.Context, p []byte, off int64) error {
	n, err := i.f.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

func (i *image) writeAt(p []byte, off int64) error {
	_, err := i.f.WriteAt(p, off)
	return err
}

// zero punches a hole, or writes zeros where the file system cannot, or the device: that
// refuses what is not whole blocks of its own as invalid.
func (i *image) zero(e cbt.Extent) error {
	err := unix.Fallocate(int(i.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, e.Offset, e.Length)
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOSYS) && !(i.device && errors.Is(err, unix.EINVAL)) {
		return err
	}
	zeros := make([]byte, min(e.Length, 1<<20))
	for at := e.Offset; at < e.End(); at += int64(len(zeros)) {
		if _, err := i.f.WriteAt(zeros[:min(int64(len(zeros)), e.End()-at)], at); err != nil {
			return err
		}
	}
	return nil
}

func (i *image) sync(context.Context) error { return i.f.Sync() }
func (i *image) forget() error {
	return unix.Fadvise(int(i.f.Fd()), 0, 0, unix.FADV_DONTNEED)
}
func (i *image) standsAlone() bool { return true }
func (i *image) close() error      { return i.f.Close() }

// status asks the file system for holes (lseek(2), SEEK_DATA). A device has none.
func (i *image) status(_ context.Context, e cbt.Extent) ([]nbd.StatusExtent, error) {
	if i.device {
		return []nbd.StatusExtent{{Length: e.Length}}, nil
	}
	var out []nbd.StatusExtent
	fd := int(i.f.Fd())
	for at := e.Offset; at < e.End(); {
		data, err := unix.Seek(fd, at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			data, err = e.End(), nil
		}
		if err != nil {
			return nil, fmt.Errorf("find holes: %w", err)
		}
		if data = min(data, e.End()); data > at {
			out = append(out, nbd.StatusExtent{Length: data - at, Hole: true, Zero: true})
			at = data
			continue
		}
		hole, err := unix.Seek(fd, at, unix.SEEK_HOLE)
		if err != nil {
			return nil, fmt.Errorf("find holes: %w", err)
		}
		hole = min(hole, e.End())
		out = append(out, nbd.StatusExtent{Length: hole - at})
		at = hole
	}
	return out, nil
}
