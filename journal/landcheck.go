package journal

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/zeebo/blake3"

	"github.com/novacron/afterimage/cbt"
)

// landed is a delta that was verified, and the journal as it will be with it.
type landed struct {
	run      *run
	manifest manifest
	to       DeltaEnd
	branches []Branch
	goesOn   bool // it has more of the epoch that was the newest
	lineage  Lineage
	volumes  map[cbt.VolumeID]volumeBody
	keys     []*record // of data keys
	told     map[keyPlace]bool
}

// check verifies the whole of a delta that was written: the root over its leaves, the
// leaves over every byte, each version's checksum, that all of it lies in the range
// that it stands for, and that its epochs go on from what is held.
func (l *Landing) check(ctx context.Context, size int64, to DeltaEnd) (*landed, error) {
	j := l.j
	if size < 3*pageBytes {
		return nil, &DamageError{Hop: "receive", File: runName(l.place.Run), What: fmt.Sprintf("a delta of %d bytes", size)}
	}
	r, err := j.openRunFile(l.place.Run, size)
	if err != nil {
		return nil, err
	}
	d := &landed{run: r, to: to, told: make(map[keyPlace]bool)}
	if !j.o.faults.landUnverified {
		if err := r.checkLeaves(ctx); err != nil {
			return nil, err
		}
	}
	if err := l.checkEpochs(d); err != nil {
		return nil, l.refuse(r, err)
	}
	d.manifest = manifest{Run: l.place.Run, Bytes: size, Root: r.page.Root, After: l.end, To: order{uint32(len(d.branches)), to.Seq}, Points: len(r.points),
		Out: to.Chain, First: Position{to.Epoch, l.place.After.Seq + 1}, Last: to.Position}
	if i, ok := d.lineage.Owner(l.place.After.Seq + 1); ok {
		d.manifest.First.Epoch = i.Epoch
	}
	err = l.checkHappenings(d)
	if err == nil {
		err = l.checkVersions(ctx, d)
	}
	if err == nil && len(r.points) > 0 && (len(r.points) > 1 || r.points[0].order != d.manifest.To || r.points[0].chain != to.Chain) {
		err = badFrame("its points are not what it leads to")
	}
	return d, l.refuse(r, err)
}

// refuse names the delta in what is wrong with it.
func (l *Landing) refuse(r *run, err error) error {
	if err == nil || !errors.Is(err, errBadFrame) {
		return err
	}
	return &DamageError{Hop: "receive", Epoch: l.place.After.Epoch, Seq: l.place.After.Seq + 1, File: runName(r.number), What: err.Error()}
}

// checkLeaves compares a run's bytes with the leaves of its tree.
func (r *run) checkLeaves(ctx context.Context) error {
	leaves := make([]byte, r.page.Leaves*int64(len(Chain{})))
	at := r.page.Body + r.page.Blocks*directoryBytes + r.page.Points*runPointBytes
	if err := r.j.runs.readAt(r.number, leaves, at); err != nil {
		return r.damage(at, err)
	}
	buf := make([]byte, leafBytes)
	for i := range r.page.Leaves {
		b := buf[:min(leafBytes, r.page.Body-i*leafBytes)]
		if err := errors.Join(ctx.Err(), r.j.runs.readAt(r.number, b, i*leafBytes)); err != nil {
			return r.damage(i*leafBytes, err)
		}
		if blake3.Sum256(b) != Chain(leaves[i*32:][:32]) {
			return r.damage(i*leafBytes, badFrame("a part of it differs from its hash"))
		}
	}
	return nil
}

// checkEpochs goes through the delta's epochs: they follow on one another and on the
// history that is held, and end with what it leads to.
func (l *Landing) checkEpochs(d *landed) error {
	d.branches = l.j.Branches()
	held := len(d.branches)
	err := d.run.each(blockCatalogue, func(k, v []byte) error {
		if len(k) != 5 || k[0] != prefixBranch {
			return nil
		}
		var b Branch
		if err := decodeBody(v, &b); err != nil {
			return badFrame("epoch: %v", err)
		}
		o := int(uint32(k[1])<<24 | uint32(k[2])<<16 | uint32(k[3])<<8 | uint32(k[4]))
		if o == held && held > 0 && len(d.branches) == held { // more of the newest one
			if was := d.branches[o-1]; was.ID != b.ID || was.Number != b.Number || was.Parent != b.Parent || was.Last.Position != l.place.After || b.Last.Seq <= was.Last.Seq {
				return badFrame("epoch %d does not go on from record %s", b.Number, l.place.After)
			}
			d.branches, d.goesOn = append(slices.Clone(d.branches[:o-1]), b), true
			return nil
		}
		if o != len(d.branches)+1 {
			return badFrame("epoch %d in the place of the %d. of %d", b.Number, o, len(d.branches))
		}
		if err := l.checkEpoch(d, b, held); err != nil {
			return err
		}
		d.branches = append(d.branches, b)
		return nil
	})
	if err != nil {
		return err
	}
	n := len(d.branches)
	if n == 0 || d.branches[n-1].ID != d.to.Epoch || d.branches[n-1].Last != d.to.Cursor || d.to.Seq <= l.place.After.Seq {
		return badFrame("it does not lead to record %s", d.to.Position)
	}
	if d.lineage, err = LineageOf(d.branches, d.to.Epoch); err != nil {
		return badFrame("%v", err)
	}
	if a := l.place.After; !a.IsZero() && !d.lineage.Holds(a) {
		return badFrame("its history does not hold record %s", a)
	}
	return nil
}

// checkEpoch judges one that is new here. The first goes on from the record after
// which the delta begins.
func (l *Landing) checkEpoch(d *landed, b Branch, held int) error {
	n := len(d.branches)
	switch {
	case b.ID.IsZero() || l.j.ordinalOf(b.ID) != 0 || find(d.branches, b.ID).ID == b.ID:
		return badFrame("epoch %d %s is held already", b.Number, b.ID.Short())
	case b.Last.Seq < b.First() && b.Last != b.Parent || b.Last.Epoch != b.ID && b.Last != b.Parent:
		return badFrame("epoch %d ends at record %s", b.Number, b.Last.Position)
	case n > 0 && b.Number <= d.branches[n-1].Number:
		return fmt.Errorf("%w: epoch %d after %d", ErrLowerEpoch, b.Number, d.branches[n-1].Number)
	case n == held && !d.goesOn: // the first of the delta
		if b.Parent.Position != l.place.After {
			return badFrame("epoch %d goes on from record %s, the delta from %s", b.Number, b.Parent.Position, l.place.After)
		}
		if n > 0 && b.Parent.Chain != l.chain { // same names over different bytes
			return badFrame("the parent's chain value differs from ours")
		}
		return nil
	}
	if b.Parent != d.branches[n-1].Last {
		return badFrame("epoch %d does not go on from the end of epoch %d", b.Number, d.branches[n-1].Number)
	}
	return nil
}

// checkHappenings goes through the control records: they lie in the range, and say
// which volumes there are and with which keys is sealed.
func (l *Landing) checkHappenings(d *landed) error {
	d.volumes = maps.Clone(l.parent.volumes)
	if d.volumes == nil {
		d.volumes = make(map[cbt.VolumeID]volumeBody)
	}
	return d.run.each(blockCatalogue, func(k, v []byte) error {
		if len(k) == 5 && k[0] == prefixBranch {
			return nil
		}
		if len(k) != 15 || k[0] != prefixHappen {
			return badFrame("key %x of a catalogue is none", k)
		}
		o, s := happenedAt(k)
		if !l.holds(d, o, s) {
			return badFrame("control record %d.%d lies outside", o, s)
		}
		var h happening
		if err := decodeBody(v, &h); err != nil {
			return badFrame("control record %d: %v", s, err)
		}
		switch Kind(uint16(k[1])<<8 | uint16(k[2])) {
		case KindVolume:
			var b volumeBody
			if err := decodeBody(h.Body, &b); err != nil || b.Ordinal == 0 {
				return badFrame("volume record %d: %v", s, err)
			}
			d.volumes[b.ID] = b
		case KindKey:
			key, err := decodeKeyBody(h.Body)
			if err != nil {
				return err
			}
			d.told[keyPlace{key.Epoch, key.Number}] = true
			d.keys = append(d.keys, &record{kind: KindKey, body: slices.Clone(h.Body)})
		}
		return nil
	})
}

// holds reports that a record is one that the delta stands for.
func (l *Landing) holds(d *landed, ordinal uint32, s Seq) bool {
	o := order{ordinal, s}
	return o.after(l.end) && !o.after(d.manifest.To) && s > l.place.After.Seq && d.lineage.Holds(Position{d.branches[ordinal-1].ID, s})
}

// checkVersions compares every version with its checksum, and its name with the range.
func (l *Landing) checkVersions(ctx context.Context, d *landed) error {
	var buf []byte
	return d.run.each(blockVersions, func(k, v []byte) error {
		e, err := decodeIndexKey(k)
		if err != nil {
			return badFrame("%v", err)
		}
		p, err := decodePlace(v, e.node.level)
		if errors.Is(err, ErrIncompatible) {
			return err
		}
		if err != nil {
			return badFrame("%v", err)
		}
		if e.ordinal == 0 || int(e.ordinal) > len(d.branches) || !l.holds(d, e.ordinal, e.seq) {
			return badFrame("a version of record %d.%d lies outside", e.ordinal, e.seq)
		}
		n := p.storedBytes()
		if n == 0 {
			return nil
		}
		if at := d.branches[e.ordinal-1].ID; p.sealed() && !d.told[keyPlace{at, p.of.key}] && !l.j.keys.told(at, p.of.key) {
			return badFrame("a version of record %d is sealed with key %d, of which no record told", e.seq, p.of.key)
		}
		if p.file != runID(l.place.Run) || p.offset < pageBytes || p.offset > d.run.page.Body-n {
			return badFrame("a version of record %d lies in %s at %d", e.seq, p.file.name(), p.offset)
		}
		if int64(cap(buf)) < n {
			buf = make([]byte, n)
		}
		if err := errors.Join(ctx.Err(), l.j.runs.readAt(l.place.Run, buf[:n], p.offset)); err != nil {
			return err
		}
		if !p.intact(buf[:n]) && !l.j.o.faults.landUnverified {
			return &DamageError{Hop: "receive", Volume: l.j.volumeOf(e.volume), Epoch: d.branches[e.ordinal-1].ID, Seq: e.seq,
				File: runName(l.place.Run), Offset: p.offset, What: cellDiffers}
		}
		return nil
	})
}
