package libvirt

import (
	"context"
	"errors"

	rpc "github.com/digitalocean/go-libvirt"
)

// Freeze makes the guest agent of a domain flush and freeze its file systems, and returns
// how many. Unless FrozeNothing says otherwise of its error, the caller must thaw: the call
// may yet succeed. So the agent is asked something harmless first: one that is not there,
// the usual reason, then leaves no doubt.
func Freeze(ctx context.Context, uri, name string) (int, error) {
	_, err := onAgent(ctx, uri, name, "ask the guest agent of ", func(l *rpc.Libvirt, d rpc.Domain) (int32, error) {
		_, _, err := l.DomainGetTime(d, 0)
		return 0, err
	})
	if err != nil && !answered(err) {
		return 0, notAsked{err}
	}
	return onAgent(ctx, uri, name, "freeze file systems of ", func(l *rpc.Libvirt, d rpc.Domain) (int32, error) {
		return l.DomainFsfreeze(d, nil, 0)
	})
}

// notAsked is why an agent was not told to freeze.
type notAsked struct{ error }

func (e notAsked) Unwrap() error { return e.error }

// answered reports that an agent may have refused: that it does not tell the time says
// nothing of what else it does.
func answered(err error) bool {
	var e *Error
	return errors.As(err, &e) && (rpc.ErrorNumber(e.Code) == rpc.ErrInternalError || rpc.ErrorNumber(e.Code) == rpc.ErrAgentCommandFailed)
}

// FrozeNothing says of Freeze's error that certainly nothing is frozen, nor will be: the
// agent was not told to, libvirtd refused before it told it (src/qemu/qemu_driver.c,
// qemuDomainFSFreeze), or the agent answered with an error, and then it has thawed
// (qga/qapi-schema.json, guest-fsfreeze-freeze). An agent that is unresponsive or out of
// time may still do what it was told.
func FrozeNothing(err error) bool {
	var not notAsked
	var e *Error
	if errors.As(err, &not) || !errors.As(err, &e) {
		return not.error != nil
	}
	switch rpc.ErrorNumber(e.Code) {
	case rpc.ErrNoDomain, rpc.ErrOperationInvalid, rpc.ErrArgumentUnsupported, rpc.ErrOperationUnsupported, rpc.ErrConfigUnsupported, rpc.ErrNoSupport,
		rpc.ErrOperationDenied, rpc.ErrAccessDenied, rpc.ErrAuthFailed, rpc.ErrAuthCancelled, rpc.ErrAuthUnavailable, rpc.ErrAgentCommandFailed:
		return true
	}
	return false
}

// Thaw undoes Freeze and returns how many file systems were still frozen: none
// means that the guest thawed by itself before.
func Thaw(ctx context.Context, uri, name string) (int, error) {
	return onAgent(ctx, uri, name, "thaw file systems of ", func(l *rpc.Libvirt, d rpc.Domain) (int32, error) {
		return l.DomainFsthaw(d, nil, 0)
	})
}

func onAgent(ctx context.Context, uri, name, what string, do func(*rpc.Libvirt, rpc.Domain) (int32, error)) (int, error) {
	c, err := Connect(ctx, uri)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	d, err := c.Domain(ctx, name)
	if err != nil {
		return 0, err
	}
	var n int32
	err = c.Call(ctx, what+name, func(l *rpc.Libvirt) (err error) {
		n, err = do(l, d.dom)
		return err
	})
	if err != nil {
		return 0, err
	}
	return int(n), nil
}
