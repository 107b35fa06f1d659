package journal

import (
	"context"
	"errors"
	"fmt"

	"github.com/novacron/afterimage/cbt"
)

// Diff lists where the images at p and q may differ, in extents that are disjoint,
// in order and made of sectors, for every volume that either point knows. Each lies
// in the volume's larger size. It never leaves out a sector that differs; it may
// name one that was written with what it held, and within folded history one that
// changed between a point that is gone and the next that is kept.
func (j *Journal) Diff(ctx context.Context, p, q Position) (map[cbt.VolumeID][]cbt.Extent, error) {
	out, err := j.diff(ctx, p, q)
	if err != nil {
		return nil, fmt.Errorf("compare %s with %s: %w", p, q, err)
	}
	return out, nil
}

func (j *Journal) diff(ctx context.Context, p, q Position) (map[cbt.VolumeID][]cbt.Extent, error) {
	var ls [2]Lineage
	var vs [2]map[cbt.VolumeID]volumeBody
	for k, at := range []Position{p, q} {
		err := j.waitHeld(ctx, at)
		if err == nil {
			ls[k], err = j.lineageAt(at)
		}
		if err == nil {
			vs[k], err = j.volumesIn(ls[k])
		}
		if err != nil {
			return nil, err
		}
	}
	common := lastCommon(ls[0], ls[1]).Seq
	ordinals := make(map[uint32]Interval) // what either holds beyond the common record
	for _, l := range ls {
		for _, i := range l {
			if i.Last > common {
				i.First = max(i.First, common+1)
				o := j.ordinalOf(i.Epoch)
				if was, ok := ordinals[o]; ok {
					i.First, i.Last = min(i.First, was.First), max(i.Last, was.Last)
				}
				ordinals[o] = i
			}
		}
	}
	out := make(map[cbt.VolumeID][]cbt.Extent)
	for id := range union(vs[0], vs[1]) {
		a, b := vs[0][id], vs[1][id]
		changed := newExtents(max(a.Size, b.Size))
		if a.Size != b.Size {
			changed.add(cbt.Extent{Offset: min(a.Size, b.Size), Length: max(a.Size, b.Size) - min(a.Size, b.Size)})
		}
		err := j.changedIn(ctx, a.Ordinal, ordinals, changed)
		if err == nil && b.Ordinal != a.Ordinal { // added anew on another branch
			err = j.changedIn(ctx, b.Ordinal, ordinals, changed)
		}
		if err != nil {
			return nil, err
		}
		out[id] = changed.merged()
	}
	return out, nil
}

func union(a, b map[cbt.VolumeID]volumeBody) map[cbt.VolumeID]bool {
	out := make(map[cbt.VolumeID]bool)
	for id := range a {
		out[id] = true
	}
	for id := range b {
		out[id] = true
	}
	return out
}

// changedIn adds the nodes of a volume that have a version in one of the intervals.
func (j *Journal) changedIn(ctx context.Context, volume uint32, in map[uint32]Interval, out *extents) (err error) {
	if volume == 0 || len(in) == 0 {
		return nil
	}
	it, err := j.iterate(indexKey(nil, volume, node{}, ^uint32(0), ^Seq(0)), indexKey(nil, volume+1, node{}, ^uint32(0), ^Seq(0)))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	var k []byte
	for ok := it.First(); ok; {
		if err := ctx.Err(); err != nil {
			return err
		}
		e, err := decodeIndexKey(it.Key())
		if err != nil {
			return err
		}
		i, known := in[e.ordinal]
		switch {
		case known && i.First <= e.seq && e.seq <= i.Last:
			out.add(cbt.Extent{Offset: e.node.offset, Length: nodeBytes(e.node.level)})
			k = indexKey(k, volume, e.node, 0, 0) // one version is enough
			ok = it.SeekGE(append(k, 0))
		case known && e.seq > i.Last:
			ok = it.SeekGE(indexKey(k, volume, e.node, e.ordinal, i.Last))
		default:
			if e.ordinal == 0 {
				ok = it.Next()
				continue
			}
			ok = it.SeekGE(indexKey(k, volume, e.node, e.ordinal-1, ^Seq(0)))
		}
	}
	return it.Error()
}
