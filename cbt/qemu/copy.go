package qemu

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/mode"
)

// Copier taps disks by copies that the machine's manager makes and owns. Such a
// copy sends the whole disk and, from its beginning, every write as well: QEMU's
// mirror with sync=full and copy-mode=write-blocking. Disks are named by
// Disk.Node, as the manager calls them. All methods are safe for concurrent use.
type Copier interface {
	// Size is the disk's, in bytes.
	Size(ctx context.Context, disk string) (int64, error)
	// Begin starts a copy of the disk to the export at a unix socket.
	Begin(ctx context.Context, disk, socket, export string) error
	// Copied is where the disk's copy stands, and what it is of: of nobody, if
	// there is none, of us, or of somebody else.
	Copied(ctx context.Context, disk, socket string) (CopyState, error)
	// End asks for the end of a copy of ours and does not wait for it.
	End(ctx context.Context, disk string) error
	// Woken is signalled when something may have happened to a copy of disk.
	Woken(disk string) <-chan struct{}
	Done() <-chan struct{} // closed when the session has ended
	Err() error
	Close() error
}

// CopyState is where a copy stands.
type CopyState uint8

// States of a copy.
const (
	CopyNone    CopyState = iota // there is no job on the disk
	CopyForeign                  // a job that is not ours
	CopyRuns                     // not all of the disk has been sent
	CopyReady                    // all has, and every write is
)

// copies is a session with a Copier.
type copies struct {
	Copier
	opts *Options
}

func newCopies(c Copier, o *Options) *copies { return &copies{Copier: c, opts: o} }

// hear has nothing to do: Woken tells of events.
func (c *copies) hear(context.Context) {}

// yank cannot be had here: the watchdog ends our process instead, and with it
// the connection.
func (c *copies) yank(context.Context, string) error {
	return errNoYank
}

func (c *copies) prepare(ctx context.Context, d *disk) (func(*tap) *attachment, error) {
	if err := c.clear(ctx, d); err != nil {
		return nil, fmt.Errorf("clear an earlier tap: %w", err)
	}
	size, err := c.Size(ctx, d.conf.Node)
	if err != nil {
		return nil, err
	}
	if err := d.agree(ctx, size); err != nil {
		return nil, err
	}
	// Nothing tells what was written while no copy ran.
	if err := Forget(d.opts.Memory, d.conf.Volume.ID); err != nil {
		return nil, err
	}
	return func(t *tap) *attachment {
		return &attachment{disk: d, tap: t, link: c, way: &copying{disk: d, copies: c, tap: t}}
	}, nil
}

// clear ends a copy of ours that outlived its attachment and waits until it is
// no more. A job of somebody else's is left alone. It asks a moment late: QEMU
// 7.2's main loop was seen to wait for ever in the drain at a mirror's end when
// a request that the tap had just answered came through an NBD export of QEMU's.
func (c *copies) clear(ctx context.Context, d *disk) error {
	const look, settle = 10 * time.Millisecond, 30 * time.Millisecond
	asked, seen := false, time.Now()
	for {
		s, err := c.Copied(ctx, d.conf.Node, d.opts.captureSocket())
		switch {
		case err != nil:
			return err
		case s == CopyNone:
			return nil
		case s == CopyForeign:
			return breakage(cbt.CauseTapEnded, fmt.Errorf("%w: disk %s", errForeignJob, d.conf.Node))
		case !asked && time.Since(seen) >= settle:
			asked = true
			if err := c.End(ctx, d.conf.Node); err == nil {
				continue
			} else if s, asking := c.Copied(ctx, d.conf.Node, d.opts.captureSocket()); asking != nil || s != CopyNone {
				return errors.Join(err, asking)
			}
			return nil
		}
		if !rest(ctx, c.Done(), look) {
			return errors.Join(context.Cause(ctx), c.Err())
		}
	}
}

// copying is the way by a copy. Until it has sent all, what arrives may be the disk's
// old content as well as a write: it is compared with the head, and what differs is
// recorded. Then every write is.
type copying struct {
	disk   *disk
	copies *copies
	tap    *tap
}

func (w *copying) judge(context.Context) (mode.Verdict, error) {
	return mode.Verdict{Why: wholeCopy}, nil
}

func (w *copying) listen() (<-chan struct{}, func()) {
	return w.copies.Woken(w.disk.conf.Node), func() {}
}

func (w *copying) start(ctx context.Context) error {
	d, t := w.disk, w.tap
	t.compareWith(t.volume.Size, func(c cbt.Resync) {
		d.mu.Lock()
		d.status.Resync = c
		d.mu.Unlock()
	})
	d.tracker.announce()
	if err := w.copies.Begin(ctx, d.conf.Node, d.opts.captureSocket(), t.export); err != nil {
		return fmt.Errorf("begin copy: %w", err)
	}
	return nil
}

// ready is at once: a copy sends every write from its beginning.
func (w *copying) ready(context.Context) (bool, error) { return true, nil }

// bring waits until the copy has sent all. It is asked twice, with nothing having
// failed in between: a job that fails is seen as none.
func (w *copying) bring(ctx context.Context, a *attachment, _ mode.Verdict) error {
	sent := func(ctx context.Context) (bool, error) {
		s, err := w.state(ctx)
		return s == CopyReady, err
	}
	for range 2 {
		if err := a.await(ctx, 0, sent); err != nil {
			return err
		}
	}
	if err := w.tap.endComparing(ctx); err != nil {
		return err
	}
	if err := w.disk.opts.Sink.WaitDurable(ctx); err != nil {
		return w.tap.journalBreak(err)
	}
	return a.await(ctx, 0, sent)
}

// check accepts a copy that somebody is just ending: until it has ended every write
// arrives, and then it is seen as none.
func (w *copying) check(ctx context.Context) error {
	_, err := w.state(ctx)
	return err
}

// rotate has nothing to do: every break costs the whole disk.
func (w *copying) rotate(context.Context) error { return nil }

// state is the copy's, or why there is none of ours.
func (w *copying) state(ctx context.Context) (CopyState, error) {
	s, err := w.copies.Copied(ctx, w.disk.conf.Node, w.disk.opts.captureSocket())
	switch {
	case err != nil:
		return s, err
	case w.tap.live.Err() != nil:
		return s, context.Cause(w.tap.live)
	case s == CopyNone || s == CopyForeign:
		return s, breakage(cbt.CauseTapEnded, errJobEnded)
	}
	return s, nil
}

// remove ends the copy in order, while the tap drains.
func (w *copying) remove(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commandPatience)
	defer cancel()
	if w.copies.Err() != nil {
		return
	}
	if err := w.copies.clear(ctx, w.disk); err != nil {
		w.disk.opts.Log.Warn("remove tap", "volume", w.disk.conf.Volume.Name, "error", err)
	}
}
