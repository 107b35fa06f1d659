package journal

import (
	"context"
	"errors"
	"fmt"

	"github.com/novacron/afterimage/cbt"
)

// asOf reads volumes as a lineage left them. It is immutable and safe for
// concurrent use.
type asOf struct {
	j        *Journal
	lineage  Lineage
	ordinals []uint32 // of the intervals; ascending
	view     uint64   // names it in the cache of chunks
	touches  *touches // nil: what it reads is not cached
}

func (j *Journal) reader(l Lineage) *asOf {
	return &asOf{j: j, lineage: l, ordinals: j.ordinalsOf(l)}
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
	whole := p
	if e.Length != int64(len(p)) {
		whole = make([]byte, e.Length)
	}
	f := fetches.Get().(*fetch)
	defer f.free()
	a.j.reading.RLock()
	defer a.j.reading.RUnlock()
	r, err := a.look(v.Ordinal, e)
	if err != nil {
		return err
	}
	_ = r.each(e, func(x cbt.Extent, o *found) error {
		dst := whole[x.Offset-e.Offset : x.End()-e.Offset]
		if o == nil {
			clear(dst)
		} else {
			f.add(o, dst, x.Offset)
		}
		return nil
	})
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
		n := min(chunkBytes-at%chunkBytes, whole.End()-at)
		data, err := a.statusOf(v.Ordinal, cbt.Extent{Offset: at, Length: n}, add)
		if err != nil {
			return nil, err
		}
		if at += n; data || at >= whole.End() {
			continue
		}
		next, err := a.nextPayload(v.Ordinal, at)
		if err != nil {
			return nil, err
		}
		if next = min(next, whole.End()); next > at {
			add(cbt.Extent{Offset: at, Length: next - at}, false)
			at = next
		}
	}
	return clip(runs, e), nil
}

// statusOf adds what e, which lies in one chunk, is made of; data says that not all
// of it is zeros.
func (a *asOf) statusOf(volume uint32, e cbt.Extent, add func(cbt.Extent, bool)) (data bool, _ error) {
	a.j.reading.RLock()
	defer a.j.reading.RUnlock()
	r, err := a.look(volume, e)
	if err != nil {
		return false, err
	}
	return data, r.each(e, func(x cbt.Extent, o *found) error {
		add(x, o != nil)
		data = data || o != nil
		return nil
	})
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
