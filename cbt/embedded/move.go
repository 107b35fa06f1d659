package embedded

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/nbd"
)

// ErrMoving says that a disk cannot be moved: it lies in an image already, or another
// move of it is under way.
var ErrMoving = errors.New("the disk lies in an image, or is being moved into one")

// lodging is the store of a disk that lives in the journal alone and may come to lie in
// an image while it is served. Until then its image, if one is being filled, gets every
// write that is recorded, and what becomes of the image concerns nobody else.
type lodging struct {
	head   headStore
	moving atomic.Pointer[filling]
	image  atomic.Pointer[image]
}

// filling is an image that is being made.
type filling struct {
	*image
	failed atomic.Pointer[error] // the first write that it did not take
}

func (f *filling) take(err error) {
	if err != nil {
		f.failed.CompareAndSwap(nil, &err)
	}
}

func (l *lodging) now() store {
	if i := l.image.Load(); i != nil {
		return i
	}
	return l.head
}

func (l *lodging) readAt(ctx context.Context, p []byte, off int64) error {
	return l.now().readAt(ctx, p, off)
}

func (l *lodging) writeAt(p []byte, off int64) error {
	if f := l.moving.Load(); f != nil {
		f.take(f.writeAt(p, off))
	}
	return l.now().writeAt(p, off)
}

func (l *lodging) zero(e cbt.Extent) error {
	if f := l.moving.Load(); f != nil {
		f.take(f.zero(e))
	}
	return l.now().zero(e)
}

func (l *lodging) sync(ctx context.Context) error { return l.now().sync(ctx) }
func (l *lodging) forget() error                  { return l.now().forget() }
func (l *lodging) standsAlone() bool              { return l.now().standsAlone() }
func (l *lodging) close() error                   { return l.now().close() }
func (l *lodging) status(ctx context.Context, e cbt.Extent) ([]nbd.StatusExtent, error) {
	return l.now().status(ctx, e)
}

// Move brings a disk that lives in the journal alone into o.Image, which must not exist
// or, if o.Device says so, be a block device that nobody uses, while it is served. Every write goes to the journal from the first to the last, and
// from the beginning of the move to the image too; the rest is copied piece by piece, each
// under the lock of its extent. At the end writes stand still until the image is durable
// and known to Memory: pause is how long. A move that fails, or is interrupted by
// anything, leaves the disk where it was; what there is of the image is removed, but for
// what a device holds.
func (d *Device) Move(ctx context.Context, o Options) (pause time.Duration, err error) {
	l, ok := d.store.(*lodging)
	if !ok || l.image.Load() != nil {
		return 0, fmt.Errorf("move volume %s: %w", d.o.Volume.Name, ErrMoving)
	}
	img, discard, err := begin(o, d.o.Volume.Size)
	if err != nil {
		return 0, fmt.Errorf("move volume %s: %w", d.o.Volume.Name, err)
	}
	into := &filling{image: img}
	if !l.moving.CompareAndSwap(nil, into) {
		err = ErrMoving
	} else {
		if err = d.fill(ctx, into, o.Progress); err == nil {
			pause, err = d.pivot(l, into, o)
		}
		if err != nil {
			d.gate.Lock() // no write is on its way to it
			l.moving.Store(nil)
			d.gate.Unlock()
		}
	}
	if err != nil {
		return 0, fmt.Errorf("move volume %s: %w", d.o.Volume.Name, errors.Join(err, discard()))
	}
	return pause, nil
}

// fill copies the head into an image that gets every write meanwhile.
func (d *Device) fill(ctx context.Context, into *filling, progress func(string, int64, int64)) error {
	const step = 1 << 20
	buf := make([]byte, step)
	for off := int64(0); off < d.o.Volume.Size; off += step {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		p := buf[:min(step, d.o.Volume.Size-off)]
		if err := d.fillPart(ctx, into, off, p); err != nil {
			return fmt.Errorf("copy at %d: %w", off, err)
		}
		if failed := into.failed.Load(); failed != nil {
			return *failed
		}
		if progress != nil {
			progress("copy", off+int64(len(p)), d.o.Volume.Size)
		}
	}
	return into.sync(ctx)
}

func (d *Device) fillPart(ctx context.Context, into *filling, off int64, p []byte) error {
	unlock, err := d.locks.lock(ctx, cbt.Extent{Offset: off, Length: int64(len(p))})
	if err != nil {
		return err
	}
	defer unlock()
	if err := d.o.Sink.ReadHead(ctx, d.o.Volume.ID, off, p); err != nil {
		return err
	}
	if isZero(p) {
		return into.zero(cbt.Extent{Offset: off, Length: int64(len(p))})
	}
	return into.writeAt(p, off)
}

// pivot makes the image the disk's. Reads go on; writes wait.
func (d *Device) pivot(l *lodging, into *filling, o Options) (time.Duration, error) {
	began := time.Now()
	d.gate.Lock()
	defer d.gate.Unlock()
	if failed := into.failed.Load(); failed != nil {
		return 0, *failed
	}
	if err := into.sync(context.Background()); err != nil {
		return 0, err
	}
	if o.Boot == "" {
		o.Boot = bootOf()
	}
	d.mu.Lock()
	d.o.Image, d.o.Device, d.o.Memory, d.o.History, d.o.Key, d.o.Boot, d.o.Log = o.Image, o.Device, o.Memory, o.History, o.Key, o.Boot, o.Log
	if d.o.Log == nil {
		d.o.Log = slog.New(slog.DiscardHandler)
	}
	d.o.Checkpoint = checkpointOr(o.Checkpoint)
	d.mu.Unlock()
	if err := o.Memory.Remember(d.key(), memo{Place: o.History.Head(), Boot: o.Boot}); err != nil {
		return 0, err
	}
	if o.Settle != nil {
		if err := o.Settle(); err != nil {
			return 0, err
		}
	}
	l.image.Store(into.image)
	l.moving.Store(nil)
	close(d.moved)
	return time.Since(began), nil
}
