package journal

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/novacron/afterimage/cbt"
)

// View is a group's image at a point. It is read-only and safe for concurrent use;
// reading through it changes nothing. Every cell read is verified; a damaged one is
// a *DamageError and spoils no other.
type View struct {
	point   Point
	as      *asOf
	volumes map[cbt.VolumeID]volumeBody
	closed  sync.Once
}

// View opens the group's image at p, which Resolve or a mark gave: the volumes that
// the point covers. It works in
// constant time and memory, whatever the history. The point is kept until Close.
func (j *Journal) View(ctx context.Context, p Point) (*View, error) {
	if err := j.waitHeld(ctx, p.Position); err != nil {
		return nil, fmt.Errorf("open view: %w", err)
	}
	l, err := j.lineageAt(p.Position)
	if err != nil {
		return nil, fmt.Errorf("open view: %w", err)
	}
	vs, err := j.pictured(l, p)
	if err != nil {
		return nil, fmt.Errorf("open view: %w", err)
	}
	if err := j.use(p.Position); err != nil {
		return nil, fmt.Errorf("open view: %w", err)
	}
	as := j.reader(l)
	as.view, as.touches = j.viewsOpened.Add(1), new(touches)
	return &View{point: p, as: as, volumes: vs}, nil
}

// Peek reads volume vol as of p, once, without keeping that point: what is thinned at
// that very moment may read as something newer. It is for who only wants an impression.
func (j *Journal) Peek(ctx context.Context, p Position, vol cbt.VolumeID, b []byte, off int64) error {
	if err := j.waitHeld(ctx, p); err != nil {
		return err
	}
	l, err := j.lineageAt(p)
	if err != nil {
		return err
	}
	vs, err := j.volumesIn(l)
	if err != nil {
		return err
	}
	v, ok := vs[vol]
	if !ok {
		return fmt.Errorf("peek: volume %s: %w", vol, ErrUnknownVolume)
	}
	return j.reader(l).readAt(ctx, v, b, off)
}

// Point is the moment that v shows.
func (v *View) Point() Point { return v.point }

// Volumes is the group's disks at the point, by name.
func (v *View) Volumes() []cbt.Volume { return volumeList(v.volumes) }

func volumeList(m map[cbt.VolumeID]volumeBody) []cbt.Volume {
	var out []cbt.Volume
	for _, b := range m {
		out = append(out, cbt.Volume{ID: b.ID, Name: b.Name, Size: b.Size})
	}
	slices.SortFunc(out, func(a, b cbt.Volume) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// ReadAt fills p from volume vol at off; any offset and length inside it.
func (v *View) ReadAt(ctx context.Context, vol cbt.VolumeID, p []byte, off int64) error {
	b, ok := v.volumes[vol]
	if !ok {
		return fmt.Errorf("read view: volume %s: %w", vol, ErrUnknownVolume)
	}
	return v.as.readAt(ctx, b, p, off)
}

// Status is the runs of data and of zeros that make up e, in order.
func (v *View) Status(ctx context.Context, vol cbt.VolumeID, e cbt.Extent) ([]StatusRun, error) {
	b, ok := v.volumes[vol]
	if !ok {
		return nil, fmt.Errorf("status of view: volume %s: %w", vol, ErrUnknownVolume)
	}
	return v.as.status(ctx, b, e)
}

// Close ends the view: from then on retention need not keep what it shows.
func (v *View) Close() error {
	v.closed.Do(func() { v.as.j.leave(v.point.Position) })
	return nil
}

// lineageAt is the history that ends with p.
func (j *Journal) lineageAt(p Position) (Lineage, error) {
	if p.IsZero() {
		return nil, nil
	}
	j.mu.Lock()
	bs := append([]Branch(nil), j.branches...)
	if n := len(bs); n > 0 {
		bs[n-1].Last.Seq = max(j.written, bs[n-1].Parent.Seq)
	}
	j.mu.Unlock()
	l, err := LineageOf(bs, p.Epoch)
	if err != nil {
		return nil, err
	}
	if l = l.Until(p.Seq); !l.Holds(p) {
		return nil, &NoPointError{At: p.String(), Why: "the epoch does not hold that record"}
	}
	return l, nil
}
