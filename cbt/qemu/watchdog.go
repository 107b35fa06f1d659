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
	// StallBudget is how long beats may be missing of a tracker that does not say it
	// itself, and the least that counts; default 1 s. It must exceed the trackers' own, or
	// what they could have settled is cut.
	StallBudget time.Duration
	// KillAfter is how much longer a process may be silent whose nodes were
	// yanked, before it is killed; default 10 s. Where nothing could be yanked
	// it is killed at once. Where a guest stands still, and cannot be resumed, that is
	// tried for as long: an end of the process resumes nobody.
	KillAfter time.Duration
	Log       *slog.Logger // must not write to a disk that can stall; nil: silent

	// Dial is the way to the monitor that a beat names; nil: DialQMP.
	Dial func(ctx context.Context, address string) (Monitor, error)
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
	if o.Dial == nil {
		o.Dial = DialQMP
	}
	return o
}

// RunWatchdog keeps guests from waiting for a capturing process that does not
// get on: stopped, swapped out, stuck in the kernel. It is the whole work of a
// process of its own, whose memory is locked and which touches no disk. It
// returns nil when the pipe's other end has gone, for then the capturing process
// has too and its sockets with it, or when it has killed it. A guest that stands still for
// the instant of a cycle it resumes before that.
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
				w.resumeAll(ctx)
				return nil
			}
		case err := <-ended:
			w.resumeAll(ctx)
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
	budget  time.Duration // how long it may be silent
	still   bool          // its guest may be stopped
	heard   time.Time     // the newest beat
	acted   time.Time     // first, since then
	freed   bool          // since then
	monitor *line
}

func (w *watchdog) heard(ctx context.Context, b beat, now time.Time) {
	x := w.watched[b.Key]
	switch {
	case b.Gone:
		if x != nil && x.still {
			w.wake(ctx, b.Key, x, x.budget/2)
		}
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
	x.budget = max(b.Patience, w.opts.StallBudget)
	x.nodes, x.still, x.heard, x.acted, x.freed = b.Nodes, b.Still, now, time.Time{}, false
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
		if len(x.nodes) == 0 && !x.still || silent <= x.budget {
			continue
		}
		first := x.acted.IsZero()
		if first {
			x.acted = now
		}
		late := now.Sub(x.acted) > w.opts.KillAfter
		if !x.freed {
			err := w.free(ctx, x)
			x.freed = err == nil
			if x.freed {
				w.opts.Log.Warn("capture is silent: its guest was let go", "tracker", key, "silent", silent, "yanked", len(x.nodes), "resumed", x.still)
				continue
			}
			if first || late {
				w.opts.Log.Error("capture is silent and its guest cannot be let go", "tracker", key, "silent", silent, "error", err)
			}
			late = late || len(x.nodes) > 0
		}
		if !late {
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

// free lets the guest of x go: its writes are not waited for any more, and it runs.
func (w *watchdog) free(ctx context.Context, x *watched) error {
	var errs []error
	if len(x.nodes) > 0 {
		errs = append(errs, w.yank(ctx, x))
	}
	if x.still {
		errs = append(errs, w.resume(ctx, x, x.budget/4))
	}
	return errors.Join(errs...)
}

// resumePatience is how long the end of the capturing process is waited with for a
// monitor through which a guest can be resumed.
const resumePatience = 5 * time.Second

// resumeAll is for the end of the capturing process: nobody else would.
func (w *watchdog) resumeAll(ctx context.Context) {
	for key, x := range w.watched {
		if !x.still {
			continue
		}
		x.monitor.await(ctx, resumePatience) // this process may have just begun
		w.wake(ctx, key, x, resumePatience)
	}
}

// wake is resume of a guest whose capture has ended: nobody tries again.
func (w *watchdog) wake(ctx context.Context, key string, x *watched, patience time.Duration) {
	if err := w.resume(ctx, x, patience); err != nil {
		w.opts.Log.Error("a guest may stand still that nobody resumes", "tracker", key, "error", err)
	} else {
		w.opts.Log.Warn("capture has ended while its guest stood still for it: it does not any more", "tracker", key)
	}
}

// resume lets a guest run that was stopped for the instant of a cycle. One that runs, or
// stands still for another reason, is left alone.
func (w *watchdog) resume(ctx context.Context, x *watched, patience time.Duration) error {
	mon := x.monitor.get()
	if mon == nil {
		return ErrMonitor
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	state, err := commands{mon}.guestState(ctx)
	if err != nil || state != guestPaused {
		return err
	}
	return mon.Execute(ctx, "cont", nil, nil)
}

// yank cuts every node of x. One that has gone already is none the worse.
func (w *watchdog) yank(ctx context.Context, x *watched) error {
	mon := x.monitor.get()
	if mon == nil {
		return ErrMonitor
	}
	ctx, cancel := context.WithTimeout(ctx, x.budget/2)
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
	address string
	opts    WatchdogOptions
	ctx     context.Context
	stop    context.CancelFunc

	mu  sync.Mutex // guards mon
	mon Monitor
}

func newLine(ctx context.Context, address string, o WatchdogOptions) *line {
	l := &line{address: address, opts: o}
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

// await waits for a connection, for as long as patience.
func (l *line) await(ctx context.Context, patience time.Duration) {
	const look = 20 * time.Millisecond
	for end := time.Now().Add(patience); l != nil && l.get() == nil && time.Now().Before(end); {
		if !rest(ctx, nil, look) {
			return
		}
	}
}

func (l *line) set(m Monitor) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mon = m
}

func (l *line) run() {
	const pause, longest, patience = 200 * time.Millisecond, 2 * time.Second, 3 * time.Second
	for next := pause; l.ctx.Err() == nil; next = min(2*next, longest) {
		dial, cancel := context.WithTimeout(l.ctx, patience)
		mon, err := l.opts.Dial(dial, l.address)
		cancel()
		if err == nil {
			l.set(mon)
			select {
			case <-mon.Done():
			case <-l.ctx.Done():
			}
			l.set(nil)
			mon.Close()
			next = pause
		}
		rest(l.ctx, nil, next)
	}
}
