package site

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/nbd"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/site/config"
)

// reign is what a life has as a primary: the pen of its epoch and the disks whose
// writes it takes.
type reign struct {
	writer  *journal.Writer
	disks   []*disk
	tracker cbt.Tracker // of the tapped ones; nil where there are none
}

// disk is one captured volume.
type disk struct {
	volume cbt.Volume
	kind   string
	device nbd.Device                      // what clients reach; nil for a tapped one
	run    func(ctx context.Context) error // blocks until ctx ends; may be nil
	status func() cbt.VolumeStatus         // may be nil
	close  func() error                    // may be nil
}

func (l *life) reigning() *reign {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.reign
}

// volumeStates is where capture stands with each volume.
func (l *life) volumeStates() []cbt.VolumeStatus {
	r := l.reigning()
	if r == nil {
		return nil
	}
	var out []cbt.VolumeStatus
	for _, d := range r.disks {
		if d.status != nil {
			out = append(out, d.status())
		}
	}
	if r.tracker != nil {
		out = append(out, r.tracker.Status()...)
	}
	return out
}

// reignFrom begins an epoch, opens the disks and captures until ctx ends. With a
// promotion the epoch forks at its point and the outcome is told to who asked.
func (l *life) reignFrom(ctx context.Context, p *promotion) error {
	r, err := l.enthrone(ctx, p)
	if p != nil {
		p.done <- outcome{reign: r, err: err}
	}
	if err != nil {
		return err
	}
	g, running := errgroup.WithContext(ctx)
	for _, d := range r.disks {
		if d.run != nil {
			g.Go(func() error {
				if err := d.run(running); err != nil && running.Err() == nil {
					return fmt.Errorf("volume %s: %w", d.volume.Name, err)
				}
				return nil
			})
		}
	}
	if r.tracker != nil {
		g.Go(func() error { return l.track(running, r) })
	}
	g.Go(func() error { <-running.Done(); return nil })
	err = g.Wait()
	l.mu.Lock()
	l.reign = nil
	l.mu.Unlock()
	return errors.Join(err, closeDisks(r.disks))
}

// enthrone does all that can fail before the first write is taken.
func (l *life) enthrone(ctx context.Context, p *promotion) (r *reign, err error) {
	from := journal.Position{}
	if p != nil {
		from = p.from
	}
	w, err := l.beginEpoch(ctx, from)
	if err != nil {
		return nil, fmt.Errorf("begin epoch: %w", err)
	}
	if p != nil {
		rec := p.record
		rec.Epoch, rec.ID, rec.Since = w.Epoch().Number, w.Epoch().ID, l.site.o.Now()
		if err := rememberRole(l.j, rec); err != nil {
			return nil, err
		}
		l.setRole(rec)
	}
	r = &reign{writer: w}
	defer func() {
		if err != nil {
			err = errors.Join(err, closeDisks(r.disks))
		}
	}()
	if err := l.describe(ctx, w); err != nil {
		return r, err
	}
	if l.roleNow().Role == uncommitted {
		err = l.openJournaled(ctx, r)
	} else {
		err = l.openCaptured(ctx, r)
	}
	if err != nil {
		return r, err
	}
	l.mu.Lock()
	l.reign = r
	l.mu.Unlock()
	l.site.reignBegan()
	l.site.repl.Refresh()
	l.site.o.Log.Info("epoch begins", "group", l.cfg.Ref(), "epoch", w.Epoch().Number, "id", w.Epoch().ID.Short(), "role", l.roleNow().Role)
	return r, nil
}

// describe records what machine the group's disks belong to, so that every point
// carries it.
func (l *life) describe(ctx context.Context, w *journal.Writer) error {
	if l.cfg.Machine == nil {
		return nil
	}
	definition, err := json.Marshal((&config.Config{Groups: []config.Group{{Machine: l.cfg.Machine}}}).Masked().Groups[0].Machine)
	if err != nil {
		return err
	}
	if err := w.Machine(ctx, l.cfg.Machine.Name, definition); err != nil {
		return fmt.Errorf("record machine %s: %w", l.cfg.Machine.Name, err)
	}
	return nil
}

func closeDisks(disks []*disk) error {
	var errs []error
	for _, d := range disks {
		if d.close != nil {
			errs = append(errs, d.close())
		}
	}
	return errors.Join(errs...)
}
