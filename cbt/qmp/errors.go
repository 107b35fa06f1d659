package qmp

import (
	"errors"
	"fmt"
)

var (
	// ErrClosed is what calls return after Close.
	ErrClosed = errors.New("qmp: connection closed")
	// ErrLineTooLong ends a connection whose peer sends more than Options.MaxLine without a line's end.
	ErrLineTooLong = errors.New("qmp: line too long")
	// ErrOverflow is returned once by Subscription.Next in place of the events that were lost.
	ErrOverflow = errors.New("qmp: events lost, subscription full")
	// ErrNoOOB is returned by ExecuteOOB when the peer offers no out-of-band execution.
	ErrNoOOB = errors.New("qmp: peer offers no out-of-band execution")
)

// Error is a command's refusal by QEMU.
type Error struct {
	Command string
	Class   string // GenericError, CommandNotFound, DeviceNotFound, …
	Desc    string // for people; not stable
}

func (e *Error) Error() string {
	return fmt.Sprintf("qmp %s: %s (%s)", e.Command, e.Desc, e.Class)
}

// IsRefused reports whether err is QEMU's own answer, so that the connection is still good.
func IsRefused(err error) bool {
	var e *Error
	return errors.As(err, &e)
}

// ProtocolError is input that is not QMP; the connection has ended.
type ProtocolError struct {
	Line  string // its first bytes
	Cause error
}

func (e *ProtocolError) Error() string {
	return fmt.Sprintf("qmp: read message %q: %v", e.Line, e.Cause)
}

func (e *ProtocolError) Unwrap() error { return e.Cause }
