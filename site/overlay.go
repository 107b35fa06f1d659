package site

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/nbd"
)

// overlay makes a read-only disk writable: what is written lies in a sparse,
// nameless file and is forgotten with the overlay. Only the list of written ranges is in
// memory; neighbours are joined.
type overlay struct {
	below nbd.Device
	size  int64
	file  *os.File

	mu    sync.RWMutex // guards written and orders changes of the file
	spans []cbt.Extent // written, ascending, disjoint, not touching
}

var _ nbd.Device = (*overlay)(nil)

// newOverlay lays a scratch layer over a disk of size bytes; the file is made in dir.
func newOverlay(dir string, below nbd.Device, size int64) (*overlay, error) {
	f, err := os.CreateTemp(dir, "scratch-*")
	if err != nil {
		return nil, fmt.Errorf("make scratch layer: %w", err)
	}
	if err := errors.Join(os.Remove(f.Name()), f.Truncate(size)); err != nil {
		return nil, errors.Join(fmt.Errorf("make scratch layer: %w", err), f.Close())
	}
	return &overlay{below: below, size: size, file: f}, nil
}

// Close forgets what was written.
func (o *overlay) Close() error { return o.file.Close() }

// around finds the written ranges that touch e: spans[first:last].
func (o *overlay) around(e cbt.Extent) (first, last int) {
	first, _ = slices.BinarySearchFunc(o.spans, e.Offset, func(s cbt.Extent, off int64) int {
		if s.End() < off {
			return -1
		}
		return 1
	})
	last = first
	for last < len(o.spans) && o.spans[last].Offset <= e.End() {
		last++
	}
	return first, last
}

// add notes that e was written.
func (o *overlay) add(e cbt.Extent) {
	first, last := o.around(e)
	if first < last {
		from, to := min(e.Offset, o.spans[first].Offset), max(e.End(), o.spans[last-1].End())
		e = cbt.Extent{Offset: from, Length: to - from}
	}
	o.spans = slices.Replace(o.spans, first, last, e)
}

// pieces splits e into what was written and what was not, in order.
func (o *overlay) pieces(e cbt.Extent, each func(piece cbt.Extent, written bool) error) error {
	first, last := o.around(e)
	at := e.Offset
	for _, s := range o.spans[first:last] {
		from, to := max(s.Offset, e.Offset), min(s.End(), e.End())
		if from >= to {
			continue
		}
		if from > at {
			if err := each(cbt.Extent{Offset: at, Length: from - at}, false); err != nil {
				return err
			}
		}
		if err := each(cbt.Extent{Offset: from, Length: to - from}, true); err != nil {
			return err
		}
		at = to
	}
	if at < e.End() {
		return each(cbt.Extent{Offset: at, Length: e.End() - at}, false)
	}
	return nil
}

// ReadAt implements nbd.Device.
func (o *overlay) ReadAt(ctx context.Context, p []byte, off int64) error {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return o.pieces(cbt.Extent{Offset: off, Length: int64(len(p))}, func(e cbt.Extent, written bool) error {
		part := p[e.Offset-off : e.End()-off]
		if !written {
			return o.below.ReadAt(ctx, part, e.Offset)
		}
		_, err := o.file.ReadAt(part, e.Offset)
		return err
	})
}

// WriteAt implements nbd.Device. Nothing of an overlay survives, so fua is met.
func (o *overlay) WriteAt(_ context.Context, p []byte, off int64, _ bool) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, err := o.file.WriteAt(p, off); err != nil {
		return err
	}
	o.add(cbt.Extent{Offset: off, Length: int64(len(p))})
	return nil
}

// zeroes is written where a hole cannot be punched.
var zeroes [1 << 20]byte

// Zero implements nbd.Device.
func (o *overlay) Zero(_ context.Context, e cbt.Extent, _, _ bool) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if err := punch(o.file, e); err != nil {
		for at := e.Offset; at < e.End(); {
			n := min(int64(len(zeroes)), e.End()-at)
			if _, err := o.file.WriteAt(zeroes[:n], at); err != nil {
				return err
			}
			at += n
		}
	}
	o.add(e)
	return nil
}

// Trim implements nbd.Device: trimmed ranges read as zeros.
func (o *overlay) Trim(ctx context.Context, e cbt.Extent, fua bool) error {
	return o.Zero(ctx, e, fua, false)
}

// Flush implements nbd.Device.
func (o *overlay) Flush(context.Context) error { return nil }

// Status implements nbd.Device. Written ranges count as data.
func (o *overlay) Status(ctx context.Context, e cbt.Extent) ([]nbd.StatusExtent, error) {
	o.mu.RLock()
	defer o.mu.RUnlock()
	var out []nbd.StatusExtent
	stopped := errors.New("the layer below told less than all")
	err := o.pieces(e, func(piece cbt.Extent, written bool) error {
		if written {
			out = append(out, nbd.StatusExtent{Length: piece.Length})
			return nil
		}
		below, err := o.below.Status(ctx, piece)
		if err != nil {
			return err
		}
		told := int64(0)
		for _, b := range below {
			told += b.Length
		}
		out = append(out, below...)
		if told < piece.Length {
			return stopped
		}
		return nil
	})
	if errors.Is(err, stopped) {
		err = nil
	}
	return out, err
}
