package libvirt

import (
	"context"

	rpc "github.com/digitalocean/go-libvirt"
)

// Freeze makes the guest agent of a domain flush and freeze its file systems,
// and returns how many. Without an agent that answers it is an *Error. A caller
// whose context ends must thaw: the call may yet succeed.
func Freeze(ctx context.Context, uri, name string) (int, error) {
	return onAgent(ctx, uri, name, "freeze file systems of ", func(l *rpc.Libvirt, d rpc.Domain) (int32, error) {
		return l.DomainFsfreeze(d, nil, 0)
	})
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
