package site

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/nbd"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/site/config"
)

// reign is what a life has as a primary: the pen of its epoch and the disks whose
// writes it takes.
type reign struct {
	writer  *journal.Writer
	disks   []*disk
	tracker *tapping // of the tapped ones; nil where there are none

	watching *watching // looks at the writes; nil: nobody wants that
	plugs    []*plugs  // of each domain
}

// disk is one captured volume.
type disk struct {
	volume   cbt.Volume
	kind     string
	guest    string                          // the machine that has it, where the group has several
	image    string                          // of a local one (pivot.go): where its machine has it
	identity string                          // of the block device that image is; "": it is a file
	device   nbd.Device                      // what clients reach; nil for a tapped one
	run      func(ctx context.Context) error // blocks until ctx ends; may be nil
	status   func() cbt.VolumeStatus         // may be nil
	close    func() error                    // may be nil
	// checkpoint makes what is outside the journal durable, so that less of the past is
	// needed; may be nil.
	checkpoint func(ctx context.Context) error

	requests requests
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

// coronation is a reign that a failover has made, or why its epoch has none; or an
// epoch whose reign is still to be made.
type coronation struct {
	reign  *reign
	err    error
	writer *journal.Writer
}

// firstReign reads the role, and at the first start makes the configured one durable.
func firstReign(j *journal.Journal, first config.Role, now time.Time) (recovery.Reign, error) {
	r, ok, err := recovery.RecallReign(j)
	if err != nil || ok {
		return r, err
	}
	r = recovery.Reign{Role: recovery.Role(first), Since: now}
	return r, recovery.RememberReign(j, r)
}

// enthrone begins an epoch at the head and opens the disks.
func (l *life) enthrone(ctx context.Context) (*reign, error) {
	begin := func(ctx context.Context) (*journal.Writer, error) {
		return awaited{l.j}.BeginEpoch(ctx, l.site.cfg.Site, journal.Position{}, 0)
	}
	if l.roleNow().Stage() == recovery.StageRenewing {
		begin = l.renewed
	}
	w, err := begin(ctx)
	if err != nil {
		return nil, err
	}
	return l.crown(ctx, w)
}

// crown opens the disks of w's epoch and makes them the group's: all that can fail
// before the first write is taken.
func (l *life) crown(ctx context.Context, w *journal.Writer) (*reign, error) {
	r := &reign{writer: w}
	err := l.describe(ctx, w)
	if err == nil && l.comesHome() {
		err = l.bringHome(ctx, w)
	}
	if err == nil && l.servesJournal() {
		err = l.openJournaled(ctx, r)
	} else if err == nil {
		err = l.openCaptured(ctx, r)
	}
	if err != nil {
		return nil, errors.Join(err, closeDisks(r.disks))
	}
	l.mu.Lock()
	l.reign = r
	l.mu.Unlock()
	l.site.reignBegan()
	l.site.repl.Refresh()
	l.site.o.Log.Info("epoch begins", "group", l.cfg.Ref(), "epoch", w.Epoch().Number, "id", w.Epoch().ID.Short(), "role", l.roleNow().Role)
	return r, nil
}

// servesJournal reports whether the group's disks are what the journal holds, and
// nothing else: after a failover to a site whose own disks, if it has any, hold
// something older. Images of this site are brought to the head once it is committed;
// a domain's disks when it is handed back to it (home.go), and then Reign.Own says so. A
// local disk (pivot.go) is the history's and the image beside it, until another promotion.
func (l *life) servesJournal() bool {
	r := l.roleNow()
	switch {
	case r.Role == recovery.Uncommitted:
		return true
	case r.From.IsZero() || r.Own || l.comesHome():
		return false
	}
	if p, err := l.pivotedNow(r); err != nil || p.some() {
		return true // the machine that was started here has them open itself
	}
	images := len(l.cfg.Volumes) > 0
	for _, v := range l.cfg.Volumes {
		images = images && v.Embedded != nil
	}
	return !images
}

// rule captures until ctx ends.
func (l *life) rule(ctx context.Context, r *reign) error {
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
	for _, beside := range []func(context.Context){l.scheduleMarks, func(ctx context.Context) { l.startLeft(ctx, r) }, func(ctx context.Context) { l.startWithdrawn(ctx, r) }, l.keepPolicy, l.protect, func(ctx context.Context) { l.startAsked(ctx, r) }, func(ctx context.Context) { l.startTaken(ctx, r) }, func(ctx context.Context) { l.startWitnessed(ctx, r) }, func(ctx context.Context) { l.finishStart(ctx, r) }, l.goOn} {
		g.Go(func() error {
			beside(running)
			return nil
		})
	}
	if r.watching != nil {
		g.Go(func() error {
			r.watching.run(running)
			return nil
		})
	}
	if r.tracker != nil {
		g.Go(func() error { return l.track(running, r) })
		for _, p := range r.plugs {
			g.Go(func() error {
				p.run(running)
				return nil
			})
		}
		g.Go(func() error {
			l.thawLeft(running)
			return nil
		})
	}
	g.Go(func() error { <-running.Done(); return nil })
	err := g.Wait()
	l.mu.Lock()
	l.reign = nil
	l.mu.Unlock()
	return errors.Join(err, closeDisks(r.disks))
}

// describe records what machine the group's disks belong to, so that every point
// carries it.
func (l *life) describe(ctx context.Context, w *journal.Writer) error {
	if err := l.recordMachines(ctx, w); err != nil {
		return err
	}
	if l.cfg.Machine == nil || l.hosted() { // a domain's definition comes from the tap
		return nil
	}
	shown := (&config.Config{Groups: []config.Group{{Machine: l.cfg.Machine}}}).Masked().Groups[0].Machine
	for _, m := range shown.Each() {
		definition, err := json.Marshal(m)
		if err != nil {
			return err
		}
		if err := w.Machine(ctx, m.Name, definition); err != nil {
			return fmt.Errorf("record machine %s: %w", m.Name, err)
		}
	}
	return nil
}

func closeDisks(disks []*disk) error {
	var errs []error
	for _, d := range disks {
		d.requests.end()
		if d.close != nil {
			errs = append(errs, d.close())
		}
	}
	return errors.Join(errs...)
}
