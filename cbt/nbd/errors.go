package nbd

import (
	"context"
	"errors"
	"fmt"
)

// Errno is an error number of the protocol (proto.md, "Error values"). The
// numbers are the protocol's and do not follow the host's.
type Errno uint32

// The numbers that a Device may choose.
const (
	EPERM     Errno = 1
	EIO       Errno = 5
	ENOMEM    Errno = 12
	EINVAL    Errno = 22
	ENOSPC    Errno = 28
	EOVERFLOW Errno = 75
	ENOTSUP   Errno = 95
	ESHUTDOWN Errno = 108
)

var errnoText = map[Errno]string{
	EPERM:     "operation not permitted",
	EIO:       "input/output error",
	ENOMEM:    "out of memory",
	EINVAL:    "invalid request",
	ENOSPC:    "no space",
	EOVERFLOW: "value too large",
	ENOTSUP:   "not supported",
	ESHUTDOWN: "server is shutting down",
}

func (e Errno) Error() string {
	if t := errnoText[e]; t != "" {
		return t
	}
	return fmt.Sprintf("nbd error %d", uint32(e))
}

// Errors of both ends.
var (
	// ErrUnknownExport is returned by ServerOptions.Lookup for a name that is
	// not offered, and by Dial when the server does not offer the export.
	ErrUnknownExport = errors.New("unknown export")
	// ErrShutdown is the cause with which a device's context ends when the
	// server closes; a device that returns it has ESHUTDOWN sent.
	ErrShutdown = fmt.Errorf("nbd server closes: %w", ESHUTDOWN)
	// ErrDisconnected is the cause with which a device's context ends when the
	// client has gone without a farewell, and what calls of a Client return
	// once its connection is gone.
	ErrDisconnected = errors.New("nbd connection is gone")
	// ErrStuck is returned by Serve when devices still hold requests after the
	// drain; the requests have been answered ESHUTDOWN.
	ErrStuck = errors.New("nbd devices still hold requests")
	// ErrProtocol is wrapped by every violation of the protocol by the other end.
	ErrProtocol = errors.New("nbd protocol violation")
	// ErrUnsupported is returned by a Client when the server lacks the command.
	ErrUnsupported = errors.New("not supported by the nbd server")
	// ErrNoMetaContext is returned by Client.BlockStatus for a context that the
	// server did not grant.
	ErrNoMetaContext = errors.New("nbd meta context was not granted")
	// ErrRefused is wrapped by Dial's error when the server refuses the export
	// for another reason than not knowing it.
	ErrRefused = errors.New("refused by the nbd server")

	errTooManyConnections = errors.New("too many connections")
	errPeerNotAllowed     = errors.New("peer's user is not allowed")
	errAborted            = errors.New("client aborted the negotiation")
)

// RemoteError is an error reply.
type RemoteError struct {
	Command string
	Errno   Errno
	Message string // the server's words, may be empty
}

func (e *RemoteError) Error() string {
	if e.Message == "" {
		return fmt.Sprintf("nbd %s: %v", e.Command, e.Errno)
	}
	return fmt.Sprintf("nbd %s: %v: %q", e.Command, e.Errno, e.Message)
}

// Unwrap is the Errno, for errors.Is.
func (e *RemoteError) Unwrap() error { return e.Errno }

// errnoOf is the number to send for a device's error. A device that gave up
// because the server closes gets ESHUTDOWN even when it returns the bare
// context error.
func errnoOf(ctx context.Context, err error) Errno {
	var n Errno
	switch {
	case err == nil:
		return 0
	case errors.As(err, &n) && n != 0:
		return n
	case errors.Is(err, context.Canceled) && errors.Is(context.Cause(ctx), ErrShutdown):
		return ESHUTDOWN
	}
	return EIO
}

func violation(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrProtocol, fmt.Sprintf(format, args...))
}
