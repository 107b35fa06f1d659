package runbook

import (
	"errors"
	"fmt"
)

// Errors of this package.
var (
	// ErrNoRun: there is no run of that name.
	ErrNoRun = errors.New("no such run")
	// ErrEnded: the run is over.
	ErrEnded = errors.New("the run is over")
	// ErrRunning: another engine carries the run out.
	ErrRunning = errors.New("the run is under way")
	// ErrLog: a run's files are not what was written.
	ErrLog = errors.New("the run's record is damaged")
	// ErrStep is wrapped by *StepError.
	ErrStep = errors.New("a step failed")
	// ErrAsked is wrapped by *AskedError.
	ErrAsked = errors.New("the run waits for a person")
	// ErrAnswer: nobody asked, or not that.
	ErrAnswer = errors.New("that is no answer to what the run waits for")
	// ErrNotSo: a step was done without an error, and what it was for is not so.
	ErrNotSo = errors.New("it was done, but a look afterwards says otherwise")
)

// StepError is a step that failed and stopped its run, which can be resumed.
type StepError struct {
	Action Action
	Why    string
}

func (e *StepError) Error() string {
	return fmt.Sprintf("step %d, %s: %v: %s", e.Action.ID+1, e.Action.Name(), ErrStep, e.Why)
}

// Unwrap makes errors.Is hold for ErrStep.
func (e *StepError) Unwrap() error { return ErrStep }

// AskedError is what a run waits for a person to say.
type AskedError struct {
	Action   Action
	Question string
	Answers  []Answer
}

func (e *AskedError) Error() string {
	return fmt.Sprintf("step %d, %s: %v: %s", e.Action.ID+1, e.Action.Name(), ErrAsked, e.Question)
}

// Unwrap makes errors.Is hold for ErrAsked.
func (e *AskedError) Unwrap() error { return ErrAsked }
