package site

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/site/control"
)

// rewinding is a rewind under way:
//
//  1. the machine is turned off; that it was is remembered first, for whoever finishes
//     this starts it again;
//  2. nobody has a disk open, nobody may open one, and the reign ends: no request is
//     under way any more (closeDisks);
//  3. the newest point is pinned, so that it can be gone back to;
//  4. recovery.Promote makes the intent durable and forks the epoch;
//  5. the disks are opened again, which brings them to the new head
//     (embedded.changeBranch): until that is done, and read back, no interval is open,
//     nothing is served and the image's own memo says where it stood.
//
// Whatever dies between the intent and the end: the next life finds the intent
// (finishPromotion) or the fork, and does what is left.
type rewinding struct {
	life      *life
	order     recovery.Order
	point     journal.Point
	force     bool
	noMachine bool
	progress  func(control.Progress)
	began     time.Time
	done      chan error // one value

	plan    recovery.RewindPlan // as it was carried out
	epoch   uint64
	pin     string
	started bool
	times   map[string]float64
}

// stoppedKey is where the site log keeps that a machine was turned off for a rewind.
const stoppedKey = "rewind/stopped"

type stoppedFor struct {
	Machine string    `json:"machine"` // empty: none
	Since   time.Time `json:"since"`
}

func (l *life) isRewinding() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rewinding != nil
}

func (w *rewinding) step(name recovery.StepName, f func() error) error {
	began := w.life.site.o.Now()
	err := f()
	took := w.life.site.o.Now().Sub(began).Seconds()
	w.times[string(name)] = took
	w.progress(stepProgress(recovery.StepTime{Name: name, Seconds: took, Error: textOf(err)}))
	return err
}

// levelled is told how far an image is on its way to the head.
func (l *life) levelled(step string, done, total int64) {
	l.mu.Lock()
	w := l.rewinding
	l.mu.Unlock()
	if w != nil {
		w.progress(control.Progress{Step: step, Done: done, Total: total})
	}
	l.site.o.passes(step)
}

func textOf(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// do carries w out; the middle of it is done by who reigns (reignOn).
func (w *rewinding) do(ctx context.Context) error {
	l := w.life
	l.setRewinding(w)
	err := w.stop(ctx)
	if err == nil {
		select {
		case l.rewind <- w:
			err = <-w.done
		case <-l.ctx.Done():
			err = errDetached
		}
	}
	l.setRewinding(nil)
	if w.order.Machine == "" {
		return err
	}
	return errors.Join(err, w.step(recovery.StepStart, func() error {
		w.started, err = l.startAgain(ctx)
		return err
	}))
}

// stop is steps 1 and 2, up to the end of the reign.
func (w *rewinding) stop(ctx context.Context) error {
	l := w.life
	if m := w.order.Machine; m != "" {
		err := w.step(recovery.StepStop, func() error {
			if !w.noMachine {
				if err := l.j.Remember(stoppedKey, stoppedFor{m, l.site.o.Now()}); err != nil {
					return err
				}
			}
			return l.machine(l.cfg.Machine).End(ctx)
		})
		if err != nil {
			return err
		}
	} else if w.force {
		return nil
	}
	return l.emptied(ctx, leaveLimit)
}

// setRewinding lets nobody open a disk of the group, or everybody again.
func (l *life) setRewinding(w *rewinding) {
	l.mu.Lock()
	l.rewinding = w
	l.mu.Unlock()
	l.site.reignBegan() // who waits to open one looks again
}

// startAgain starts the machine that was turned off for a rewind, if one was: before
// its disks changed or after, never in between, for it starts from them only.
func (l *life) startAgain(ctx context.Context) (started bool, err error) {
	l.starting.Lock()
	defer l.starting.Unlock()
	var was stoppedFor
	if ok, err := l.j.Recall(stoppedKey, &was); err != nil || !ok || was.Machine == "" {
		return false, err
	}
	c, r := l.cfg.Machine, l.reigning()
	if c == nil || c.Name != was.Machine || r == nil {
		return false, nil
	}
	running, err := l.machine(c).Ensure(ctx, l.urisOf(r))
	if err != nil {
		return false, err
	}
	return true, errors.Join(running.Close(), l.j.Remember(stoppedKey, stoppedFor{}))
}

// startLeft starts what an interrupted rewind has left off.
func (l *life) startLeft(ctx context.Context) {
	if l.isRewinding() { // it does so itself
		return
	}
	if started, err := l.startAgain(ctx); err != nil {
		l.site.o.Log.Error("a machine that was turned off for a rewind did not start", "group", l.cfg.Ref(), "err", err)
	} else if started {
		l.site.o.Log.Warn("a machine that was turned off for an interrupted rewind runs again", "group", l.cfg.Ref())
	}
}

// reignOn rules, and carries out rewinds, until ctx ends.
func (l *life) reignOn(ctx context.Context, r *reign) error {
	for {
		w, err := l.ruleUntil(ctx, r)
		if w == nil {
			return err
		}
		if err == nil {
			r, err = w.turn(ctx)
		}
		w.done <- err
		if err != nil {
			return fmt.Errorf("rewind: %w", err)
		}
	}
}

// ruleUntil rules until ctx ends or a rewind is asked for; its reign is over then.
func (l *life) ruleUntil(ctx context.Context, r *reign) (*rewinding, error) {
	ruling, end := context.WithCancelCause(ctx)
	defer end(nil)
	over := make(chan error, 1)
	go func() { over <- l.rule(ruling, r) }()
	select {
	case err := <-over:
		return nil, err
	case w := <-l.rewind:
		end(errRewinding)
		return w, <-over
	}
}

// turn is steps 3 to 5.
func (w *rewinding) turn(ctx context.Context) (*reign, error) {
	l := w.life
	var err error
	if w.plan, err = l.rewindPlanTo(ctx, w.order.At, w.point); err != nil {
		return nil, err
	}
	w.plan.Machine = w.order.Machine
	if w.plan.Undo != "" {
		if w.pin, err = l.pinUndo(ctx, w.plan); err != nil {
			return nil, err
		}
	}
	l.site.o.passes("the reign is over")
	var done recovery.Promoted
	err = w.step(recovery.StepFork, func() error {
		done, err = recovery.Promote(ctx, l.promoting(), w.order, l.site.o.Now())
		return err
	})
	if err != nil {
		return nil, err
	}
	w.epoch = done.Writer.Epoch().Number
	l.setRole(done.Reign)
	l.rewinds.Add(1)
	var r *reign
	err = w.step(recovery.StepWrite, func() error {
		r, err = l.crown(ctx, done.Writer)
		return err
	})
	return r, err
}

// pinUndo keeps the newest point of what is given up, whatever the ladder says.
func (l *life) pinUndo(ctx context.Context, p recovery.RewindPlan) (string, error) {
	head, err := resolve(ctx, l.j, p.Undo)
	if err != nil {
		return "", err
	}
	name := fmt.Sprintf("before-rewind-%d", p.Epoch)
	if err := l.j.Remember(noteKey(name), "what a rewind to "+p.Point.String()+" gave up"); err != nil {
		return "", err
	}
	_, err = l.j.Pin(ctx, name, head, false)
	return name, err
}
