package qemu

import (
	"errors"
	"fmt"

	"github.com/novacron/afterimage/cbt"
)

var (
	// ErrNode means that the configured node is not there or is not the one the guest writes to.
	ErrNode = errors.New("block node cannot be tapped")
	// ErrNBDServerBusy means that the QEMU already runs an NBD server, of which
	// there is one per process, and that Options.ReadServer does not name it.
	ErrNBDServerBusy = errors.New("an NBD server that is not ours runs in this QEMU (name its socket in ReadServer, or stop it)")
	// ErrMonitor means that no QMP socket answers, or that it went away.
	ErrMonitor = errors.New("no monitor")
	// ErrOptions is wrapped by New's errors.
	ErrOptions = errors.New("tracker options")

	errJobEnded     = errors.New("the mirror job ended")
	errNoYank       = errors.New("a manager's copy cannot be yanked")
	errForeignJob   = errors.New("somebody else's block job runs")
	errBitmapBusy   = errors.New("bitmap is busy")
	errSizeChanged  = errors.New("disk has another size")
	errDisconnected = errors.New("QEMU left the capture export")
)

// breakError is why an attachment ended.
type breakError struct {
	cause cbt.Cause
	err   error
}

func (e *breakError) Error() string { return fmt.Sprintf("%s: %v", e.cause, e.err) }
func (e *breakError) Unwrap() error { return e.err }

func breakage(cause cbt.Cause, err error) *breakError { return &breakError{cause, err} }

// asBreak finds or makes the breakError of err.
func asBreak(err error) *breakError {
	var b *breakError
	switch {
	case errors.As(err, &b):
		return b
	case errors.Is(err, cbt.ErrDiskFull):
		return breakage(cbt.CauseDiskFull, err)
	case errors.Is(err, ErrMonitor):
		return breakage(cbt.CauseMachine, err)
	}
	return breakage(cbt.CauseTapError, err)
}
