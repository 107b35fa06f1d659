package journal

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"sort"
	"time"

	"github.com/novacron/afterimage/cbt"
)

// What a scrub finds damaged is remembered in the site log, so that the points that
// it spoils say so until it is repaired. Damage is a range of a file; the cells
// whose stored bytes lie in it come from the index, in one pass over it for all
// that a scrub found:
//
//	file range → index entries that point into it → (volume, extent) of each
//
// A point is invalid when, as of it, one of these extents is made of bytes in the
// range: damage that was written later, or is overwritten by then, spoils nothing.
// From the record that is damaged on, the points of a lineage are therefore invalid
// up to one seq and valid from it on, which a binary search finds. Where there are
// too many cells to name, all points from the first damaged record on are invalid.
//
// The memory never decides what is read: every read verifies what it returns.
const (
	damageKey       = "journal/damage"
	maxDamagedCells = 1 << 14
	maxDamages      = 1 << 10
)

// wholeFile ends a range that goes to the end of its file.
const wholeFile = int64(math.MaxInt64)

// fileRange is bytes of a segment or run.
type fileRange struct {
	File fileID `json:"file"`
	From int64  `json:"from"`
	To   int64  `json:"to"`
}

func (r fileRange) meets(p place) bool {
	if p.format == valueZero || p.file != r.File {
		return false
	}
	return p.offset < r.To && p.offset+p.storedBytes() > r.From
}

// storedBytes bounds how much of its file a place's bytes take.
func (p place) storedBytes() int64 {
	switch {
	case p.packed(): // a read takes the payload whole
		return p.stored
	case p.piece():
		return int64(p.sectors) * cbt.SectorBytes
	}
	return int64(len(p.crcs)/entryBytes(p.sealed())) * pageBytes
}

// Damage is what a scrub found and no repair has mended.
type Damage struct {
	Epoch  EpochID       `json:"epoch"`
	First  Seq           `json:"first"` // records that it touches
	Last   Seq           `json:"last"`
	File   string        `json:"file"`
	Offset int64         `json:"offset"`
	What   string        `json:"what"`
	Found  time.Time     `json:"found"`
	Ranges []fileRange   `json:"ranges,omitempty"`
	Cells  []DamagedCell `json:"cells,omitempty"`
	All    bool          `json:"all,omitempty"` // more than can be named
}

// DamagedCell is a part of a volume that one damaged record wrote.
type DamagedCell struct {
	Epoch   EpochID `json:"epoch"`
	Seq     Seq     `json:"seq"`
	Ordinal uint32  `json:"volume"`
	Offset  int64   `json:"offset"`
	Length  int64   `json:"length"`
}

func (d Damage) String() string {
	seqs := d.First.String()
	if d.Last > d.First {
		seqs += "-" + d.Last.String()
	}
	return fmt.Sprintf("epoch %s, seq %s, file %s, offset %d: %s", d.Epoch.Short(), seqs, d.File, d.Offset, d.What)
}

// Damages is what is remembered as damaged.
func (j *Journal) Damages() []Damage {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.damages)
}

func (j *Journal) loadDamage() error {
	var ds []Damage
	_, err := j.site.recall(damageKey, &ds)
	j.mu.Lock()
	j.damages = ds
	j.mu.Unlock()
	return err
}

// rememberDamage makes found all that is known to be damaged.
func (j *Journal) rememberDamage(found []DamageError) error {
	ds := j.damagesOf(found)
	if len(ds) > maxDamages { // the rest is as bad as can be: named by the report alone
		ds[0].All, ds[0].First = true, 0
		ds = ds[:maxDamages]
	}
	if err := j.findCells(ds); err != nil {
		return err
	}
	j.mu.Lock()
	old := len(j.damages)
	j.mu.Unlock()
	if len(ds) == 0 && old == 0 {
		return nil
	}
	if err := j.site.remember(damageKey, ds); err != nil {
		return fullOr(err)
	}
	j.mu.Lock()
	j.damages = ds
	j.mu.Unlock()
	return nil
}

// damagesOf is what is to be remembered of what was found.
func (j *Journal) damagesOf(found []DamageError) []Damage {
	var ds []Damage
	for _, e := range found {
		if e.Mended {
			continue
		}
		d := Damage{Epoch: e.Epoch, First: e.Seq, Last: max(e.Seq, e.Last), File: e.File, Offset: e.Offset, What: e.What, Found: j.o.Now(), Ranges: e.ranges}
		if len(d.Ranges) > maxDamagedCells/16 { // one entry stays well below the log's limit
			d.Ranges = []fileRange{{e.file, d.Ranges[0].From, d.Ranges[len(d.Ranges)-1].To}}
		}
		ds = append(ds, d)
	}
	return ds
}

// findCells fills in the cells whose stored bytes lie in the damaged ranges.
func (j *Journal) findCells(ds []Damage) (err error) {
	if !slices.ContainsFunc(ds, func(d Damage) bool { return len(d.Ranges) > 0 }) {
		return nil
	}
	it, err := j.iterate([]byte{prefixIndex}, []byte{prefixIndex + 1})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	bs := j.Branches()
	total := 0
	for ok := it.First(); ok; ok = it.Next() {
		e, err := decodeIndexKey(it.Key())
		if err != nil {
			return err
		}
		p, err := decodePlace(it.Value(), e.node.level)
		if err != nil {
			return err
		}
		for i := range ds {
			d := &ds[i]
			if d.All || !slices.ContainsFunc(d.Ranges, func(r fileRange) bool { return r.meets(p) }) || int(e.ordinal) > len(bs) {
				continue
			}
			if total++; total > maxDamagedCells {
				d.All, d.Cells = true, nil
				continue
			}
			d.Cells = append(d.Cells, DamagedCell{bs[e.ordinal-1].ID, e.seq, e.volume, e.node.offset, nodeBytes(e.node.level)})
		}
	}
	return it.Error()
}

// spoils reports that the image at the end of l is made of damaged bytes of d.
func (j *Journal) spoils(d Damage, l Lineage) (bool, error) {
	if d.All {
		return d.First == 0 || l.Holds(Position{d.Epoch, d.First}), nil
	}
	as := j.reader(l)
	for _, c := range d.Cells {
		if !l.Holds(Position{c.Epoch, c.Seq}) {
			continue
		}
		if bad, err := as.madeOf(d, c); bad || err != nil {
			return bad, err
		}
	}
	return false, nil
}

// madeOf reports that some sector of c is read from a damaged range of d.
func (a *asOf) madeOf(d Damage, c DamagedCell) (bool, error) {
	e := cbt.Extent{Offset: c.Offset, Length: c.Length}
	for at := e.Offset; at < e.End(); {
		n := min(chunkBytes-at%chunkBytes, e.End()-at)
		r, err := a.resolve(c.Ordinal, cbt.Extent{Offset: at, Length: n})
		if err != nil {
			return false, err
		}
		bad := false
		err = r.each(r.e, func(x cbt.Extent, v *found) error {
			for off := x.Offset; v != nil && off < x.End(); off += cbt.SectorBytes {
				bad = bad || slices.ContainsFunc(d.Ranges, func(r fileRange) bool { return r.meets(v.sectorAt(off)) })
			}
			return nil
		})
		if bad || err != nil {
			return bad, err
		}
		at += n
	}
	return false, nil
}

// sectorAt is the place of the bytes that the read of one sector verifies: its cell,
// or the piece it lies in.
func (f *found) sectorAt(off int64) place {
	p := f.place
	if p.format == valueCells || p.format == valueSealedCells {
		p.offset += off&^(pageBytes-1) - f.node.offset
		p.crcs = p.crcs[:min(len(p.crcs), cellEntryBytes)]
		if p.format = valueCells; p.crcs == nil {
			p.crcs = make([]byte, cellEntryBytes)
		}
	}
	return p
}

// invalidAt is why the point at the end of l cannot be read whole; "" when it can,
// as far as scrubs know.
func (j *Journal) invalidAt(l Lineage) (string, error) {
	for _, d := range j.Damages() {
		bad, err := j.spoils(d, l)
		if err != nil {
			return "", err
		}
		if bad {
			return "damaged: " + d.String(), nil
		}
	}
	return "", nil
}

// InvalidRange is points of one lineage that a damage spoils.
type InvalidRange struct {
	First, Last Position
	Damage      Damage
}

// Invalid lists the points of the current lineage that damage spoils, for each
// damage that spoils any.
func (j *Journal) Invalid(ctx context.Context) ([]InvalidRange, error) {
	ds := j.Damages()
	if len(ds) == 0 {
		return nil, nil
	}
	l, err := j.settled(ctx)
	if err != nil || len(l) == 0 {
		return nil, err
	}
	var out []InvalidRange
	for _, d := range ds {
		first, last, err := j.invalidIn(ctx, d, l)
		if err != nil {
			return nil, err
		}
		if last > 0 {
			f, _ := l.Owner(first)
			t, _ := l.Owner(last)
			out = append(out, InvalidRange{Position{f.Epoch, first}, Position{t.Epoch, last}, d})
		}
	}
	return out, nil
}

// invalidIn is the seqs of l from the first to the last that d spoils; 0 when none.
func (j *Journal) invalidIn(ctx context.Context, d Damage, l Lineage) (first, last Seq, err error) {
	head := lastOf(l).Seq
	if d.All {
		if d.First > 0 && !l.Holds(Position{d.Epoch, d.First}) {
			return 0, 0, nil
		}
		return max(d.First, 1), head, nil
	}
	for _, c := range d.Cells {
		if err := ctx.Err(); err != nil {
			return 0, 0, err
		}
		if !l.Holds(Position{c.Epoch, c.Seq}) {
			continue
		}
		one := Damage{Ranges: d.Ranges, Cells: []DamagedCell{c}}
		var failed error
		n := sort.Search(int(head-c.Seq)+1, func(k int) bool {
			bad, err := j.spoils(one, l.Until(c.Seq+Seq(k)))
			failed = errors.Join(failed, err)
			return !bad
		})
		if failed != nil {
			return 0, 0, failed
		}
		if n == 0 {
			continue
		}
		if first == 0 || c.Seq < first {
			first = c.Seq
		}
		last = max(last, c.Seq+Seq(n)-1)
	}
	return first, last, nil
}

// segmentFirst is the first record of segment n, from the header of the segment or,
// where that is damaged, from the index.
func (j *Journal) segmentFirst(n uint64) (Position, bool, error) {
	if p, err := j.pageOf(n, 0, segmentMagic); err == nil {
		return Position{p.Epoch, p.Seq}, true, nil
	}
	bs := j.Branches()
	var first Position
	err := j.scanPrefix(prefixSample, func(k, v []byte) error {
		sm, err := decodeSample(v)
		if err == nil && sm.segment == n && sm.offset == pageBytes {
			if o := binary.BigEndian.Uint32(k[1:]); o > 0 && int(o) <= len(bs) {
				first = Position{bs[o-1].ID, Seq(binary.BigEndian.Uint64(k[5:]))}
			}
		}
		return err
	})
	return first, !first.IsZero(), err
}
