package libvirt

import (
	"errors"
	"fmt"

	rpc "github.com/digitalocean/go-libvirt"
)

// Errors of this package. A refusal by libvirtd is an *Error that wraps one of
// the first three where its code says so.
var (
	ErrNoDomain   = errors.New("libvirt: no such domain")
	ErrNotRunning = errors.New("libvirt: the domain is not running")
	ErrExists     = errors.New("libvirt: the domain is there already")
	ErrURI        = errors.New("libvirt: unusable connection URI")
	ErrConnection = errors.New("libvirt: connection lost")
	ErrNoDisk     = errors.New("libvirt: no such disk")
	ErrReply      = errors.New("libvirt: unexpected reply")
)

// Error is a call's refusal by libvirtd.
type Error struct {
	Op      string
	Code    uint32 // virErrorNumber, libvirt's virterror.h
	Message string // for people; not stable
}

func (e *Error) Error() string {
	return fmt.Sprintf("libvirt: %s: %s (%d)", e.Op, e.Message, e.Code)
}

// Unwrap is the sentinel for the code, if there is one.
func (e *Error) Unwrap() error {
	switch rpc.ErrorNumber(e.Code) {
	case rpc.ErrNoDomain:
		return ErrNoDomain
	case rpc.ErrOperationInvalid:
		return ErrNotRunning
	case rpc.ErrDomExist:
		return ErrExists
	}
	return nil
}

func classify(op string, err error) error {
	var e rpc.Error
	if errors.As(err, &e) {
		return &Error{Op: op, Code: e.Code, Message: e.Message}
	}
	return fmt.Errorf("libvirt: %s: %w", op, err)
}
