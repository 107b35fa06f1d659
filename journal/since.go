package journal

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/novacron/afterimage/cbt"
)

// Since is what the head's history holds that the history of a position does not:
// what is given up by going back to it.
type Since struct {
	Records     uint64    // of any kind
	First, Last time.Time // of the first and last of them; zero when there is none
	Volumes     []Change  // of the volumes that changed, in the order of their ids
	// Partly says that some of the records were folded: Volumes counts those that are
	// left as they were written, Records all.
	Partly bool
}

// Change is what records did to one volume.
type Change struct {
	Volume    cbt.VolumeID
	Writes    uint64 // records of writes, zeros and trims: what the guest asked for
	Bytes     int64  // of their extents
	Fills     uint64 // records of blocks read from the live disk during a resync
	FillBytes int64
}

// Since counts the records of the current lineage that the lineage of p does not
// hold. It reads the headers of their frames, so it takes time by how many there are.
func (j *Journal) Since(ctx context.Context, p Position) (Since, error) {
	out, err := steady(j, func() (Since, error) { return j.since(ctx, p) })
	if err != nil {
		return Since{}, fmt.Errorf("count records since %s: %w", p, err)
	}
	return out, nil
}

func (j *Journal) since(ctx context.Context, p Position) (Since, error) {
	var out Since
	l, err := j.settled(ctx)
	if err != nil {
		return out, err
	}
	to, err := j.lineageAt(p)
	if err != nil {
		return out, err
	}
	vs, err := j.volumesIn(l)
	if err != nil {
		return out, err
	}
	ids := make(map[uint32]cbt.VolumeID, len(vs))
	for id, v := range vs {
		ids[v.Ordinal] = id
	}
	common := lastCommon(l, to).Seq
	by := make(map[cbt.VolumeID]*Change)
	for _, i := range l {
		if i.Last <= common {
			continue
		}
		i.First = max(i.First, common+1)
		if from := j.history().behind(j.ordinalOf(i.Epoch), i.First); from > i.First {
			gone := min(from, i.Last+1) - i.First
			out.Records, out.Partly, i.First = out.Records+uint64(gone), true, from
			if out.First.IsZero() { // no record is earlier than the point that is gone back to
				out.First, _ = j.timeAt(ctx, Position{p.Epoch, p.Seq})
			}
			if i.First > i.Last {
				continue
			}
		}
		err := j.eachRecord(ctx, i, func(r *record) {
			out.Records++
			if out.First.IsZero() {
				out.First = r.time
			}
			out.Last = r.time
			if !r.kind.hasExtent() && r.kind != KindSame {
				return
			}
			c := by[ids[r.volume]]
			if c == nil {
				c = &Change{Volume: ids[r.volume]}
				by[c.Volume] = c
			}
			if r.fills() {
				c.Fills++
				c.FillBytes += r.extent.Length
			} else {
				c.Writes++
				c.Bytes += r.extent.Length
			}
		})
		if err != nil {
			return out, err
		}
	}
	for _, c := range by {
		out.Volumes = append(out.Volumes, *c)
	}
	slices.SortFunc(out.Volumes, func(a, b Change) int { return cmp.Compare(a.Volume.String(), b.Volume.String()) })
	return out, nil
}

// eachRecord calls f for the records of an interval, in order, payloads aside.
func (j *Journal) eachRecord(ctx context.Context, i Interval, f func(*record)) error {
	at, err := j.frameOf(ctx, Position{i.Epoch, i.First})
	if err != nil {
		return err
	}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, meta, err := j.segs.frameAt(at.segment, at.offset)
		if errors.Is(err, errNoFrame) {
			if at, err = j.overTrailer(at); err == nil {
				continue
			}
		}
		if err != nil {
			return &DamageError{Hop: "read", Epoch: i.Epoch, Seq: i.First, File: segmentName(at.segment), Offset: at.offset, What: err.Error()}
		}
		if h.Epoch != i.Epoch {
			return fmt.Errorf("record %s.%d: %w", i.Epoch.Short(), i.Last, ErrNotContiguous)
		}
		recs, err := decodeRecords(h, meta)
		if err != nil {
			return &DamageError{Hop: "read", Epoch: h.Epoch, Seq: h.First, File: segmentName(at.segment), Offset: at.offset, What: err.Error()}
		}
		for k := range recs {
			if s := h.First + Seq(k); i.First <= s && s <= i.Last {
				f(&recs[k])
			}
		}
		if h.Last >= i.Last {
			return nil
		}
		at.offset += h.Bytes
	}
}
