package bench

import (
	"context"
	"errors"
	"fmt"
	"hash/crc64"
	"os"
	"path/filepath"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
)

// history is a volume that was filled once and then rewritten several times over
// with writes of 512 B to 1 MiB, and what an independent model knows of it: the
// image at the middle, as a file and as a sum of each cell, and one cell of each
// of some points.
type history struct {
	b       *bed
	payload int64
	middle  moment
	plain   string   // file that holds the image at middle
	sums    []uint64 // of its cells
	moments []moment // oldest first; middle is one of them
	device  int64    // bytes written to the device until the journal was settled
	process int64    // and by this process
}

// moment is a point, and what one cell of the volume holds there.
type moment struct {
	name string
	at   journal.Position
	cell int64
	sum  uint64
}

const (
	historyDepth   = 64 // writes under way
	historyMoments = 20
)

var crcTable = crc64.MakeTable(crc64.ECMA)

func sumOf(p []byte) uint64 { return crc64.Checksum(p, crcTable) }

// newHistory writes it. A write begins at a multiple of its size, or of 4 KiB if it
// is larger; all sizes are equally frequent. each, which may be nil, is called after
// every moment.
func (r *journalRun) newHistory(ctx context.Context, l look, each func(context.Context, *history) error) (_ *history, err error) {
	size := r.o.ImageBytes
	b, err := newBed(ctx, r.disk.dir, size, min(size/16, 64<<20), r.o.pool, l.keys)
	if err != nil {
		return nil, err
	}
	h := &history{b: b, plain: filepath.Join(r.disk.dir, "plain")}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.close())
		}
	}()
	if err := r.disk.settle(); err != nil {
		return nil, err
	}
	d0, p0 := r.disk.written()
	w := &historian{h: h, r: r, model: make([]byte, size)}
	for off := int64(0); off < size; off += 1 << 20 {
		if err := w.write(ctx, off, 1<<20); err != nil {
			return nil, err
		}
	}
	all := size * int64(r.o.Versions)
	for next := 1; err == nil && (h.payload < all || next <= historyMoments); {
		if h.payload >= size+int64(next-1)*(all-size)/(historyMoments-1) {
			if err = w.mark(ctx, next); err == nil && next == historyMoments/2 {
				err = w.keep(ctx)
			}
			if err == nil && each != nil {
				err = each(ctx, h)
			}
			next++
			continue
		}
		n := int64(512) << r.rng.IntN(12)
		unit := min(n, cellBytes)
		err = w.write(ctx, r.rng.Int64N((size-n)/unit+1)*unit, n)
	}
	if err = errors.Join(err, w.wait(ctx, 0)); err != nil {
		return nil, err
	}
	if err := errors.Join(b.drain(ctx), b.close(), r.disk.settle()); err != nil {
		return nil, err
	}
	d1, p1 := r.disk.written()
	h.process = p1 - p0 - size // without the plain file
	if h.device = d1 - d0 - size; d0 < 0 {
		h.device = h.process
	}
	b.uncounted()
	return h, b.open()
}

func (h *history) close() error {
	err := errors.Join(h.b.close(), os.RemoveAll(h.b.dir))
	if rerr := os.Remove(h.plain); !errors.Is(rerr, os.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	return err
}

// historian writes a history and keeps its model. One goroutine: the order of
// overlapping writes is then known.
type historian struct {
	h      *history
	r      *journalRun
	model  []byte
	flying []cbt.Pending
}

func (w *historian) write(ctx context.Context, off, n int64) error {
	if err := w.wait(ctx, historyDepth-1); err != nil {
		return err
	}
	data := w.r.stock[w.r.rng.IntN((len(w.r.stock)-int(n))/512)*512:][:n]
	copy(w.model[off:], data)
	p, err := w.h.b.w.Record(ctx, cbt.Event{Kind: cbt.EventWrite, Volume: w.h.b.volume.ID, Extent: cbt.Extent{Offset: off, Length: n}, Data: data})
	if err != nil {
		return err
	}
	w.flying = append(w.flying, p)
	w.h.payload += n
	return nil
}

// wait returns when at most n writes are under way.
func (w *historian) wait(ctx context.Context, n int) error {
	for len(w.flying) > n {
		if err := w.flying[0].Wait(ctx); err != nil {
			return err
		}
		w.flying = w.flying[1:]
	}
	return nil
}

// mark names the present, and remembers one cell of it.
func (w *historian) mark(ctx context.Context, n int) error {
	m := moment{name: fmt.Sprintf("bench-%d", n), cell: w.r.rng.Int64N(int64(len(w.model)) / cellBytes)}
	p, err := w.h.b.w.Mark(ctx, journal.Mark{Name: m.name})
	m.at, m.sum = p.Position, sumOf(w.model[m.cell*cellBytes:][:cellBytes])
	w.h.moments = append(w.h.moments, m)
	return err
}

// keep makes the newest moment the middle: its image goes to the plain file.
func (w *historian) keep(ctx context.Context) error {
	h := w.h
	h.middle = h.moments[len(h.moments)-1]
	for at := 0; at < len(w.model); at += cellBytes {
		h.sums = append(h.sums, sumOf(w.model[at:at+cellBytes]))
	}
	f, err := w.r.disk.open(h.plain, os.O_RDWR|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return err
	}
	buf, err := aligned(1 << 20)
	for at := 0; err == nil && at < len(w.model); at += len(buf) {
		copy(buf, w.model[at:])
		if _, err = f.WriteAt(buf, int64(at)); err == nil {
			err = ctx.Err()
		}
	}
	return errors.Join(err, f.Sync(), f.Close())
}

// verify says whether p is cell c of the image at the middle.
func (h *history) verify(c int64, p []byte) error {
	if sumOf(p) != h.sums[c] {
		return fmt.Errorf("cell %d of the image is not what was written", c)
	}
	return nil
}

// verifyFile says whether the file at path is the image at the middle.
func (h *history) verifyFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	for c := int64(0); c < int64(len(h.sums)); c += int64(len(buf)) / cellBytes {
		if _, err := f.ReadAt(buf, c*cellBytes); err != nil {
			return err
		}
		for i := int64(0); i < int64(len(buf)); i += cellBytes {
			if err := h.verify(c+i/cellBytes, buf[i:i+cellBytes]); err != nil {
				return err
			}
		}
	}
	return nil
}
