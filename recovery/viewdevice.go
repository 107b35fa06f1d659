package recovery

import (
	"context"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/nbd"
	"github.com/novacron/afterimage/journal"
)

// Image reads volumes as of one moment; *journal.View is one.
type Image interface {
	ReadAt(ctx context.Context, vol cbt.VolumeID, p []byte, off int64) error
	Status(ctx context.Context, vol cbt.VolumeID, e cbt.Extent) ([]journal.StatusRun, error)
	Materialize(ctx context.Context, vol cbt.VolumeID, each func(e cbt.Extent, p []byte) error) error
}

var _ Image = (*journal.View)(nil)

// ViewDevice is a volume of an image as a read-only disk: changes are EPERM, what
// the journal holds no data for is a hole. It is safe for concurrent use.
func ViewDevice(v Image, volume cbt.VolumeID) nbd.Device { return viewDevice{v, volume} }

type viewDevice struct {
	view   Image
	volume cbt.VolumeID
}

func (d viewDevice) ReadAt(ctx context.Context, p []byte, off int64) error {
	return d.view.ReadAt(ctx, d.volume, p, off)
}

func (viewDevice) WriteAt(context.Context, []byte, int64, bool) error { return nbd.EPERM }
func (viewDevice) Zero(context.Context, cbt.Extent, bool, bool) error { return nbd.EPERM }
func (viewDevice) Trim(context.Context, cbt.Extent, bool) error       { return nbd.EPERM }
func (viewDevice) Flush(context.Context) error                        { return nil }

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
