package journal

import (
	"context"
	"errors"
	"fmt"
	"sort"

	"github.com/novacron/afterimage/cbt"
)

// asOf reads volumes as a lineage left them. It is immutable and safe for
// concurrent use.
type asOf struct {
	j        *Journal
	lineage  Lineage
	ordinals []uint32 // of the intervals; ascending
}

func (j *Journal) reader(l Lineage) *asOf {
	return &asOf{j: j, lineage: l, ordinals: j.ordinalsOf(l)}
}

// seek is the first key that may hold the newest visible version of n.
func (a *asOf) seek(it iterator, k []byte, volume uint32, n node, interval int) ([]byte, bool) {
	k = indexKey(k, volume, n, a.ordinals[interval], a.lineage[interval].Last)
	return k, it.SeekGE(k)
}

// visible leaves it at the newest version of node n in the lineage and returns
// its seq; 0 when there is none.
func (a *asOf) visible(it iterator, k []byte, volume uint32, n node) (Seq, []byte, error) {
	k, ok := a.seek(it, k, volume, n, len(a.lineage)-1)
	for ok {
		e, err := decodeIndexKey(it.Key())
		if err != nil {
			return 0, k, err
		}
		if e.volume != volume || e.node != n {
			return 0, k, nil
		}
		// i is the newest interval not above the version's epoch.
		i := sort.Search(len(a.ordinals), func(i int) bool { return a.ordinals[i] > e.ordinal }) - 1
		if i < 0 {
			return 0, k, nil
		}
		if a.ordinals[i] == e.ordinal && e.seq <= a.lineage[i].Last {
			return e.seq, k, nil
		}
		k, ok = a.seek(it, k, volume, n, i)
	}
	return 0, k, it.Error()
}

// found is a version that some sectors of a read are made of.
type found struct {
	node node
	seq  Seq
	place
}

// chunkBytes is how much is resolved at once: the largest node of a payload.
const chunkBytes = 1 << 20

// resolve finds what each sector of e, which lies in one chunk, is made of: the
// index of a version, or -1 where nothing was written.
func (a *asOf) resolve(volume uint32, e cbt.Extent) (_ []int16, _ []found, err error) {
	sectors := make([]int16, e.Length/cbt.SectorBytes)
	for i := range sectors {
		sectors[i] = -1
	}
	if len(a.lineage) == 0 {
		return sectors, nil, nil
	}
	it, err := a.j.iterate([]byte{prefixIndex}, []byte{prefixIndex + 1})
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	a.j.mu.Lock()
	levels := a.j.levels[volume]
	a.j.mu.Unlock()
	var versions []found
	var k []byte
	for l := maxLevel; l >= 0; l-- {
		if levels&(1<<l) == 0 {
			continue
		}
		size := nodeBytes(l)
		for at := e.Offset / size * size; at < e.End(); at += size {
			// The next node that has any version at all.
			first := indexKey(nil, volume, node{l, at}, ^uint32(0), ^Seq(0))
			if !it.SeekGE(first) {
				break
			}
			any, err := decodeIndexKey(it.Key())
			if err != nil {
				return nil, nil, err
			}
			if any.volume != volume || any.node.level != l || any.node.offset >= e.End() {
				break
			}
			at = any.node.offset
			s, nk, err := a.visible(it, k, volume, any.node)
			k = nk
			if err != nil {
				return nil, nil, err
			}
			if s == 0 {
				continue
			}
			p, err := decodePlace(it.Value(), l)
			if err != nil {
				return nil, nil, err
			}
			p.crcs = append([]byte(nil), p.crcs...)
			versions = append(versions, found{any.node, s, p})
			overlay(sectors, versions, e)
		}
	}
	return sectors, versions, it.Error()
}

// overlay lets the last of versions win where its seq is the highest.
func overlay(sectors []int16, versions []found, e cbt.Extent) {
	v := versions[len(versions)-1]
	first, end := max(v.node.offset, e.Offset), min(v.node.offset+nodeBytes(v.node.level), e.End())
	for s := (first - e.Offset) / cbt.SectorBytes; s < (end-e.Offset)/cbt.SectorBytes; s++ {
		if o := sectors[s]; o < 0 || versions[o].seq < v.seq {
			sectors[s] = int16(len(versions) - 1)
		}
	}
}

// readAt fills p, which may begin and end anywhere inside the volume.
func (a *asOf) readAt(ctx context.Context, v volumeBody, p []byte, off int64) error {
	e := cbt.Extent{Offset: off, Length: int64(len(p))}
	if !e.Within(v.Size) {
		return fmt.Errorf("read %v of volume %s of %d bytes: %w", e, v.Name, v.Size, ErrOutOfRange)
	}
	for len(p) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(chunkBytes-off%chunkBytes, int64(len(p)))
		if err := a.readChunk(v, p[:n], off); err != nil {
			return fmt.Errorf("read volume %s: %w", v.Name, err)
		}
		p, off = p[n:], off+n
	}
	return nil
}

func (a *asOf) readChunk(v volumeBody, p []byte, off int64) error {
	e := cbt.Extent{Offset: off, Length: int64(len(p))}.Round()
	sectors, versions, err := a.resolve(v.Ordinal, e)
	if err != nil {
		return err
	}
	whole := p
	if e.Length != int64(len(p)) {
		whole = make([]byte, e.Length)
	}
	f := fetches.Get().(*fetch)
	defer f.free()
	for i := 0; i < len(sectors); {
		n := i + 1
		for n < len(sectors) && sectors[n] == sectors[i] {
			n++
		}
		dst := whole[i*cbt.SectorBytes : n*cbt.SectorBytes]
		if o := sectors[i]; o < 0 || versions[o].format == valueZero {
			clear(dst)
		} else {
			f.add(&versions[o], dst, e.Offset+int64(i)*cbt.SectorBytes)
		}
		i = n
	}
	if err := f.run(a, v, nearGap); err != nil {
		return err
	}
	if e.Length != int64(len(p)) {
		copy(p, whole[off-e.Offset:])
	}
	return nil
}

func (a *asOf) damage(v volumeBody, f *found, at int64, what string) error {
	i, _ := a.lineage.Owner(f.seq)
	return &DamageError{Hop: "read", Volume: v.ID, Epoch: i.Epoch, Seq: f.seq, File: f.file.name(), Offset: at, What: what}
}

// StatusRun is a stretch of a volume that holds data, or reads as zeros.
type StatusRun struct {
	cbt.Extent
	Data bool
}

// status is the runs of e, in order; neighbours differ.
func (a *asOf) status(ctx context.Context, v volumeBody, e cbt.Extent) ([]StatusRun, error) {
	if !e.Within(v.Size) {
		return nil, fmt.Errorf("status of %v of volume %s of %d bytes: %w", e, v.Name, v.Size, ErrOutOfRange)
	}
	var runs []StatusRun
	add := func(x cbt.Extent, data bool) {
		if n := len(runs); n > 0 && runs[n-1].Data == data {
			runs[n-1].Length += x.Length
		} else if x.Length > 0 {
			runs = append(runs, StatusRun{x, data})
		}
	}
	whole := e.Round()
	for at := whole.Offset; at < whole.End(); {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		next, err := a.nextPayload(v.Ordinal, at)
		if err != nil {
			return nil, err
		}
		if next = min(max(next, at), whole.End()); next > at {
			add(cbt.Extent{Offset: at, Length: next - at}, false)
			at = next
			continue
		}
		n := min(chunkBytes-at%chunkBytes, whole.End()-at)
		sectors, versions, err := a.resolve(v.Ordinal, cbt.Extent{Offset: at, Length: n})
		if err != nil {
			return nil, err
		}
		for i, o := range sectors {
			add(cbt.Extent{Offset: at + int64(i)*cbt.SectorBytes, Length: cbt.SectorBytes}, o >= 0 && versions[o].format != valueZero)
		}
		at += n
	}
	return clip(runs, e), nil
}

// nextPayload is the first offset at or after at, rounded down to its node, where
// some version of some lineage has a payload.
func (a *asOf) nextPayload(volume uint32, at int64) (_ int64, err error) {
	it, err := a.j.iterate([]byte{prefixIndex}, []byte{prefixIndex + 1})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	next := int64(1) << 62
	for l := range levelMegabyte + 1 {
		size := nodeBytes(l)
		if !it.SeekGE(indexKey(nil, volume, node{l, at / size * size}, ^uint32(0), ^Seq(0))) {
			continue
		}
		e, err := decodeIndexKey(it.Key())
		if err != nil {
			return 0, err
		}
		if e.volume == volume && e.node.level == l {
			next = min(next, e.node.offset)
		}
	}
	return next, it.Error()
}

// clip cuts runs to e.
func clip(runs []StatusRun, e cbt.Extent) []StatusRun {
	out := runs[:0]
	for _, r := range runs {
		first, end := max(r.Offset, e.Offset), min(r.End(), e.End())
		if first < end {
			out = append(out, StatusRun{cbt.Extent{Offset: first, Length: end - first}, r.Data})
		}
	}
	return out
}
