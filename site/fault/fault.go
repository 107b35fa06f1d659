package fault

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// Exit codes of the command line (DESIGN.md, section 5). They are promised:
// scripts branch on them.
const (
	ExitOK           = 0
	ExitFailed       = 1
	ExitUsage        = 2 // wrong usage, or refused for want of a confirmation
	ExitPartly       = 3
	ExitNotFound     = 10
	ExitBusy         = 11
	ExitKey          = 12 // wrong key or pin
	ExitUnreachable  = 13
	ExitObjective    = 14 // objective missed
	ExitSplitBrain   = 15 // split brain or fenced
	ExitVerification = 16
	ExitInterrupted  = 130
)

// Code is the stable name of a kind of fault, AI-E and four digits.
type Code string

// Error is a fault as a person meets it.
type Error struct {
	Code     Code   // of Table
	What     string // what was attempted and on what
	Why      string // the cause
	Hint     string // what to do; empty: the table's advice
	Evidence any    // optional details for -o json
	Err      error  // what lies beneath, for errors.Is; not printed by itself
}

// New is a fault with its texts; why is formatted.
func New(code Code, what, why string, args ...any) *Error {
	return &Error{Code: code, What: what, Why: fmt.Sprintf(why, args...)}
}

// Wrap is a fault whose cause is err.
func Wrap(code Code, what string, err error) *Error {
	return &Error{Code: code, What: what, Why: err.Error(), Err: err}
}

// Advise is e with another hint.
func (e *Error) Advise(hint string, args ...any) *Error {
	c := *e
	c.Hint = fmt.Sprintf(hint, args...)
	return &c
}

// With is e with evidence.
func (e *Error) With(evidence any) *Error {
	c := *e
	c.Evidence = evidence
	return &c
}

// Error is one line: code, what, why.
func (e *Error) Error() string {
	parts := []string{string(e.Code)}
	for _, s := range []string{e.What, e.Why} {
		if s != "" {
			parts = append(parts, s)
		}
	}
	return strings.Join(parts, ": ")
}

// Unwrap gives errors.Is and As what lies beneath.
func (e *Error) Unwrap() error { return e.Err }

// Is makes errors.Is(err, &Error{Code: c}) a test for the code.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code && t.What == "" && t.Why == ""
}

// Exit is the exit code of the command that met e.
func (e *Error) Exit() int {
	if x, ok := Lookup(e.Code); ok {
		return x.Exit
	}
	return ExitFailed
}

// Advice is e's hint, or the table's.
func (e *Error) Advice() string {
	if e.Hint != "" {
		return e.Hint
	}
	x, _ := Lookup(e.Code)
	return x.Do
}

// wire is the form of an Error in JSON, on the control socket and on stdout.
type wire struct {
	Code     Code   `json:"code"`
	What     string `json:"what"`
	Why      string `json:"why"`
	Hint     string `json:"hint"`
	Exit     int    `json:"exit"`
	Evidence any    `json:"evidence,omitempty"`
}

// MarshalJSON carries code, texts, hint and exit code.
func (e *Error) MarshalJSON() ([]byte, error) {
	return json.Marshal(wire{e.Code, e.What, e.Why, e.Advice(), e.Exit(), e.Evidence})
}

// UnmarshalJSON reads what MarshalJSON writes.
func (e *Error) UnmarshalJSON(b []byte) error {
	var w wire
	if err := json.Unmarshal(b, &w); err != nil {
		return err
	}
	*e = Error{Code: w.Code, What: w.What, Why: w.Why, Hint: w.Hint, Evidence: w.Evidence}
	return nil
}

// Of is err as a fault: itself if it holds one, else an unexpected one.
func Of(err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return Wrap(Unexpected, "", err)
}

// Is reports whether err holds a fault of that code.
func Is(err error, code Code) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == code
}
