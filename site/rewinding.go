package site

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/novacron/afterimage/cbt/qemu"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/site/control"
)

// rewinding is a rewind under way:
//
//  1. the machine is turned off; that it was is remembered first, for whoever finishes
//     this starts it again. One that is tapped is halted before, so that the newest point
//     is what its disks hold, and its disks are opened (drives.go), so that nobody starts
//     it from them meanwhile;
//  2. nobody has a disk open, nobody may open one, and the reign ends: no request is
//     under way any more (closeDisks);
//  3. the newest point is pinned, so that it can be gone back to;
//  4. recovery.Promote makes the intent durable and forks the epoch;
//  5. the disks are opened again, which brings them to the new head
//     (embedded.changeBranch): until that is done, and read back, no interval is open,
//     nothing is served and the image's own memo says where it stood. A tapped machine's
//     disks are written to (settleDrives) before a tap is made.
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

	drives openDrives // of a tapped machine that is off; under life.mu

	plan    recovery.RewindPlan // as it was carried out
	epoch   uint64
	pin     string
	started bool
	times   map[string]float64
}

// stoppedKey is where the site log keeps that a machine was turned off for a rewind. What
// is owed by it ends where the role does.
const stoppedKey = "rewind/stopped"

type stoppedFor struct {
	Machine string    `json:"machine"` // empty: none
	Since   time.Time `json:"since"`
	// Tapped is a machine that this site did not start.
	Tapped *tappedMachine `json:"tapped,omitempty"`
	// Halted is that its guest stands still, or is about to, and was not ended yet.
	Halted bool `json:"halted,omitempty"`
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
	if d := l.takeDrives(); d != nil { // nothing was changed
		err = errors.Join(err, d.close())
	}
	if err != nil && w.order.Drives && !w.forks() {
		err = errors.Join(err, l.letGoOn(context.WithoutCancel(ctx), w), l.autostartBack(context.WithoutCancel(ctx)))
	}
	l.setRewinding(nil)
	defer l.leaves()
	if w.order.Machine == "" {
		return err
	}
	again := w.step(recovery.StepStart, func() (err error) {
		w.started, err = l.startAgain(ctx)
		return err
	})
	return errors.Join(err, again)
}

// forks reports that the rewind is in effect, or that the next life will see to that: the
// machine's disks are not what they are to be until it has.
func (w *rewinding) forks() bool {
	p, ok, err := recovery.Newest(w.life.j)
	return w.epoch != 0 || err != nil || ok && p.State == recovery.PromotionBegun
}

// stop is steps 1 and 2, up to the end of the reign.
func (w *rewinding) stop(ctx context.Context) error {
	l := w.life
	if w.order.Drives {
		if err := w.stopTapped(ctx); err != nil {
			return err
		}
	} else if m := w.order.Machine; m != "" {
		err := w.step(recovery.StepStop, func() error {
			if !w.noMachine {
				err := l.forgetStarts()
				if err == nil {
					err = l.j.Remember(stoppedKey, stoppedFor{Machine: m, Since: l.site.o.Now()})
				}
				if err != nil {
					return err
				}
			}
			l.alls.Lock() // after it nobody starts them: the group is being rewound
			err := l.machine(l.cfg.Machine).End(ctx)
			l.alls.Unlock()
			if err != nil || w.force {
				return err
			}
			return l.endedLocal(ctx)
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
	if r == nil || was.Tapped != nil && !l.taps() {
		return false, nil
	}
	if was.Tapped != nil {
		if err := l.startTapped(ctx, *was.Tapped); err != nil {
			return false, err
		}
		was.Machine = "" // and what is owed to its autostart stays known
		if err := l.j.Remember(stoppedKey, was); err != nil {
			return true, err
		}
		if err := l.autostartBack(ctx); err != nil {
			l.site.o.Log.Error("the domain does not start with its host any more", "group", l.cfg.Ref(), "err", err)
			return true, nil
		}
		return true, l.j.Remember(stoppedKey, stoppedFor{})
	}
	if why := l.otherMachine(was); why != nil {
		return false, why
	}
	running, err := l.ensureUnasked(ctx, l.machine(c), l.urisOf(r))
	if err != nil {
		return false, err
	}
	return true, errors.Join(running.Close(), l.j.Remember(stoppedKey, stoppedFor{}))
}

// errOtherMachine says that what a rewind turned off is not what is configured by now.
var errOtherMachine = errors.New("the group's machine is another one by now")

// otherMachine is why the machine that a rewind turned off is not started: the
// configuration has others beside it since, or none. It is pure.
func (l *life) otherMachine(was stoppedFor) error {
	switch c := l.cfg.Machine; {
	case was.Machine == "" || was.Tapped != nil || c != nil && sameMachines(c.Called(), was.Machine):
		return nil
	case c == nil:
		return fmt.Errorf("%w: a rewind turned it off at %s, and none is configured now", errOtherMachine, was.Since.Format(timeLayout))
	default:
		return fmt.Errorf("%w: a rewind turned it off at %s, and what is configured now is %s", errOtherMachine, was.Since.Format(timeLayout), c.Called())
	}
}

// startOther tells that a start stays owed, until what is configured now runs: a person
// decides whether that is what is to be started.
func (l *life) startOther(was stoppedFor, why error) error {
	if l.cfg.Machine != nil {
		all := true
		for _, m := range l.machine(l.cfg.Machine).Each() {
			_, err := m.Process()
			all = all && err == nil
		}
		if all {
			l.site.o.Log.Warn("a machine that was turned off for a rewind is not started any more: another one runs", "group", l.cfg.Ref(), "machine", was.Machine, "runs", l.cfg.Machine.Called())
			return l.j.Remember(stoppedKey, stoppedFor{})
		}
	}
	l.startLacks(was.Machine, why.Error(), "Put machine: of the group back as it was then, or start what is configured now (failover unplanned, repeated, does where the failover is not committed)")
	return why
}

// forgetStopped gives up the start that an interrupted rewind owes, where the group has
// another primary by now: a later reign here is of a history that the machine's own disks
// do not hold, or follows a decision on what is started. The domain's autostart, which
// the rewind took away, stays owed until its disks are the group's again.
func (l *life) forgetStopped() error {
	var was stoppedFor
	if ok, err := l.j.Recall(stoppedKey, &was); err != nil || !ok || was.Machine == "" && !was.Halted {
		return err
	}
	was.Machine, was.Halted = "", false
	return l.j.Remember(stoppedKey, was)
}

// startLeft does, beside a reign, what rewinds have left to be done: those that died with an
// earlier life, and those of this one that could not do it themselves.
func (l *life) startLeft(ctx context.Context, r *reign) {
	for ctx.Err() == nil {
		l.settleLeft(ctx, r)
		select {
		case <-l.left:
		case <-ctx.Done():
		}
	}
}

// leaves has startLeft look again.
func (l *life) leaves() {
	select {
	case l.left <- struct{}{}:
	default: // it will
	}
}

// settleLeft lets go on what stands still, and starts what is off, for as long as it takes.
// Nobody else is asked about what stands still: had this site only died, it would run.
func (l *life) settleLeft(ctx context.Context, r *reign) {
	said, lacks := "", false
	defer func() {
		if lacks {
			l.startWaits("", "")
		}
	}()
	for wait := askFirst; ctx.Err() == nil && !l.isRewinding(); wait = min(2*wait, renewLast) { // a rewind does so itself
		back := l.autostartBack(ctx)
		if back != nil && ctx.Err() == nil {
			l.site.o.Log.Error("the domain does not start with its host any more", "group", l.cfg.Ref(), "err", back)
		}
		err := l.letGoOn(ctx, nil)
		var was stoppedFor
		if err == nil {
			_, err = l.j.Recall(stoppedKey, &was)
		}
		started := false
		if why := l.otherMachine(was); err == nil && why != nil {
			lacks = true
			err = l.startOther(was, why)
		} else if err == nil && was.Machine != "" && (was.Tapped == nil || l.taps()) {
			if !l.untilTold(ctx, r, was.Machine) || l.isRewinding() {
				return
			}
			started, err = l.startAgain(ctx)
		}
		if started {
			l.site.o.Log.Warn("a machine that was turned off for an interrupted rewind runs again", "group", l.cfg.Ref())
		}
		if err != nil && ctx.Err() == nil && err.Error() != said && !errors.Is(err, qemu.ErrMonitor) { // one that does not answer yet, or is off
			said = err.Error()
			l.site.o.Log.Error("a machine that was turned off or halted for a rewind does not run again", "group", l.cfg.Ref(), "err", err)
		}
		if err == nil && back == nil {
			return
		}
		_ = pauseFor(ctx, wait) // the loop sees that ctx ended
	}
}

// turning is what makes the next reign of a life, when one is over.
type turning interface {
	turn(ctx context.Context) (*reign, error)
	ended(err error) // what became of it
}

func (w *rewinding) ended(err error) { w.done <- err }

// reignOn rules, and carries out what is done between two reigns, until ctx ends.
func (l *life) reignOn(ctx context.Context, r *reign) error {
	for {
		w, err := l.ruleUntil(ctx, r)
		if w == nil {
			return err
		}
		if err == nil {
			r, err = w.turn(ctx)
		}
		w.ended(err)
		if err != nil {
			return fmt.Errorf("begin another reign: %w", err)
		}
	}
}

// ruleUntil rules until ctx ends or a rewind or a pivot is asked for; its reign is over
// then.
func (l *life) ruleUntil(ctx context.Context, r *reign) (turning, error) {
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
	case p := <-l.pivot:
		end(errPivoting)
		return p, <-over
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
