package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/nbd"
)

// Tracker taps the disks of one QEMU process.
type Tracker struct {
	opts   Options
	pulse  *pulse
	server *nbd.Server

	attachments atomic.Uint64
	still       atomic.Bool // the guest may be stopped by us
	reached     time.Time   // since when sessions have followed one another; set between them

	// unplugging counts who wants rounds to themselves: a machine that waits for others
	// to begin one leaves off then.
	unplugging atomic.Int32
	rounds     sync.Mutex // held while a bitmap cycle's round is under way, and before mu

	mu        sync.Mutex // guards what follows
	disks     []*disk
	replugged chan struct{}   // closed and made anew when disks changes
	taps      map[string]*tap // by export name; those that let go stay until they are drained
	link      link            // of the session under way, nil between sessions
	asks      []*ask          // that wait for a point

	asked chan struct{} // signalled when asks grows
}

var _ cbt.Tracker = (*Tracker)(nil)

// New prepares a tracker and starts nothing.
func New(o Options) (*Tracker, error) {
	o = o.named()
	if err := o.validate(); err != nil {
		return nil, err
	}
	t := &Tracker{opts: o.withDefaults(), taps: make(map[string]*tap), replugged: make(chan struct{}), asked: make(chan struct{}, 1)}
	t.pulse = newPulse(t.opts.StallBudget)
	t.server = nbd.NewServer(nbd.ServerOptions{Lookup: t.lookup, Log: t.opts.Log, Grace: t.opts.StallBudget, Drain: time.Second})
	for _, d := range t.opts.Disks {
		t.disks = append(t.disks, newDisk(t, d))
	}
	t.opts.Cut.enlist(t)
	return t, nil
}

// Status is a moment's picture of every disk, in the order of Options.Disks; those that
// were plugged later come last.
func (t *Tracker) Status() []cbt.VolumeStatus {
	disks := t.plugged()
	out := make([]cbt.VolumeStatus, len(disks))
	for i, d := range disks {
		out[i] = d.snapshot()
		if t.opts.Every > 0 {
			out[i].Cycles = t.opts.Cut.Stats()
		} else {
			out[i].Answers = d.answers.Look()
		}
	}
	return out
}

// Run taps the disks until ctx ends, then detaches and returns nil. It returns
// an error only when the capture server cannot serve.
func (t *Tracker) Run(ctx context.Context) error {
	l, err := nbd.ListenUnix(t.opts.captureSocket(), t.opts.SocketMode)
	if err != nil {
		return fmt.Errorf("run tracker: %w", err)
	}
	if t.opts.SocketOwner != 0 {
		if err := os.Chown(t.opts.captureSocket(), t.opts.SocketOwner, -1); err != nil {
			return fmt.Errorf("run tracker: %w", errors.Join(err, l.Close()))
		}
	}
	// What serves the taps outlives ctx by the time it takes to detach.
	under, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	run, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var wg sync.WaitGroup
	var served error
	wg.Go(func() {
		if err := t.server.Serve(under, l); err != nil && under.Err() == nil {
			served = fmt.Errorf("run tracker: %w", err)
			fail(served)
		}
	})
	t.pulse.beat()
	wg.Go(func() { t.watch(under) })
	wg.Go(func() {
		t.eachPlugged(under, wg.Go, func(ctx context.Context, d *disk) { d.gaps.run(ctx) })
	})
	t.follow(run)
	for _, d := range t.plugged() {
		d.finish(under)
	}
	stop()
	wg.Wait()
	return served
}

// follow connects to the machine again and again until ctx ends.
func (t *Tracker) follow(ctx context.Context) {
	const firstPause, patience = 50 * time.Millisecond, 3 * time.Second
	pause := firstPause
	for ctx.Err() == nil {
		dial, cancel := context.WithTimeout(ctx, patience)
		l, err := t.dial(dial)
		cancel()
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			if !errors.Is(err, ErrMonitor) {
				err = fmt.Errorf("%w: %w", ErrMonitor, err)
			}
			for _, d := range t.plugged() {
				d.broke(nil, breakage(cbt.CauseMachine, err), false)
			}
			t.reached = time.Time{}
			rest(ctx, nil, pause)
			pause = min(2*pause, t.opts.Retry)
			continue
		}
		if t.reached.IsZero() {
			t.reached = time.Now()
		}
		pause = firstPause
		t.session(ctx, l)
		l.Close()
		rest(ctx, nil, firstPause)
	}
}

func (t *Tracker) dial(ctx context.Context) (link, error) {
	if t.opts.Copies != nil {
		c, err := t.opts.Copies(ctx)
		if err != nil {
			return nil, err
		}
		return newCopies(c, &t.opts), nil
	}
	mon, err := t.opts.Dial(ctx)
	if err != nil {
		return nil, err
	}
	return newMachine(mon, &t.opts), nil
}

// session works with one connection until it or ctx ends.
func (t *Tracker) session(ctx context.Context, l link) {
	t.setLink(l)
	defer t.setLink(nil)
	talking, hangUp := context.WithCancel(context.WithoutCancel(ctx))
	defer hangUp()
	var wg sync.WaitGroup
	wg.Go(func() { l.hear(talking) })
	var disks sync.WaitGroup
	if m, ok := l.(*machine); ok && t.opts.Every > 0 {
		disks.Go(func() { t.collect(ctx, m) })
	} else {
		if ok { // a life before this one may have made cycles
			if err := t.wakeLeft(ctx, m.commands); err != nil {
				t.opts.Log.Error("a guest may stand still that an earlier life stopped", "error", err)
			}
		}
		// A connection that ends ends the waiting for more disks, not those that there
		// are: each has to see that for itself.
		more, enough := context.WithCancel(ctx)
		disks.Go(func() {
			defer enough()
			select {
			case <-l.Done():
			case <-ctx.Done():
			}
		})
		disks.Go(func() {
			t.eachPlugged(more, disks.Go, func(_ context.Context, d *disk) {
				own, done := d.until(ctx)
				defer done()
				d.follow(own, l)
			})
		})
	}
	disks.Wait()
	hangUp()
	wg.Wait()
}

func (t *Tracker) setLink(l link) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.link = l
}

// lookup finds the tap behind an export name. A name of an earlier life, of an
// earlier attachment, or one that is in use is refused.
func (t *Tracker) lookup(_ context.Context, name string) (*nbd.Export, error) {
	t.mu.Lock()
	tap := t.taps[name]
	if tap == nil && t.opts.faults.anyIncarnation {
		for _, other := range t.taps {
			if strings.HasPrefix(name, other.volume.ID.String()+"/") {
				tap = other
			}
		}
	}
	t.mu.Unlock()
	if tap == nil || (!tap.claim() && !t.opts.faults.anyIncarnation) {
		return nil, fmt.Errorf("%w: %q", nbd.ErrUnknownExport, name)
	}
	return &nbd.Export{
		Name: name, Size: tap.volume.Size, Device: tap,
		Release: func() { tap.letGo(breakage(cbt.CauseTapEnded, errDisconnected)) },
	}, nil
}

// newTap makes the device of a fresh attachment of d and offers its export.
func (t *Tracker) newTap(d *disk, v cbt.Volume) *tap {
	live, end := context.WithCancelCause(context.Background())
	tap := &tap{
		volume: v, node: freshName(v.ID, ""), export: exportName(v.ID, t.opts.Incarnation, t.attachments.Add(1)),
		sink: t.opts.Sink, gate: t.opts.Gate, pulse: t.pulse, answers: &d.answers, faults: &t.opts.faults,
		live: live, end: end,
		settled: make(chan struct{}, 1), idle: make(chan struct{}, 1), ops: make(map[uint64]time.Time),
	}
	tap.prompt, _ = t.opts.Sink.(cbt.Prompt)
	tap.onLetGo = func(b *breakError, open bool) { d.broke(tap, b, open) }
	t.mu.Lock()
	defer t.mu.Unlock()
	t.taps[tap.export] = tap
	return tap
}

func (t *Tracker) dropTap(tap *tap) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.taps, tap.export)
}

// rest waits for d, ctx or stop, and reports whether it was d.
func rest(ctx context.Context, stop <-chan struct{}, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
	case <-stop:
	}
	return false
}
