package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/novacron/afterimage/journal"
)

// foldEvery is how many moments lie between two foldings; one of each is pinned. Ten
// versions have twenty moments: about a point a version is kept, until all but the
// middle are given up at the end.
const foldEvery = 2

// foldedPast lets a history age while it is written: it is folded after every
// version, with a point of each kept, and at the end all of it but the middle and
// the newest becomes the base. It measures what that writes in the whole of the
// journal's life, and the image at the middle out of what is left.
func (r *journalRun) foldedPast(ctx context.Context, l look) (err error) {
	if !r.wants(l, folded, lifetime, firstByte) {
		return nil
	}
	r.progress("write a history that is folded"+l.suffix, 0, 1)
	var ages aging
	h, err := r.newHistory(ctx, l, ages.fold)
	if err != nil {
		return fmt.Errorf("write a history that is folded: %w", err)
	}
	defer func() { err = errors.Join(err, h.close()) }()
	if err := r.firstBytes(ctx, h, l, ages.pinned); err != nil {
		return err
	}
	if err := r.disk.settle(); err != nil {
		return err
	}
	d0, p0 := r.disk.written()
	if err := ages.thin(ctx, h); err != nil {
		return err
	}
	if err := errors.Join(h.b.close(), r.disk.settle()); err != nil { // the index too is written out
		return err
	}
	d1, p1 := r.disk.written()
	h.process += p1 - p0
	if h.device += d1 - d0; d0 < 0 {
		h.device = h.process
	}
	if ages.written == 0 {
		return errors.New("nothing was folded")
	}
	f := figure(lifetime+l.suffix, []float64{float64(h.device) / float64(h.payload)})
	f.Note = fmt.Sprintf("counted at: %s; the process alone caused %.3f; %.3f of it are runs; %d runs and %d segments are left", r.res.Setting.WrittenBy,
		float64(h.process)/float64(h.payload), float64(ages.written)/float64(h.payload), ages.left.Runs, ages.left.Segments)
	r.res.Figures[lifetime+l.suffix] = f
	if err := h.b.open(); err != nil {
		return err
	}
	if r.wants(l, folded) {
		if err := r.materialize(ctx, h, folded+l.suffix); err != nil {
			return fmt.Errorf("materialise what was folded: %w", err)
		}
	}
	return r.firstBytes(ctx, h, l, []moment{h.middle})
}

// aging folds a history, and remembers what it kept.
type aging struct {
	moments int
	pinned  []moment
	written int64 // bytes of runs
	left    journal.Usage
}

// fold pins the newest moment and folds what is older, each time in its turn.
func (a *aging) fold(ctx context.Context, h *history) error {
	if a.moments++; a.moments%foldEvery != 0 {
		return nil
	}
	m := h.moments[len(h.moments)-1]
	at, err := journal.ParseAt("name:" + m.name)
	if err != nil {
		return err
	}
	p, err := h.b.j.Resolve(ctx, at)
	if err != nil {
		return err
	}
	if _, err := h.b.j.Pin(ctx, m.name, p, false); err != nil {
		return err
	}
	a.pinned = append(a.pinned, m)
	return a.maintain(ctx, h)
}

// thin gives up all that is pinned but the middle.
func (a *aging) thin(ctx context.Context, h *history) error {
	for _, m := range a.pinned {
		if m == h.middle {
			continue
		}
		if err := h.b.j.Unpin(m.name); err != nil {
			return err
		}
	}
	return a.maintain(ctx, h)
}

// maintain does what a site does two days later.
func (a *aging) maintain(ctx context.Context, h *history) error {
	m, err := h.b.j.Maintain(ctx, journal.Maintenance{
		Retention: journal.Retention{Ladder: []journal.Rung{{Every: 24 * time.Hour}}},
		Now:       time.Now().Add(48 * time.Hour), FoldBytes: h.b.volume.Size / 2,
	})
	a.written, a.left = a.written+m.Written, m.Usage
	return err
}
