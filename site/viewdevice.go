package site

import (
	"context"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/nbd"
	"github.com/novacron/afterimage/journal"
)

// image reads one volume of a view.
type image interface {
	ReadAt(ctx context.Context, vol cbt.VolumeID, p []byte, off int64) error
	Status(ctx context.Context, vol cbt.VolumeID, e cbt.Extent) ([]journal.StatusRun, error)
}

// viewDevice is a volume of a view as a read-only disk. What changes it is
// refused; the server never asks, since the export is read-only.
type viewDevice struct {
	view   image
	volume cbt.VolumeID
}

var _ nbd.Device = viewDevice{}

// ReadAt implements nbd.Device.
func (d viewDevice) ReadAt(ctx context.Context, p []byte, off int64) error {
	return d.view.ReadAt(ctx, d.volume, p, off)
}

// WriteAt implements nbd.Device.
func (viewDevice) WriteAt(context.Context, []byte, int64, bool) error { return nbd.EPERM }

// Zero implements nbd.Device.
func (viewDevice) Zero(context.Context, cbt.Extent, bool, bool) error { return nbd.EPERM }

// Trim implements nbd.Device.
func (viewDevice) Trim(context.Context, cbt.Extent, bool) error { return nbd.EPERM }

// Flush implements nbd.Device: there is nothing to flush.
func (viewDevice) Flush(context.Context) error { return nil }

// Status implements nbd.Device. What the journal holds no data for reads as zeros.
func (d viewDevice) Status(ctx context.Context, e cbt.Extent) ([]nbd.StatusExtent, error) {
	runs, err := d.view.Status(ctx, d.volume, e)
	if err != nil {
		return nil, err
	}
	out := make([]nbd.StatusExtent, 0, len(runs))
	for _, r := range runs {
		out = append(out, nbd.StatusExtent{Length: r.Length, Hole: !r.Data, Zero: !r.Data})
	}
	return out, nil
}
