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

// diff compares by one state of folded history: what the index lost to a fold that
// was installed meanwhile may be missing from what it found, so it looks again.
func (j *Journal) diff(ctx context.Context, p, q Position) (map[cbt.VolumeID][]cbt.Extent, error) {
	for _, at := range []Position{p, q} {
		if err := j.waitHeld(ctx, at); err != nil {
			return nil, err
		}
	}
	for {
		past := j.history()
		out, err := j.diffBy(ctx, past, p, q)
		if err != nil || j.history() == past {
			return out, err
		}
	}
}

func (j *Journal) diffBy(ctx context.Context, past *folds, p, q Position) (map[cbt.VolumeID][]cbt.Extent, error) {
	var ls, wide [2]Lineage
	var vs [2]map[cbt.VolumeID]volumeBody
	for k, at := range []Position{p, q} {
		var err error
		if ls[k], err = j.lineageAt(at); err != nil {
			return nil, err
		}
		if vs[k], err = j.volumesIn(ls[k]); err != nil {
			return nil, err
		}
	}
	common := lastCommon(ls[0], ls[1])
	for k, at := range []Position{p, q} {
		if at == common {
			continue // of this history nothing is asked
		}
		var err error
		if wide[k], err = j.toWhole(past, ls[k], at); err != nil {
			return nil, err
		}
	}
	ordinals := j.beyond(common.Seq, wide[:])
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

// beyond is what lineages hold behind their common record, by epoch ordinal.
func (j *Journal) beyond(common Seq, ls []Lineage) map[uint32]Interval {
	out := make(map[uint32]Interval)
	for _, l := range ls {
		for _, i := range l {
			if i.Last <= common {
				continue
			}
			i.First = max(i.First, common+1)
			o := j.ordinalOf(i.Epoch)
			if was, ok := out[o]; ok {
				i.First, i.Last = min(i.First, was.First), max(i.Last, was.Last)
			}
			out[o] = i
		}
	}
	return out
}

// toWhole is l, the history that ends with at, gone on with to the next record of
// which every sector's last version is there. In folded history that is a bound of
// the run (lineagePart.through): a version that only the record at itself would see
// is gone, but what replaced it before that bound is not.
func (j *Journal) toWhole(past *folds, l Lineage, at Position) (Lineage, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	o := j.orderLocked(at)
	if _, kept := past.keeps(o); kept || !past.folded(o) || j.o.faults.diffAtGone {
		return l, nil
	}
	leaves, err := j.leavesLocked()
	if err != nil {
		return nil, err
	}
	var out Lineage
	end := never
	for _, m := range past.state.Runs {
		if !o.after(m.After) || o.after(m.To) {
			continue
		}
		for i := range leaves {
			if !leaves[i].holds(o) {
				continue
			}
			b, _ := leaves[i].through(m.After, m.To, past.kept)
			if k := b.bound(at.Seq); k < len(b.bounds) && b.bounds[k].seq < end {
				end = b.bounds[k].seq
				out = leaves[i].lineage.Until(end)
			}
		}
	}
	if out == nil {
		return nil, &ReclaimedError{At: at, From: j.framesFromLocked()}
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

// Unthinned reports whether all that was recorded between p and q, back and forth over
// where they part, is there record by record: then Diff names no cell that none of
// them touched.
func (j *Journal) Unthinned(p, q Position) (bool, error) {
	lp, err := j.lineageAt(p)
	if err != nil {
		return false, err
	}
	lq, err := j.lineageAt(q)
	if err != nil {
		return false, err
	}
	common := lastCommon(lp, lq).Seq
	past := j.history()
	for ordinal, i := range j.beyond(common, []Lineage{lp, lq}) {
		if past.behind(ordinal, i.First) > i.First {
			return false, nil
		}
	}
	return true, nil
}
