package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/novacron/afterimage/cbt/qmp"
)

// WatchdogOptions of RunWatchdog.
type WatchdogOptions struct {
	Pipe io.Reader   // beats; the reading end of the pipe whose other end a Heartbeat has
	Proc *os.Process // the capturing process
	// StallBudget is how long beats may be missing; default 1 s. It must exceed
	// the trackers' own, or what they could have settled is cut.
	StallBudget time.Duration
	// KillAfter is how much longer a process may be silent whose nodes were
	// yanked, before it is killed; default 10 s. Where nothing could be yanked
	// it is killed at once.
	KillAfter time.Duration
	Log       *slog.Logger // must not write to a disk that can stall; nil: silent

	dial func(ctx context.Context, path string) (Monitor, error) // nil: DialQMP
}

func (o WatchdogOptions) withDefaults() WatchdogOptions {
	if o.StallBudget <= 0 {
		o.StallBudget = time.Second
	}
	if o.KillAfter <= 0 {
		o.KillAfter = 10 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.dial == nil {
		o.dial = DialQMP
	}
	return o
}

// RunWatchdog keeps guests from waiting for a capturing process that does not
// get on: stopped, swapped out, stuck in the kernel. It is the whole work of a
// process of its own, whose memory is locked and which touches no disk. It
// returns nil when the pipe's other end has gone, for then the capturing process
// has too and its sockets with it, or when it has killed it.
func RunWatchdog(ctx context.Context, o WatchdogOptions) error {
	o = o.withDefaults()
	if o.Pipe == nil || o.Proc == nil {
		return fmt.Errorf("%w: watchdog without Pipe or Proc", ErrOptions)
	}
	if err := lockMemory(); err != nil {
		o.Log.Warn("watchdog memory is not locked; it may be swapped out when it is needed", "error", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	w := &watchdog{opts: o, watched: make(map[string]*watched)}
	defer w.lines.Wait()
	defer cancel()
	beats := make(chan beat)
	ended := make(chan error, 1)
	// The reader ends with the pipe, which may outlive ctx by the life of the process.
	go func() {
		ended <- readBeats(o.Pipe, func(b beat) {
			select {
			case beats <- b:
			case <-ctx.Done():
			}
		})
	}()
	tick := time.NewTicker(o.StallBudget / 8)
	defer tick.Stop()
	last := time.Now()
	for {
		select {
		case b := <-beats:
			w.heard(ctx, b, time.Now())
		case <-tick.C:
			now := time.Now()
			if now.Sub(last) > o.StallBudget/2 {
				w.excuse(now) // we stood still ourselves: give everybody a fresh start
			}
			last = now
			if w.judge(ctx, now) {
				return nil
			}
		case err := <-ended:
			return err
		case <-ctx.Done():
			return nil
		}
	}
}

// watchdog is the state of RunWatchdog's loop, which alone touches it.
type watchdog struct {
	opts    WatchdogOptions
	watched map[string]*watched // by tracker
	lines   sync.WaitGroup      // one goroutine for each monitor
}

// watched is one tracker.
type watched struct {
	nodes   []string
	heard   time.Time // the newest beat
	acted   bool      // since then
	monitor *line
}

func (w *watchdog) heard(ctx context.Context, b beat, now time.Time) {
	x := w.watched[b.Key]
	switch {
	case b.Gone:
		if x != nil && x.monitor != nil {
			x.monitor.stop()
		}
		delete(w.watched, b.Key)
		return
	case x == nil:
		x = &watched{}
		w.watched[b.Key] = x
		if b.QMP != "" {
			x.monitor = newLine(ctx, b.QMP, w.opts)
			w.lines.Go(x.monitor.run)
		}
	}
	x.nodes, x.heard, x.acted = b.Nodes, now, false
}

func (w *watchdog) excuse(now time.Time) {
	for _, x := range w.watched {
		x.heard = now
	}
}

// judge acts on trackers that are silent, and reports whether the process was killed.
func (w *watchdog) judge(ctx context.Context, now time.Time) bool {
	for key, x := range w.watched {
		silent := now.Sub(x.heard)
		if len(x.nodes) == 0 || silent <= w.opts.StallBudget {
			continue
		}
		if !x.acted {
			x.acted = true
			err := w.yank(ctx, x)
			if err == nil {
				w.opts.Log.Warn("capture is silent: its nodes were yanked", "tracker", key, "silent", silent)
				continue
			}
			w.opts.Log.Error("capture is silent and its nodes cannot be yanked", "tracker", key, "silent", silent, "error", err)
		} else if silent <= w.opts.StallBudget+w.opts.KillAfter {
			continue
		}
		w.opts.Log.Error("killing the capturing process", "pid", w.opts.Proc.Pid, "tracker", key)
		if err := w.opts.Proc.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			w.opts.Log.Error("kill the capturing process", "error", err)
			return false
		}
		return true
	}
	return false
}

// yank cuts every node of x. One that has gone already is none the worse.
func (w *watchdog) yank(ctx context.Context, x *watched) error {
	mon := x.monitor.get()
	if mon == nil {
		return ErrMonitor
	}
	ctx, cancel := context.WithTimeout(ctx, w.opts.StallBudget/2)
	defer cancel()
	cut := 0
	var errs []error
	for _, n := range x.nodes {
		err := commands{mon}.yank(ctx, n)
		var refused *qmp.Error
		switch {
		case err == nil:
			cut++
		case errors.As(err, &refused) && refused.Class == "DeviceNotFound":
		default:
			errs = append(errs, err)
		}
	}
	if cut == 0 && len(errs) == 0 {
		return errors.New("none of its nodes can be yanked")
	}
	return errors.Join(errs...)
}

// line keeps a connection to one monitor ready.
type line struct {
	path string
	opts WatchdogOptions
	ctx  context.Context
	stop context.CancelFunc

	mu  sync.Mutex // guards mon
	mon Monitor
}

func newLine(ctx context.Context, path string, o WatchdogOptions) *line {
	l := &line{path: path, opts: o}
	l.ctx, l.stop = context.WithCancel(ctx)
	return l
}

func (l *line) get() Monitor {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mon
}

func (l *line) set(m Monitor) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mon = m
}

func (l *line) run() {
	const pause, patience = 200 * time.Millisecond, 3 * time.Second
	for l.ctx.Err() == nil {
		dial, cancel := context.WithTimeout(l.ctx, patience)
		mon, err := l.opts.dial(dial, l.path)
		cancel()
		if err == nil {
			l.set(mon)
			select {
			case <-mon.Done():
			case <-l.ctx.Done():
			}
			l.set(nil)
			mon.Close()
		}
		rest(l.ctx, nil, pause)
	}
}
