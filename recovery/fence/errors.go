package fence

import "errors"

// Errors of this package.
var (
	// ErrLiar: a channel said what cannot be true.
	ErrLiar = errors.New("the fence cannot be believed")
	// ErrRefused: a switch was reached and did not do it.
	ErrRefused = errors.New("the fence refused")
	// ErrUnreachable: a channel gave no answer.
	ErrUnreachable = errors.New("the fence is not reachable")
	// ErrStatement: a statement is not what it should be.
	ErrStatement = errors.New("the statement is refused")
)
