package recovery

import (
	"cmp"
	"errors"
	"fmt"
	"strings"

	"github.com/novacron/afterimage/recovery/fence"
)

// Errors of this package.
var (
	// ErrUnfenced: nobody proved that the old primary is off, and nobody said to go
	// on all the same.
	ErrUnfenced = errors.New("the old primary is not proven to be off")
	// ErrRefused is wrapped by *RefusedError.
	ErrRefused = errors.New("the plan is refused")
	// ErrOtherPromotion: one with another point or operator was interrupted and has to
	// be finished first.
	ErrOtherPromotion = errors.New("another promotion was begun and is not finished")
	// ErrNotReigning: what only the primary's own site can do.
	ErrNotReigning = errors.New("this site is not the group's primary")
	// ErrBehindFork: a failover that is not committed forked after the point.
	ErrBehindFork = errors.New("the point lies before the fork of a failover that is not committed")
	// ErrNotNow: the role does not allow the act.
	ErrNotNow = errors.New("not possible in this role")
	// ErrMachine: a definition cannot be started.
	ErrMachine = errors.New("the machine's definition is wrong")
	// ErrNotRunning: no process of the machine is there.
	ErrNotRunning = errors.New("the machine does not run")
	// ErrWrongMachine: what runs there is another machine.
	ErrWrongMachine = errors.New("another machine runs there")
	// ErrExited: QEMU ended before it ran.
	ErrExited = errors.New("the machine's QEMU ended")
	// ErrInVain: of several machines one did not start, and others, which ran already,
	// were ended again.
	ErrInVain = errors.New("machines were started in vain")
	// ErrUnhealthy: the machine runs and its health check did not pass.
	ErrUnhealthy = errors.New("the machine's health check did not pass")
	// ErrNoScreen: the machine has nothing that could be pictured.
	ErrNoScreen = errors.New("the machine has no screen")
	// ErrUnread: a disk of a machine that is off cannot be read while nobody writes to it.
	ErrUnread = errors.New("the machine's disk cannot be read under a lock")
	// ErrUnsteady: a disk of a machine that is off does not read alike twice.
	ErrUnsteady = errors.New("the disk does not read alike twice: somebody writes to it, or the disk is failing")
	// ErrExists: the target of a restore is there.
	ErrExists = errors.New("the target exists")
	// ErrNotRegular: the target of a restore is there and is no regular file.
	ErrNotRegular = errors.New("the target is no regular file")
	// ErrNoTool: a program of another package is not installed.
	ErrNoTool = errors.New("a program is not installed")
	// ErrDrive: a disk of a machine cannot be written to from here.
	ErrDrive = errors.New("the machine's disk cannot be written to")
	// ErrWriteLost: a machine's disk does not hold what was written to it.
	ErrWriteLost = errors.New("the disk does not hold what was written to it")
	// ErrDiffers: what was written is not what the view shows.
	ErrDiffers = errors.New("the restored file differs from the point")
)

// UnprovenError is a fence that did not prove the old primary off. It is ErrUnfenced.
type UnprovenError struct {
	Group string
	Proof fence.Proof
}

func (e *UnprovenError) Error() string {
	return fmt.Sprintf("fence %s: %v: %s: %s", e.Group, ErrUnfenced, e.Proof.Result, e.Proof.Why)
}

// Unwrap makes errors.Is(err, ErrUnfenced) hold.
func (e *UnprovenError) Unwrap() error { return ErrUnfenced }

// RefusedError is why a plan may only be carried out by force.
type RefusedError struct {
	Verb    string // what was refused; default fail over
	Group   string
	Reasons []Objection
}

func (e *RefusedError) Error() string {
	var texts []string
	for _, r := range e.Reasons {
		texts = append(texts, r.Text)
	}
	verb := cmp.Or(e.Verb, "fail over")
	return fmt.Sprintf("%s %s: %v: %s", verb, e.Group, ErrRefused, strings.Join(texts, "; "))
}

// Unwrap makes errors.Is hold for ErrRefused, and for ErrUnfenced where that is a
// reason.
func (e *RefusedError) Unwrap() []error {
	errs := []error{ErrRefused}
	for _, r := range e.Reasons {
		if r.Code == ObjectionUnfenced {
			errs = append(errs, ErrUnfenced)
		}
	}
	return errs
}
