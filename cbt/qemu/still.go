package qemu

import (
	"context"
	"fmt"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/qmp"
)

// stopPatience bounds the stop of a guest: longer than libvirtd has a command wait for its
// turn, 30 s. Without an answer it may yet be carried out, behind what was sent after it.
const stopPatience = 40 * time.Second

// Of the states of a guest one is what a stop of ours leaves. The others in which it does
// not run (the end of a migration, an error of a disk, a start that somebody holds back)
// are not ours to end.
const (
	guestRuns   = "running"
	guestPaused = "paused"
)

func stillKey(v cbt.ID) string { return "qemu/" + v.String() + "/still" }

// foresee asks whether the guest runs, and remembers that it may be stopped by us, so
// that a life that ends in between does not leave it so. It takes its time.
func (c *collector) foresee(ctx context.Context) error {
	if c.t.opts.Still != nil {
		return nil
	}
	state, err := c.m.guestState(ctx)
	if c.ran = err == nil && state == guestRuns; !c.ran {
		return err // one that stands still already is not ours to wake
	}
	if err := c.t.opts.Memory.Remember(stillKey(c.t.opts.Name), true); err != nil {
		return fmt.Errorf("remember the pause: %w", err)
	}
	c.t.still.Store(true)
	c.t.announce() // from now on the watchdog resumes the guest if we do not get on
	return nil
}

// hush stops the machine's guest until wake.
func (c *collector) hush(ctx context.Context) error {
	if still := c.t.opts.Still; still != nil {
		resume, err := still(ctx, c.m.Monitor)
		c.resume = resume
		return err
	}
	if !c.ran {
		return nil
	}
	if state, err := c.m.guestState(ctx); err != nil || state != guestRuns {
		return err // somebody has stopped it since
	}
	answered := make(chan struct{})
	var answer error
	go func() {
		defer close(answered)
		answer = c.m.stopGuest(ctx)
	}()
	c.resume = func(ctx context.Context) error {
		select {
		case <-answered:
		case <-ctx.Done():
			return fmt.Errorf("resume the guest: its stop has no answer: %w", context.Cause(ctx))
		}
		if err := c.m.do(ctx, "cont", nil, nil); err != nil {
			return fmt.Errorf("resume the guest: %w", err)
		}
		return nil
	}
	select {
	case <-answered:
		return answer
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// stopGuest returns when the guest has stopped or will not, whoever leaves meanwhile:
// libvirtd carries out the calls of a connection side by side, and a stop that overtakes
// the cont behind it is undone by nobody.
func (c commands) stopGuest(caller context.Context) error {
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(caller), stopPatience, fmt.Errorf("no reply within %v", stopPatience))
	defer cancel()
	err := c.Execute(ctx, "stop", nil, nil)
	if err != nil && !qmp.IsRefused(err) {
		c.Close()
		return fmt.Errorf("%w: %w", ErrMonitor, err)
	}
	return err
}

// wake undoes hush, whatever became of it or of ctx.
func (c *collector) wake(ctx context.Context) error {
	if c.resume == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopPatience+commandPatience)
	defer cancel()
	err := c.resume(ctx)
	if err == nil {
		c.resume = nil
	}
	return err
}

// forgetStill is for after a pause: writing to Memory takes time.
func (c *collector) forgetStill() error {
	if c.t.opts.Still != nil || c.resume != nil {
		return nil
	}
	return c.t.forgetStill()
}

func (t *Tracker) forgetStill() error {
	t.still.Store(false)
	t.announce()
	return t.opts.Memory.Remember(stillKey(t.opts.Name), false)
}

// leftStill reports whether an earlier life may have left the guest stopped.
func (t *Tracker) leftStill() (still bool, err error) {
	_, err = t.opts.Memory.Recall(stillKey(t.opts.Name), &still)
	return still, err
}

// wakeLeft resumes a guest that an earlier life may have left stopped.
func (t *Tracker) wakeLeft(ctx context.Context, c commands) error {
	if still, err := t.leftStill(); err != nil || !still {
		return err
	}
	if state, err := c.guestState(ctx); err != nil {
		return err
	} else if state == guestPaused {
		t.opts.Log.Warn("resume a guest that an earlier life left stopped")
		if err := c.do(ctx, "cont", nil, nil); err != nil {
			return fmt.Errorf("resume the guest: %w", err)
		}
	}
	return t.forgetStill()
}

// WakeLeft resumes a guest that an earlier life may have left stopped for the instant of a
// cycle, beside a tracker that does not run: Run does so itself. An error: nobody knows.
func (t *Tracker) WakeLeft(ctx context.Context) error {
	if still, err := t.leftStill(); err != nil || !still {
		return err
	}
	l, err := t.dial(ctx)
	if err != nil {
		return err
	}
	defer l.Close()
	m, ok := l.(*machine)
	if !ok {
		return fmt.Errorf("%w: the machine is not tapped through one any more", ErrMonitor)
	}
	return t.wakeLeft(ctx, m.commands)
}

// guestState asks for the guest's, QEMU's RunState.
func (c commands) guestState(ctx context.Context) (string, error) {
	var status struct {
		State string `json:"status"`
	}
	err := c.do(ctx, "query-status", nil, &status)
	return status.State, err
}
