package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/testbed/stamp"
)

// reader finds the newest stamp in the newest durable point at b. It knows nothing
// of the product but how to open a point and read a disk.
type reader struct {
	b          *journal.Journal
	volume     cbt.VolumeID
	writeBytes int64
	last       uint64 // found before: the search begins there
}

// newest is the stamp and the moment after which it was found to be the newest; the
// zero stamp while there is none.
func (r *reader) newest(ctx context.Context) (stamp.Stamp, time.Time, error) {
	b := r.b
	d := b.Head().Durable
	if d.Seq == 0 {
		return stamp.Stamp{}, time.Time{}, nil
	}
	now := time.Now()
	at, err := journal.ParseAt("#" + d.Seq.String())
	if err != nil {
		return stamp.Stamp{}, now, err
	}
	p, err := b.Resolve(ctx, at)
	if errors.Is(err, journal.ErrNoPoint) {
		return stamp.Stamp{}, now, nil // before the first interval
	}
	if err != nil {
		return stamp.Stamp{}, now, err
	}
	v, err := b.View(ctx, p)
	if err != nil {
		return stamp.Stamp{}, now, err
	}
	defer v.Close()
	s, err := r.search(func(k uint64) (stamp.Stamp, error) { return r.read(ctx, v, k) })
	return s, now, err
}

// search finds the highest k of which stamp k is there: they are written in order,
// so from a known one on they are there up to some k and missing after it.
func (r *reader) search(read func(k uint64) (stamp.Stamp, error)) (stamp.Stamp, error) {
	low, step := r.last, uint64(1)
	for { // low is there, or 0
		s, err := read(low + step)
		if err != nil {
			return s, err
		}
		if s.Number < low+step {
			break
		}
		low, step = s.Number, step*2
	}
	high := low + step // is not there
	for low+1 < high {
		mid := (low + high) / 2
		s, err := read(mid)
		if err != nil {
			return s, err
		}
		if s.Number >= mid {
			low = s.Number
		} else {
			high = mid
		}
	}
	r.last = low
	if low == 0 {
		return stamp.Stamp{}, nil
	}
	return read(low)
}

// read is the stamp in k's slot, zero if there is none.
func (r *reader) read(ctx context.Context, v *journal.View, k uint64) (stamp.Stamp, error) {
	p := make([]byte, stampBytes)
	if err := v.ReadAt(ctx, r.volume, p, int64(k%slots)*r.writeBytes); err != nil {
		return stamp.Stamp{}, err
	}
	s, err := stamp.Decode(p)
	if errors.Is(err, stamp.ErrEmpty) {
		return stamp.Stamp{}, nil
	}
	if err == nil && s.Number%slots != k%slots {
		err = fmt.Errorf("stamp %d lies in the slot of %d", s.Number, k)
	}
	return s, err
}
