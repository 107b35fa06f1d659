package journal

import (
	"context"
	"fmt"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/novacron/afterimage/cbt"
)

// PieceBytes is how much Materialize hands over at once.
const PieceBytes = chunkBytes

const (
	// windowBytes is how much of a volume is resolved, and read in the order in which
	// it lies in the files, before any of it is handed over.
	windowBytes = 16 << 20
	// windowsAhead is how many windows are under way: while one is written out, the
	// disk is never without reads of another.
	windowsAhead = 3
	// partsAtOnce is how many parts of versions are collected before they are read: a
	// window of single sectors from everywhere is read in several rounds.
	partsAtOnce = 1024
	// eachAtOnce is how many pieces of a window are handed over at the same time.
	eachAtOnce = 4
)

// Materialize hands over all of volume vol in pieces of PieceBytes (less at the
// end), each once, from several goroutines and in no order: p is what e holds,
// verified, or nil where all of it reads as zeros. p begins at a multiple of 4096 in
// memory and is lent until each returns. The first error, of each too, ends it.
//
// It is the way to copy a whole image: where single reads follow the volume, this
// follows the files. Memory: windowsAhead windows, and as much again for reads that
// join several versions: 96 MiB, and of single sectors from everywhere at most twice
// that, whatever the volume's size.
func (v *View) Materialize(ctx context.Context, vol cbt.VolumeID, each func(e cbt.Extent, p []byte) error) error {
	b, ok := v.volumes[vol]
	if !ok {
		return fmt.Errorf("materialize view: volume %s: %w", vol, ErrUnknownVolume)
	}
	var next atomic.Int64
	var empty atomic.Pointer[cbt.Extent]
	g, ctx := errgroup.WithContext(ctx)
	for range min(windowsAhead, (b.Size+windowBytes-1)/windowBytes) {
		g.Go(func() error {
			var buf []byte
			for {
				off := next.Add(windowBytes) - windowBytes
				if off >= b.Size {
					return nil
				}
				if buf == nil {
					buf = alignedBytes(min(windowBytes, (b.Size+pageBytes-1)&^(pageBytes-1)))
				}
				e := cbt.Extent{Offset: off, Length: min(windowBytes, b.Size-off)}
				if err := v.as.window(ctx, b, e, buf, &empty, each); err != nil {
					return err
				}
			}
		})
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("materialize volume %s: %w", b.Name, err)
	}
	return nil
}

// window reads e into buf and hands it over. empty is an extent, of this window or
// another one, that was found to hold no payload: it may lie anywhere.
func (a *asOf) window(ctx context.Context, v volumeBody, e cbt.Extent, buf []byte, empty *atomic.Pointer[cbt.Extent], each func(cbt.Extent, []byte) error) error {
	var pieces []cbt.Extent
	for at := e.Offset; at < e.End(); at += PieceBytes {
		pieces = append(pieces, cbt.Extent{Offset: at, Length: min(PieceBytes, e.End()-at)})
	}
	data := make([]bool, len(pieces))
	if x := empty.Load(); x == nil || e.Offset < x.Offset || e.End() > x.End() {
		next, err := a.nextPayload(v.Ordinal, e.Offset)
		switch {
		case err != nil:
			return err
		case next >= e.End():
			empty.Store(&cbt.Extent{Offset: e.Offset, Length: next - e.Offset})
		default:
			if err := a.readWindow(ctx, v, e, pieces, buf, data); err != nil {
				return err
			}
		}
	}
	g, handing := errgroup.WithContext(ctx)
	g.SetLimit(eachAtOnce)
	for i, x := range pieces {
		if handing.Err() != nil {
			break
		}
		g.Go(func() error {
			p := buf[x.Offset-e.Offset:][:x.Length:x.Length]
			if !data[i] || allZero(p) {
				p = nil
			}
			return each(x, p)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return context.Cause(ctx)
}

// readWindow fills buf with e and says in data which of its pieces hold any version's.
func (a *asOf) readWindow(ctx context.Context, v volumeBody, e cbt.Extent, pieces []cbt.Extent, buf []byte, data []bool) error {
	f := fetches.Get().(*fetch)
	defer f.free()
	f.bulk = true
	a.j.reading.RLock()
	defer a.j.reading.RUnlock()
	for i, x := range pieces {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		r, err := a.resolve(v.Ordinal, x.Round())
		if err != nil {
			return err
		}
		_ = r.each(x, func(x cbt.Extent, o *found) error {
			dst := buf[x.Offset-e.Offset : x.End()-e.Offset]
			if o == nil {
				clear(dst)
			} else {
				f.add(o, dst, x.Offset)
				data[i] = true
			}
			return nil
		})
		if len(f.parts) < partsAtOnce {
			continue
		}
		if err := f.run(a, v, wideGap); err != nil {
			return err
		}
		f.forget()
	}
	return f.run(a, v, wideGap)
}
