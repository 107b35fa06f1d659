package runbook

import (
	"fmt"
	"slices"
	"time"
)

// Event is what an entry of a run's log says.
type Event string

// Events; append-only.
const (
	EventStarted  Event = "started"  // an action is about to be done
	EventDone     Event = "done"     // it was done, and a look says so where one can look
	EventFound    Event = "found"    // it had happened already
	EventFailed   Event = "failed"   // an attempt failed
	EventGaveUp   Event = "gave-up"  // it failed and the run goes on without it
	EventAsked    Event = "asked"    // a person has to say something
	EventAnswered Event = "answered" // and said it
	EventAborted  Event = "aborted"  // nothing more is done but the cleanup
	EventEnded    Event = "ended"    // the run is over
	EventRenewed  Event = "renewed"  // a drill begins anew, its machines are gone
)

// Answer is what a person says to a run.
type Answer string

// Answers. Yes and No are to prompts, Done and Again to a step of which nobody can
// tell whether it happened, Skip to one that failed.
const (
	Yes   Answer = "yes"
	No    Answer = "no"
	Done  Answer = "done"
	Again Answer = "again"
	Skip  Answer = "skip"
)

// Entry is one line of a run's log.
type Entry struct {
	N      int       `json:"n"` // from 0
	Time   time.Time `json:"time"`
	Event  Event     `json:"event"`
	Action int       `json:"action"` // -1: the run
	Detail string    `json:"detail,omitempty"`
	Output string    `json:"output,omitempty"` // of a program
}

// Phase is how far an action is.
type Phase string

// Phases.
const (
	Idle        Phase = "waiting"
	Interrupted Phase = "interrupted" // begun, and nobody knows how it ended
	Failed      Phase = "failed"
	Asking      Phase = "asking"
	Ended       Phase = "done"
	GivenUp     Phase = "given-up"
	Skipped     Phase = "skipped"
)

// Progress is an action's part of a State.
type Progress struct {
	Phase    Phase     `json:"phase"`
	Attempts int       `json:"attempts,omitempty"`
	Began    time.Time `json:"began,omitzero"` // the attempt that counted
	Done     time.Time `json:"done,omitzero"`
	Detail   string    `json:"detail,omitempty"`
	Output   string    `json:"output,omitempty"`
	Answer   Answer    `json:"answer,omitempty"` // not acted upon yet

	unknown bool // asked whether it happened, not a prompt
	said    bool // a prompt that was answered yes
}

// settled reports that what comes after may begin.
func (p Progress) settled() bool {
	return p.Phase == Ended || p.Phase == GivenUp || p.Phase == Skipped
}

// State is where a run stands: the fold of its log, which holds nothing else.
type State struct {
	Actions []Progress `json:"actions"`
	Aborted bool       `json:"aborted,omitempty"`
	Over    bool       `json:"over,omitempty"`
	Ended   time.Time  `json:"ended,omitzero"`
	Why     string     `json:"why,omitempty"` // it was aborted
}

// NewState is that of a run with n actions of which none has begun.
func NewState(n int) State {
	s := State{Actions: make([]Progress, n)}
	for i := range s.Actions {
		s.Actions[i].Phase = Idle
	}
	return s
}

// add takes an entry in.
func (s *State) add(e Entry) error {
	switch {
	case e.Event == EventAborted:
		s.Aborted, s.Why = true, e.Detail
		return nil
	case e.Event == EventRenewed:
		for i, p := range s.Actions {
			if !p.said {
				s.Actions[i] = Progress{Phase: Idle}
			}
		}
		return nil
	case e.Event == EventEnded:
		s.Over, s.Ended = true, e.Time
		return nil
	case e.Action < 0 || e.Action >= len(s.Actions):
		return fmt.Errorf("%w: entry %d is of step %d of %d", ErrLog, e.N, e.Action+1, len(s.Actions))
	}
	p := &s.Actions[e.Action]
	switch e.Event {
	case EventStarted:
		p.Phase, p.Began, p.Answer = Interrupted, e.Time, ""
		p.Attempts++
	case EventDone, EventFound:
		if p.Began.IsZero() {
			p.Began = e.Time
		}
		p.Phase, p.Done, p.Detail, p.Output, p.Answer = Ended, e.Time, e.Detail, e.Output, ""
	case EventFailed:
		p.Phase, p.Done, p.Detail, p.Output, p.Answer = Failed, e.Time, e.Detail, e.Output, ""
	case EventGaveUp:
		p.Phase, p.Done = GivenUp, e.Time
	case EventAsked:
		p.unknown = p.Phase == Interrupted
		p.Phase, p.Detail, p.Answer = Asking, e.Detail, ""
		if p.Began.IsZero() {
			p.Began = e.Time
		}
	case EventAnswered:
		p.Answer = Answer(e.Detail)
		p.said = p.Answer == Yes
		if p.Answer == Skip {
			p.Phase, p.Done = Skipped, e.Time
		}
	default:
		return fmt.Errorf("%w: entry %d is a %q", ErrLog, e.N, e.Event)
	}
	return nil
}

// answers are those that step id waits for.
func (s State) answers(id int) []Answer {
	switch p := s.Actions[id]; {
	case p.Phase == Asking && p.unknown:
		return []Answer{Done, Again}
	case p.Phase == Asking:
		return []Answer{Yes, No}
	case p.Phase == Failed:
		return []Answer{Skip}
	}
	return nil
}

// Word is the state in one word, for lists.
func (s State) Word() string {
	has := func(ph Phase) bool {
		return slices.ContainsFunc(s.Actions, func(p Progress) bool { return p.Phase == ph })
	}
	switch {
	case s.Over && s.Aborted:
		return "aborted"
	case s.Over && (has(GivenUp) || has(Skipped)):
		return "partly"
	case s.Over:
		return "done"
	case s.Aborted:
		return "aborting"
	case has(Asking):
		return "asking"
	case has(Failed):
		return "halted"
	}
	return "unfinished"
}

// Past is a finished run's times; ok is false for one that has no meaning for others.
func (r Run) Past() (p Past, ok bool) {
	s := r.State()
	if !s.Over || s.Aborted {
		return p, false
	}
	p = Past{Runbook: r.Plan.Runbook, Mode: r.Plan.Mode, Ended: s.Ended, Steps: map[string]time.Duration{}}
	for _, a := range r.Plan.Actions {
		done := s.Actions[a.ID]
		if a.Step.Kind == Cleanup || a.Step.Kind == Wait || done.Done.IsZero() {
			continue
		}
		p.RTO = max(p.RTO, done.Done.Sub(r.Begun))
		if done.Phase == Ended {
			p.Steps[a.Key()] = done.Done.Sub(done.Began)
		}
	}
	return p, true
}
