package nbdtest

import (
	"context"
	"sync"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/nbd"
)

// Op is one call of a device.
type Op struct {
	Kind   string // read, write, zero, trim, flush, status
	Extent cbt.Extent
	FUA    bool
	N      int // calls of this kind so far, from 1
}

// Fault is a device with a hook in front: what the hook returns instead of nil
// is the call's error, and as long as it waits the call hangs. A nil Before
// lets everything pass.
type Fault struct {
	nbd.Device
	Before func(ctx context.Context, op Op) error

	mu     sync.Mutex // guards counts
	counts map[string]int
}

// FailNth is a hook that fails the nth call of kind with err.
func FailNth(kind string, n int, err error) func(context.Context, Op) error {
	return func(_ context.Context, op Op) error {
		if op.Kind == kind && op.N == n {
			return err
		}
		return nil
	}
}

// HangUntil is a hook that holds calls of kind until release is closed; with
// obedient, until their context ends as well, whose cause is then the error.
// Each held call is announced on held, which may be nil.
func HangUntil(kind string, release <-chan struct{}, obedient bool, held chan<- Op) func(context.Context, Op) error {
	return func(ctx context.Context, op Op) error {
		if op.Kind != kind {
			return nil
		}
		if held != nil {
			held <- op
		}
		if !obedient {
			<-release
			return nil
		}
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (f *Fault) before(ctx context.Context, kind string, e cbt.Extent, fua bool) error {
	f.mu.Lock()
	if f.counts == nil {
		f.counts = make(map[string]int)
	}
	f.counts[kind]++
	n := f.counts[kind]
	f.mu.Unlock()
	if f.Before == nil {
		return nil
	}
	return f.Before(ctx, Op{Kind: kind, Extent: e, FUA: fua, N: n})
}

// Count is how many calls of kind there were.
func (f *Fault) Count(kind string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.counts[kind]
}

// ReadAt implements nbd.Device.
func (f *Fault) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := f.before(ctx, "read", cbt.Extent{Offset: off, Length: int64(len(p))}, false); err != nil {
		return err
	}
	return f.Device.ReadAt(ctx, p, off)
}

// WriteAt implements nbd.Device.
func (f *Fault) WriteAt(ctx context.Context, p []byte, off int64, fua bool) error {
	if err := f.before(ctx, "write", cbt.Extent{Offset: off, Length: int64(len(p))}, fua); err != nil {
		return err
	}
	return f.Device.WriteAt(ctx, p, off, fua)
}

// Zero implements nbd.Device.
func (f *Fault) Zero(ctx context.Context, e cbt.Extent, fua, noHole bool) error {
	if err := f.before(ctx, "zero", e, fua); err != nil {
		return err
	}
	return f.Device.Zero(ctx, e, fua, noHole)
}

// Trim implements nbd.Device.
func (f *Fault) Trim(ctx context.Context, e cbt.Extent, fua bool) error {
	if err := f.before(ctx, "trim", e, fua); err != nil {
		return err
	}
	return f.Device.Trim(ctx, e, fua)
}

// Flush implements nbd.Device.
func (f *Fault) Flush(ctx context.Context) error {
	if err := f.before(ctx, "flush", cbt.Extent{}, false); err != nil {
		return err
	}
	return f.Device.Flush(ctx)
}

// Status implements nbd.Device.
func (f *Fault) Status(ctx context.Context, e cbt.Extent) ([]nbd.StatusExtent, error) {
	if err := f.before(ctx, "status", e, false); err != nil {
		return nil, err
	}
	return f.Device.Status(ctx, e)
}
