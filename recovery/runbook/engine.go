package runbook

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Seen is what a look says of an action's effect.
type Seen int

// Outcomes of a look.
const (
	CannotTell Seen = iota
	Happened
	NotHappened
)

// Driver does steps. Both may be called concurrently for actions of different machines.
type Driver interface {
	// Look says whether a has happened, without changing anything.
	Look(ctx context.Context, a Action) (Seen, error)
	// Do brings it about, or, for a check, asks once. It may have been interrupted in
	// the middle before. output is kept.
	Do(ctx context.Context, a Action) (output string, err error)
}

// Engine carries a plan out. One Engine of a run works at a time.
type Engine struct {
	Plan   Plan
	Log    Log
	Driver Driver
	Now    func() time.Time
	After  func(time.Duration) <-chan time.Time // default time.After
	Tell   func(Entry)                          // hears of every entry; may be nil

	mu    sync.Mutex // guards all below, and orders entries
	state State
	dead  error // the log took no entry: nothing more is done
}

// NewEngine is one that goes on where entries end.
func NewEngine(p Plan, entries []Entry, l Log, d Driver, now func() time.Time) (*Engine, error) {
	e := &Engine{Plan: p, Log: l, Driver: d, Now: now, After: time.After, state: NewState(len(p.Actions))}
	for _, x := range entries {
		if err := e.state.add(x); err != nil {
			return nil, err
		}
	}
	return e, nil
}

// State is a copy of where the run stands.
func (e *Engine) State() State {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.state
	s.Actions = slices.Clone(s.Actions)
	return s
}

// note makes an entry durable, and only then true.
func (e *Engine) note(ev Event, id int, detail, output string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.dead != nil {
		return e.dead
	}
	x := Entry{Time: e.Now(), Event: ev, Action: id, Detail: detail, Output: output}
	if err := e.Log.Append(x); err != nil {
		e.dead = err
		return err
	}
	if e.Tell != nil {
		e.Tell(x)
	}
	return e.state.add(x)
}

func (e *Engine) at(id int) Progress {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.state.Actions[id]
}

// Answer takes a person's word for step id.
func (e *Engine) Answer(id int, w Answer) error {
	if id < 0 || id >= len(e.Plan.Actions) {
		return fmt.Errorf("%w: there is no step %d", ErrAnswer, id+1)
	}
	wanted := e.State().answers(id)
	if !slices.Contains(wanted, w) {
		if len(wanted) == 0 {
			return fmt.Errorf("%w: step %d asks nothing", ErrAnswer, id+1)
		}
		return fmt.Errorf("%w: step %d wants one of %v", ErrAnswer, id+1, wanted)
	}
	return e.note(EventAnswered, id, string(w), "")
}

// Abort makes the rest of the run its cleanup, which Run does.
func (e *Engine) Abort(why string) error {
	if s := e.State(); s.Over {
		return ErrEnded
	} else if s.Aborted {
		return nil
	}
	return e.note(EventAborted, -1, why, "")
}

// Renew begins every step anew but what a person said to prompts: what the steps
// brought about is gone.
func (e *Engine) Renew(why string) error { return e.note(EventRenewed, -1, why, "") }

// result is how an action ended.
type result struct {
	action Action
	err    error
}

// Run does what is left and returns nil once the run is over; how it went is in
// State. A step that failed and halts is a *StepError, a question an *AskedError, and
// when ctx ends its cause: the run stays as it is and may be taken up again.
func (e *Engine) Run(ctx context.Context) error {
	if e.State().Over {
		return ErrEnded
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	results := make(chan result)
	busy := map[int]bool{}
	var failures []error
	for {
		if len(failures) == 0 && ctx.Err() == nil {
			for _, a := range e.ready(busy) {
				busy[a.ID] = true
				go func() { results <- result{a, e.perform(ctx, a)} }()
			}
		}
		if len(busy) == 0 {
			break
		}
		r := <-results
		delete(busy, r.action.ID)
		if r.err != nil {
			failures = append(failures, r.err)
		}
		if r.err != nil && !ofStep(r.err) { // the log, or the caller: nothing is recorded any more
			cancel(r.err)
		}
		if e.State().Aborted { // what stopped the run stops its cleanup no more
			failures = slices.DeleteFunc(failures, ofStep)
			if r.action.Step.Kind == Cleanup && r.err != nil {
				return r.err
			}
		}
	}
	if len(failures) > 0 {
		return gravest(failures)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if s := e.State(); !s.Aborted {
		if i := slices.IndexFunc(s.Actions, func(p Progress) bool { return !p.settled() }); i >= 0 {
			return fmt.Errorf("%w: step %d waits for something that never comes", ErrLog, i+1)
		}
	}
	return e.note(EventEnded, -1, "", "")
}

// ready are the actions that may begin beside those that are busy.
func (e *Engine) ready(busy map[int]bool) []Action {
	s := e.State()
	var out []Action
	for _, a := range e.Plan.Actions {
		waits := slices.ContainsFunc(a.After, func(id int) bool { return !s.Actions[id].settled() })
		if s.Aborted {
			waits = a.Step.Kind != Cleanup || len(busy) > 0
		}
		if !waits && !busy[a.ID] && !s.Actions[a.ID].settled() {
			out = append(out, a)
		}
	}
	return out
}

func ofStep(err error) bool { return errors.Is(err, ErrStep) || errors.Is(err, ErrAsked) }

// gravest is the failure that a person should hear of first: of the engine itself,
// then of a step, then a question.
func gravest(failures []error) error {
	for _, is := range []func(error) bool{func(err error) bool { return !ofStep(err) }, func(err error) bool { return errors.Is(err, ErrStep) }, ofStep} {
		if i := slices.IndexFunc(failures, is); i >= 0 {
			return failures[i]
		}
	}
	return nil
}

// perform brings one action to its end, or says why it has none.
func (e *Engine) perform(ctx context.Context, a Action) error {
	switch {
	case a.Step.Kind == Prompt:
		return e.prompt(a)
	case a.Step.Kind == Wait:
		return e.wait(ctx, a)
	case a.Step.Kind.IsCheck():
		return e.attempts(ctx, a, e.watch)
	}
	seen, err := e.Driver.Look(ctx, a)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return e.failed(a, fmt.Errorf("look whether it has happened: %w", err), "")
	case seen == Happened:
		return e.note(EventFound, a.ID, "it had happened already", "")
	}
	if p := e.at(a.ID); seen == CannotTell && !a.Step.Repeatable() && (p.Phase == Interrupted || p.Phase == Asking) {
		switch p.Answer {
		case Done:
			return e.note(EventDone, a.ID, "a person said that it happened", "")
		case Again:
		default:
			return e.ask(a, "it was interrupted and nobody can tell whether it happened: look, and say done or again")
		}
	}
	return e.attempts(ctx, a, e.once)
}

// ask stops the run for a question.
func (e *Engine) ask(a Action, question string) error {
	if e.at(a.ID).Phase != Asking {
		if err := e.note(EventAsked, a.ID, question, ""); err != nil {
			return err
		}
	}
	return &AskedError{a, question, e.State().answers(a.ID)}
}

func (e *Engine) prompt(a Action) error {
	switch e.at(a.ID).Answer {
	case Yes:
		return e.note(EventDone, a.ID, "answered yes", "")
	case No:
		return e.failed(a, errors.New("answered no"), "")
	}
	return e.ask(a, a.Step.Text)
}

// wait is the whole span anew after an interruption: the machines before it may have
// begun to boot again.
func (e *Engine) wait(ctx context.Context, a Action) error {
	if err := e.note(EventStarted, a.ID, "", ""); err != nil {
		return err
	}
	select {
	case <-e.After(a.Span):
		return e.note(EventDone, a.ID, "", "")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// attempts does a as often as its step allows.
func (e *Engine) attempts(ctx context.Context, a Action, do func(context.Context, Action) (string, error)) error {
	for try := 0; ; try++ {
		if err := e.note(EventStarted, a.ID, "", ""); err != nil {
			return err
		}
		attempt, cancel := context.WithTimeout(ctx, a.Step.Timeout)
		output, err := do(attempt, a)
		late := attempt.Err() != nil
		cancel()
		switch {
		case err == nil:
			return e.note(EventDone, a.ID, "", output)
		case ctx.Err() != nil: // the run is interrupted, and the step with it
			return context.Cause(ctx)
		case late:
			err = fmt.Errorf("not within %v: %w", a.Step.Timeout, err)
		}
		if try == a.Step.Retries {
			return e.failed(a, err, output)
		}
		if err := e.note(EventFailed, a.ID, err.Error(), output); err != nil {
			return err
		}
		select {
		case <-e.After(a.Step.Pause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// once does a, and looks whether that is so.
func (e *Engine) once(ctx context.Context, a Action) (string, error) {
	output, err := e.Driver.Do(ctx, a)
	if err != nil {
		return output, err
	}
	seen, err := e.Driver.Look(ctx, a)
	if err == nil && seen == NotHappened {
		err = ErrNotSo
	}
	return output, err
}

// watch asks until the answer is yes.
func (e *Engine) watch(ctx context.Context, a Action) (string, error) {
	for {
		output, err := e.Driver.Do(ctx, a)
		if err == nil || ctx.Err() != nil {
			return output, err
		}
		select {
		case <-e.After(a.Step.Pause):
		case <-ctx.Done():
			return output, err
		}
	}
}

// failed records a failure and does what the step's policy says.
func (e *Engine) failed(a Action, cause error, output string) error {
	if err := e.note(EventFailed, a.ID, cause.Error(), output); err != nil {
		return err
	}
	switch a.Step.OnFailure {
	case Continue:
		return e.note(EventGaveUp, a.ID, "", "")
	case Abort:
		if err := e.Abort(fmt.Sprintf("step %d, %s, failed: %v", a.ID+1, a.Name(), cause)); err != nil {
			return err
		}
	}
	return &StepError{a, cause.Error()}
}
