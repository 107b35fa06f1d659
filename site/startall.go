package site

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// Several machines start all or none. Where one does not start though all seemed able to,
// guests that ran are ended again; a site that tried for ever would boot and kill them for
// ever. So each start of all is counted, durably, before the first of them starts, until
// all run: after maxVain that came to nothing this site starts them no more by itself, and
// its status says so. A person may have them started all the same; another promotion, a
// rewind or a handover begins the count anew.

// allKey is where the site log keeps the starts of all machines that came to nothing.
const allKey = "machines/start"

// maxVain is how often machines are started in vain by themselves.
const maxVain = 3

// startOfAll is what came of starts since all machines last ran.
type startOfAll struct {
	Machines  string    `json:"machines,omitempty"` // empty: nothing is left to be told
	Promotion cbt.ID    `json:"promotion,omitzero"` // that they are started for
	Since     time.Time `json:"since,omitzero"`     // of the newest start
	Vain      int       `json:"vain,omitempty"`
	Open      bool      `json:"open,omitempty"` // it was begun, and nobody saw its end
	Cut       bool      `json:"cut,omitempty"`  // one was cut off, and they did not all run since
	Why       string    `json:"why,omitempty"`  // it came to nothing
}

// held reports that the machines are not started any more by themselves.
func (n startOfAll) held() bool { return n.Vain >= maxVain }

// errHeld: the machines were started in vain too often.
var errHeld = errors.New("they were started in vain, and are not started again by themselves")

// startsOfAll are those that count yet.
func (l *life) startsOfAll() (n startOfAll, err error) {
	r := l.roleNow()
	if _, err := l.j.Recall(allKey, &n); err != nil {
		return n, fmt.Errorf("recall the starts of machines: %w", err)
	}
	if l.cfg.Machine == nil || !r.Role.Captures() || n.Promotion != r.Promotion || !sameMachines(l.cfg.Machine.Called(), n.Machines) {
		return startOfAll{}, nil // of another reign, or of other machines
	}
	return n, nil
}

// sameMachines compares names as config.Machine.Called has them, in any order.
func sameMachines(a, b string) bool {
	x, y := strings.Split(a, ", "), strings.Split(b, ", ")
	slices.Sort(x)
	slices.Sort(y)
	return slices.Equal(x, y)
}

// forgetStarts begins the count anew.
func (l *life) forgetStarts() error {
	var n startOfAll
	if ok, err := l.j.Recall(allKey, &n); err != nil || !ok || n.Machines == "" {
		return err
	}
	return l.j.Remember(allKey, startOfAll{})
}

// closeStart ends what an earlier life of the daemon began and did not see the end of:
// nothing of this life was started yet.
func (l *life) closeStart() error {
	n, err := l.startsOfAll()
	if err != nil || !n.Open {
		return err
	}
	n.Open, n.Cut, n.Why = false, true, "the daemon ended while they were started"
	l.site.o.Log.Warn("a start of several machines was cut off", "group", l.cfg.Ref(), "machines", n.Machines)
	return l.j.Remember(allKey, n)
}

// startsNow is to be called before the first of several machines starts.
func (l *life) startsNow() error {
	n, err := l.startsOfAll()
	if err != nil {
		return err
	}
	r := l.roleNow()
	n.Machines, n.Promotion, n.Since, n.Open = l.cfg.Machine.Called(), r.Promotion, l.site.o.Now(), true
	n.Vain++ // a start that this process does not survive was one
	if err := l.j.Remember(allKey, n); err != nil {
		return fmt.Errorf("remember that machines are started: %w", err)
	}
	l.site.o.passes("machines are to be started")
	return nil
}

// startedAll notes what a start of the configured machine came to; it returns err, with
// what else went wrong.
func (l *life) startedAll(m recovery.Machine, err error) error {
	if len(m.Besides) == 0 {
		return err
	}
	if err == nil {
		return l.forgetStarts()
	}
	n, rerr := l.startsOfAll()
	if rerr != nil || !n.Open {
		return errors.Join(err, rerr) // none was begun
	}
	n.Open, n.Why = false, err.Error()
	if !errors.Is(err, recovery.ErrInVain) { // no guest ran that was ended
		n.Vain--
	}
	if n.Vain == 0 && !n.Cut {
		n = startOfAll{}
	}
	return errors.Join(err, l.j.Remember(allKey, n))
}

// ensure has m run because somebody asked for it.
func (l *life) ensure(ctx context.Context, m recovery.Machine, uris map[string]string) (*recovery.Running, error) {
	if len(m.Besides) == 0 {
		return m.Ensure(ctx, uris)
	}
	l.alls.Lock()
	defer l.alls.Unlock()
	if r := l.roleNow(); !r.Role.Captures() { // it was rolled back meanwhile
		return nil, fault.New(fault.MachineTrouble, "start machines "+m.Called(), "the group is %s here", r.Stage())
	}
	r, err := m.Ensure(ctx, uris)
	return r, l.startedAll(m, err)
}

// ensureUnasked is ensure where nobody asks for it now.
func (l *life) ensureUnasked(ctx context.Context, m recovery.Machine, uris map[string]string) (*recovery.Running, error) {
	if len(m.Besides) == 0 {
		return m.Ensure(ctx, uris)
	}
	l.alls.Lock()
	defer l.alls.Unlock()
	if !m.RunsWhole() {
		if err := l.mayStartUnasked(); err != nil {
			return nil, err
		}
	}
	r, err := m.Ensure(ctx, uris)
	return r, l.startedAll(m, err)
}

// startsHeld reports that the group's machines are not started any more by themselves, or
// that a start of them was cut off, and that a person may start them.
func (l *life) startsHeld() (bool, error) {
	if l.cfg.Machine == nil || len(l.cfg.Machine.Besides) == 0 {
		return false, nil
	}
	n, err := l.startsOfAll()
	stage := l.roleNow().Stage()
	return (n.held() || n.Cut) && (stage == recovery.StagePrimary || stage == recovery.StageUncommitted), err
}

// mayStartUnasked is why several machines are not started now that nobody asks for it.
func (l *life) mayStartUnasked() error {
	what := "start machines " + l.cfg.Machine.Called()
	n, err := l.startsOfAll()
	switch {
	case err != nil:
		return err
	case n.held():
		return fault.Wrap(fault.MachineTrouble, what, fmt.Errorf("%w: %d times, at last because %s", errHeld, n.Vain, n.Why))
	}
	if r := l.roleNow(); !r.Role.Captures() {
		return fault.New(fault.MachineTrouble, what, "the group is %s here", r.Stage())
	}
	if l.isRewinding() || l.moves() {
		return fault.New(fault.MachineTrouble, what, "the group is being rewound or handed over")
	}
	if c := l.conflict(); c.why != "" {
		return fault.New(fault.MachineTrouble, what, "a peer has another history: %s", c.why)
	}
	if l.guard != nil && !l.guard.holds() {
		return fault.New(fault.MachineTrouble, what, "there is no right of the witness to run them")
	}
	return nil
}

// startNotices tells of machines that were started in vain.
func (l *life) startNotices() []control.Notice {
	if l.cfg.Machine == nil || len(l.cfg.Machine.Besides) == 0 {
		return nil
	}
	n, err := l.startsOfAll()
	if n.Open { // the newest is under way
		n.Vain--
	}
	if err == nil && n.Cut && !n.held() {
		l.mu.Lock()
		which := l.cutOff
		l.mu.Unlock()
		if which == "" { // it was not looked at yet
			which = n.Machines
		}
		return []control.Notice{{Level: control.Alarm, Code: string(fault.MachineTrouble), Text: "the start of machines " + n.Machines + " was cut off: " + which,
			Hint: fmt.Sprintf("Where one of them runs the others are started by this site; else repeat: afterimage failover unplanned %s --at '%s'", l.cfg.Name, l.allAt())}}
	}
	if err != nil || n.Vain == 0 {
		return nil
	}
	text := fmt.Sprintf("machines %s were started %d times in vain: guests that ran were ended again, for one did not start: %s", n.Machines, n.Vain, n.Why)
	if n.Cut {
		l.mu.Lock()
		text += "; " + l.cutOff
		l.mu.Unlock()
	}
	if !n.held() {
		return []control.Notice{{Level: control.Alarm, Code: string(fault.MachineTrouble), Text: text, Hint: fmt.Sprintf("What this site owes a start is tried %d times in all; a failover is repeated by its command", maxVain)}}
	}
	return []control.Notice{{Level: control.Alarm, Code: string(fault.MachineTrouble), Text: text + ". They are NOT started again by themselves",
		Hint: fmt.Sprintf("Mend what keeps it from starting; then start all: afterimage failover unplanned %s --at '%s'", l.cfg.Name, l.allAt())}}
}

// allAt is the --at by which failover unplanned starts machines that are held.
func (l *life) allAt() string {
	if r := l.roleNow(); r.Role == recovery.Uncommitted && r.At != "" {
		return r.At
	}
	return "latest"
}

// machine is the configured machine as recovery starts it.
func (l *life) machine(c *config.Machine) recovery.Machine {
	m := l.site.machineFor(l.group, c)
	m.Starting = l.startsNow
	return m
}

// finishStart does beside a reign what a start of several machines left that a death of
// the daemon cut off: where some run, the others are started, as often as machines are
// started in vain; where none does, that is left to whom the start was for. Until all run
// it keeps what is told of them.
func (l *life) finishStart(ctx context.Context, r *reign) {
	defer l.tellCut("")
	said := ""
	for wait := askFirst; ctx.Err() == nil; wait = min(2*wait, renewLast) {
		n, err := l.startsOfAll()
		if err == nil && !n.Cut {
			return
		}
		which := ""
		if err == nil {
			which, err = l.finishOnce(ctx, r, n)
		}
		l.tellCut(which)
		if err != nil && ctx.Err() == nil && err.Error() != said {
			said = err.Error()
			l.site.o.Log.Error("a start of several machines that was cut off is not finished", "group", l.cfg.Ref(), "which", which, "err", err)
		}
		_ = pauseFor(ctx, wait) // the loop sees that ctx ended
	}
}

// finishOnce does one round; which says who runs and who does not.
func (l *life) finishOnce(ctx context.Context, r *reign, n startOfAll) (which string, err error) {
	m := l.machine(l.cfg.Machine)
	which, some, rest := whoRuns(m)
	l.tellCut(which)
	if !some || l.failsOver() || rest && !l.untilTold(ctx, r, n.Machines) {
		return which, nil
	}
	if which, some, _ = whoRuns(m); !some { // somebody has ended it while peers were asked
		return which, nil
	}
	running, err := l.ensureUnasked(ctx, m, l.urisOf(r))
	if err != nil {
		which, _, _ = whoRuns(m)
		return which, err
	}
	l.site.o.Log.Warn("a start of several machines that was cut off is finished", "group", l.cfg.Ref(), "machines", running.Told())
	return "", running.Close()
}

// whoRuns names those of m that run and those that do not; some run, rest does not.
func whoRuns(m recovery.Machine) (which string, some, rest bool) {
	var told []string
	for _, one := range m.Each() {
		switch _, err := one.Process(); {
		case err == nil:
			told, some = append(told, one.Name+" runs"), true
		case errors.Is(err, recovery.ErrNotRunning):
			told, rest = append(told, one.Name+" does not run"), true
		default:
			told, rest = append(told, fmt.Sprintf("nobody can tell whether %s runs (%v)", one.Name, err)), true
		}
	}
	return strings.Join(told, ", "), some, rest
}

// tellCut keeps for the status what runs of a start that was cut off.
func (l *life) tellCut(which string) {
	l.mu.Lock()
	l.cutOff = which
	l.mu.Unlock()
}
