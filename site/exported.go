package site

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/nbd"
	"github.com/novacron/afterimage/journal"
)

// exported is a disk as its clients see it: by name, through whatever life its
// group has at the moment. While a group is opened again, because it failed or its role
// changes, requests wait, those under way too, so that a machine that runs from it sees
// a pause and not an error. After a rewind it
// answers no more: what its client knows of the disk is not so.
type exported struct {
	site    *Site
	name    string
	size    int64
	rewinds uint64 // of its group when the client came
}

// requests are those under way in a disk. The zero value is ready.
type requests struct {
	mu   sync.Mutex // guards below
	n    int
	over chan struct{} // not nil: no more; closed when the last one has left
}

func (r *requests) enter() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over != nil {
		return false
	}
	r.n++
	return true
}

func (r *requests) leave() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.n--; r.n == 0 && r.over != nil {
		close(r.over)
	}
}

// end lets no more in and waits for those that are.
func (r *requests) end() {
	r.mu.Lock()
	if r.over == nil {
		if r.over = make(chan struct{}); r.n == 0 {
			close(r.over)
		}
	}
	over := r.over
	r.mu.Unlock()
	<-over
}

var _ nbd.Device = (*exported)(nil)

// with runs f on the disk's device; the journal stays open meanwhile.
func (x *exported) with(ctx context.Context, f func(ctx context.Context, d nbd.Device) error) error {
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx) // its client has gone: nobody waits for it any more
		}
		changed := x.site.reignSignal()
		l, d := x.site.findExport(x.name)
		if d != nil && d.volume.Size == x.size {
			if l.rewinds.Load() != x.rewinds {
				return errRewound
			}
			if err := l.request(ctx, d, f); !errors.Is(err, errLifeOver) {
				return err
			}
		}
		if d == nil && !x.site.coming(x.name) { // one that is there and takes no request now will again
			return fmt.Errorf("%w: %q: the group is not primary here any more", nbd.ErrUnknownExport, x.name)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// errLifeOver says that a request is to be asked of the life that follows.
var errLifeOver = errors.New("the group's life ends")

// request has f use d while l lives. What the end of l cuts short is errLifeOver: a write
// may be on record then, and is recorded once more, for its client has heard nothing of it.
// When the site ends there is no next life, and f's error stands.
func (l *life) request(ctx context.Context, d *disk, f func(ctx context.Context, d nbd.Device) error) error {
	if l.ctx.Err() != nil || !d.requests.enter() {
		return errLifeOver
	}
	defer d.requests.leave()
	lent, leave, err := guard{l: l}.enter(ctx)
	if err != nil {
		return errLifeOver
	}
	defer leave()
	err = f(lent, d.device)
	switch {
	case err == nil || ctx.Err() != nil:
		return err
	case l.ctx.Err() != nil && errors.Is(context.Cause(l.ctx), errStopping):
		return err
	case l.ctx.Err() != nil || errors.Is(err, journal.ErrFailed) || errors.Is(err, journal.ErrClosed):
		return errLifeOver // a journal that has failed tells its writers before the life hears of it
	}
	return err
}

// reignSignal is closed when the next reign begins.
func (s *Site) reignSignal() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reign
}

func (s *Site) reignBegan() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.reign)
	s.reign = make(chan struct{})
}

// ReadAt implements nbd.Device.
func (x *exported) ReadAt(ctx context.Context, p []byte, off int64) error {
	return x.with(ctx, func(ctx context.Context, d nbd.Device) error { return d.ReadAt(ctx, p, off) })
}

// WriteAt implements nbd.Device.
func (x *exported) WriteAt(ctx context.Context, p []byte, off int64, fua bool) error {
	began := x.site.o.Now()
	err := x.with(ctx, func(ctx context.Context, d nbd.Device) error { return d.WriteAt(ctx, p, off, fua) })
	if err == nil {
		x.site.meters.answered(x.name, x.site.o.Now().Sub(began))
	}
	return err
}

// Zero implements nbd.Device.
func (x *exported) Zero(ctx context.Context, e cbt.Extent, fua, noHole bool) error {
	return x.with(ctx, func(ctx context.Context, d nbd.Device) error { return d.Zero(ctx, e, fua, noHole) })
}

// Trim implements nbd.Device.
func (x *exported) Trim(ctx context.Context, e cbt.Extent, fua bool) error {
	return x.with(ctx, func(ctx context.Context, d nbd.Device) error { return d.Trim(ctx, e, fua) })
}

// Flush implements nbd.Device.
func (x *exported) Flush(ctx context.Context) error {
	return x.with(ctx, func(ctx context.Context, d nbd.Device) error { return d.Flush(ctx) })
}

// Status implements nbd.Device.
func (x *exported) Status(ctx context.Context, e cbt.Extent) (s []nbd.StatusExtent, err error) {
	err = x.with(ctx, func(ctx context.Context, d nbd.Device) error {
		s, err = d.Status(ctx, e)
		return err
	})
	return s, err
}
