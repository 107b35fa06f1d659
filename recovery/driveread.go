package recovery

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/novacron/afterimage/cbt"
)

// Bytes of a file that a QEMU has locks on, for what it does not let others do (QEMU,
// block/file-posix.c, RAW_LOCK_SHARED_BASE, with BLK_PERM_WRITE and BLK_PERM_RESIZE).
const (
	lockNoWrite  = 200 + 1
	lockNoResize = 200 + 3
)

// OpenToRead opens the drive of a machine that is off for reading alone: nothing of the
// image changes, not even what its format notes of who has it open. Until it is closed no
// QEMU can write to it, and while anybody has it open as a QEMU has, it is ErrUnread. A
// reader of a raw image lets others write to it, so the lock is one of our own.
func (d Drive) OpenToRead(ctx context.Context) (*OpenDrive, error) {
	lock, err := d.lockWriters()
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrUnread, d.Path, err)
	}
	o, err := d.open(ctx, "--read-only")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnread, errors.Join(err, lock.Close()))
	}
	o.lock = lock
	return o, nil
}

// lockWriters does as a QEMU does: it locks what it does not let others do, and then asks
// whether somebody does it already.
func (d Drive) lockWriters() (*os.File, error) {
	f, err := os.OpenFile(d.Path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	for _, at := range []int64{lockNoWrite, lockNoResize} {
		if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK, Start: at, Len: 1}); err != nil {
			return nil, errors.Join(fmt.Errorf("lock byte %d: %w", at, err), f.Close())
		}
	}
	held, err := locked(f) // by others: our own locks are not told of
	if err == nil && held {
		err = errors.New("a process has it open")
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// CheckToRead tells, beside a machine that runs, what would keep this process from reading
// the drive once the machine is off.
func (d Drive) CheckToRead() error {
	if _, err := d.driver(); err != nil {
		return fmt.Errorf("%w: %w", ErrUnread, err)
	}
	if err := unix.Access(d.Path, unix.R_OK); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrUnread, d.Path, err)
	}
	return nil
}

// Differences reads all of the drive and compares it with head, whose length is size:
// told hears in ascending order of each extent, of cells and of at most a megabyte, in
// which the two differ, with what the drive holds there; data is told's to keep, and nil
// for zeros. read is how many bytes had to be read: of what the drive knows to be zeros
// none are.
func (o *OpenDrive) Differences(ctx context.Context, size int64, head func(ctx context.Context, p []byte, off int64) error, told func(ctx context.Context, e cbt.Extent, data []byte) error) (read int64, err error) {
	if o.Size() != size {
		return 0, fmt.Errorf("%w: %s has %d bytes, the volume %d", ErrUnread, o.Path, o.Size(), size)
	}
	l := levelling{o: o, head: head, have: make([]byte, copyBytes), want: make([]byte, copyBytes)}
	for off := int64(0); off < size; off += copyBytes {
		e := cbt.Extent{Offset: off, Length: min(copyBytes, size-off)}
		n, err := l.tell(ctx, e, told)
		read += n
		if err != nil {
			return read, fmt.Errorf("read %s at %d: %w", o.Path, off, err)
		}
	}
	return read, nil
}

// tell compares one piece.
func (l *levelling) tell(ctx context.Context, e cbt.Extent, told func(context.Context, cbt.Extent, []byte) error) (read int64, err error) {
	have, want := l.have[:e.Length], l.want[:e.Length]
	if err := l.head(ctx, want, e.Offset); err != nil {
		return 0, err
	}
	empty, err := l.readsZero(ctx, e)
	if err != nil {
		return 0, err
	}
	if clear(have); !empty {
		if err := l.o.client.ReadAt(ctx, have, e.Offset); err != nil {
			return 0, err
		}
		read = e.Length
	}
	for _, d := range differing(have, want) {
		at := cbt.Extent{Offset: e.Offset + d.Offset, Length: d.Length}
		var data []byte
		if p := have[d.Offset:d.End()]; !zeros(p) {
			data = append(data, p...)
		}
		if err := told(ctx, at, data); err != nil {
			return read, err
		}
	}
	return read, nil
}

// Steady is nil if the drive reads, once more and past the page cache, as head says:
// ErrUnsteady names where it does not.
func (o *OpenDrive) Steady(ctx context.Context, size int64, head func(ctx context.Context, p []byte, off int64) error) error {
	o.forget()
	_, err := o.Differences(ctx, size, head, func(_ context.Context, e cbt.Extent, _ []byte) error {
		return fmt.Errorf("%w: bytes %v", ErrUnsteady, e)
	})
	return err
}
