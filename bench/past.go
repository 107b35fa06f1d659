package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
)

// The names of what past measures.
const (
	asOfQD1     = "asof_4k_qd1_vs_file"
	asOfQD32    = "asof_4k_qd32_vs_file"
	materialize = "materialize_vs_copy"
	folded      = "materialize_folded_vs_copy"
	lifetime    = "lifetime_write_amplification"
	firstByte   = "first_byte_of_view_seconds"
)

// past measures reading: of single cells, of whole images, and the opening of views.
func (r *journalRun) past(ctx context.Context, l look) (err error) {
	if !r.wants(l, asOfQD1, asOfQD32, materialize, firstByte) {
		return nil
	}
	r.progress("write the history"+l.suffix, 0, 1)
	h, err := r.newHistory(ctx, l, nil)
	if err != nil {
		return fmt.Errorf("write the history: %w", err)
	}
	defer func() { err = errors.Join(err, h.close()) }()
	for _, d := range []struct {
		name  string
		depth int
	}{{asOfQD1, 1}, {asOfQD32, 32}} {
		if r.wants(l, d.name) {
			if err := r.asOf(ctx, h, d.name+l.suffix, d.depth); err != nil {
				return fmt.Errorf("read as of a point: %w", err)
			}
		}
	}
	if r.wants(l, materialize) {
		if err := r.materialize(ctx, h, materialize+l.suffix); err != nil {
			return fmt.Errorf("materialise: %w", err)
		}
	}
	return r.firstBytes(ctx, h, l, h.moments)
}

// asOf compares random reads of a view with those of a plain file that holds the
// same image. No cell is read twice in a round, and none is cached when it begins.
func (r *journalRun) asOf(ctx context.Context, h *history, name string, depth int) error {
	span := r.o.Span / time.Duration(min(3, r.o.rounds))
	var ours, raw []round
	var ratios []float64
	for n := range min(3, r.o.rounds) {
		r.progress(name, n, min(3, r.o.rounds))
		cells := shuffled(r.rng, int64(len(h.sums)))
		if err := r.disk.dropCache(); err != nil {
			return err
		}
		mine, err := h.reads(ctx, cells, depth, span)
		if err != nil {
			return err
		}
		theirs, err := r.disk.rawReads(ctx, h.plain, cells, depth, span, h.verify)
		if err != nil {
			return fmt.Errorf("baseline: %w", err)
		}
		ours, raw = append(ours, mine), append(raw, theirs)
		ratios = append(ratios, mine.perSecond()/theirs.perSecond())
	}
	f := figure(name, ratios)
	f.Ours, f.Baseline = rateOf(ours), rateOf(raw)
	r.res.Figures[name] = f
	return nil
}

// reads reads cells of the view at the middle, so many at a time.
func (h *history) reads(ctx context.Context, cells []int64, depth int, span time.Duration) (round, error) {
	v, err := h.b.j.View(ctx, journal.Point{Position: h.middle.at})
	if err != nil {
		return round{}, err
	}
	defer v.Close()
	laps, errs := make([][]time.Duration, depth), make([]error, depth)
	var next atomic.Int64
	var wg sync.WaitGroup
	start := time.Now()
	for i := range depth {
		wg.Go(func() {
			p := make([]byte, cellBytes)
			for time.Since(start) < span {
				n := next.Add(1) - 1
				if n >= int64(len(cells)) {
					return
				}
				begun := time.Now()
				err := v.ReadAt(ctx, h.b.volume.ID, p, cells[n]*cellBytes)
				laps[i] = append(laps[i], time.Since(begun))
				if err == nil {
					err = h.verify(cells[n], p)
				}
				if err != nil {
					errs[i] = err
					return
				}
			}
		})
	}
	wg.Wait()
	out := round{took: time.Since(start)}
	for _, l := range laps {
		out.laps = append(out.laps, l...)
	}
	out.ops, out.bytes = len(out.laps), int64(len(out.laps))*cellBytes
	return out, errors.Join(errs...)
}

// materialize compares writing the image at the middle to a new file with copying
// the plain file, the sync of the result included. The result is compared with the
// model outside the time.
func (r *journalRun) materialize(ctx context.Context, h *history, name string) error {
	var ours, raw []round
	var ratios []float64
	to := filepath.Join(r.disk.dir, "image")
	for n := range r.o.rounds {
		r.progress(name, n, r.o.rounds)
		mine, err := r.timed(h, to, func() (round, error) { return r.image(ctx, h, to) })
		if err != nil {
			return err
		}
		theirs, err := r.timed(h, to, func() (round, error) { return r.disk.rawCopy(ctx, h.plain, to, r.o.ImageBytes) })
		if err != nil {
			return fmt.Errorf("baseline: %w", err)
		}
		ours, raw = append(ours, mine), append(raw, theirs)
		ratios = append(ratios, mine.perSecond()/theirs.perSecond())
	}
	f := figure(name, ratios)
	f.Ours, f.Baseline = rateOf(ours), rateOf(raw)
	r.res.Figures[name] = f
	return nil
}

// timed makes an image with cold caches, verifies and removes it.
func (r *journalRun) timed(h *history, path string, make func() (round, error)) (out round, err error) {
	if err := r.disk.dropCache(); err != nil {
		return out, err
	}
	out, err = make()
	if err == nil {
		err = h.verifyFile(path)
	}
	if rerr := os.Remove(path); !errors.Is(rerr, os.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	return out, err
}

// image writes the volume as of the middle to a new file.
func (r *journalRun) image(ctx context.Context, h *history, to string) (round, error) {
	start := time.Now()
	v, err := h.b.j.View(ctx, journal.Point{Position: h.middle.at})
	if err != nil {
		return round{}, err
	}
	defer v.Close()
	f, err := r.disk.open(to, os.O_RDWR|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return round{}, err
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, r.o.ImageBytes); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return round{}, err
	}
	err = v.Materialize(ctx, h.b.volume.ID, func(e cbt.Extent, p []byte) error {
		if p == nil { // what is allocated reads as zeros
			return nil
		}
		_, err := f.WriteAt(p, e.Offset)
		return err
	})
	if err != nil {
		return round{}, err
	}
	if err := f.Sync(); err != nil {
		return round{}, err
	}
	return round{bytes: r.o.ImageBytes, ops: 1, took: time.Since(start)}, nil
}

// firstBytes opens each of the moments by its name with cold caches, and reads one
// cell. The figure is the worst of all, here and in earlier calls.
func (r *journalRun) firstBytes(ctx context.Context, h *history, l look, moments []moment) error {
	name := firstByte + l.suffix
	if !r.wants(l, firstByte) {
		return nil
	}
	for n, m := range moments {
		r.progress(name, n, len(moments))
		if err := r.disk.dropCache(); err != nil {
			return err
		}
		took, err := h.firstByte(ctx, m)
		if err != nil {
			return fmt.Errorf("first byte of %s: %w", m.name, err)
		}
		r.firsts[name] = append(r.firsts[name], took)
	}
	all := round{laps: slices.Clone(r.firsts[name]), ops: len(r.firsts[name])}
	worst := slices.Max(all.laps)
	for _, took := range all.laps {
		all.took += took
	}
	f := figure(name, []float64{worst.Seconds()})
	f.Rounds, f.Ours = all.ops, rateOf([]round{all})
	f.Low = slices.Min(all.laps).Seconds()
	f.Note = "the value is the worst of all points, before and after folding"
	r.res.Figures[name] = f
	return nil
}

func (h *history) firstByte(ctx context.Context, m moment) (time.Duration, error) {
	at, err := journal.ParseAt("name:" + m.name)
	if err != nil {
		return 0, err
	}
	p := make([]byte, cellBytes)
	start := time.Now()
	pt, err := h.b.j.Resolve(ctx, at)
	if err != nil {
		return 0, err
	}
	v, err := h.b.j.View(ctx, pt)
	if err != nil {
		return 0, err
	}
	err = v.ReadAt(ctx, h.b.volume.ID, p, m.cell*cellBytes)
	took := time.Since(start)
	if err == nil && (sumOf(p) != m.sum || pt.Position != m.at) {
		err = errors.New("another cell than was written")
	}
	return took, errors.Join(err, v.Close())
}
