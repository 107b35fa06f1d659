package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/testbed/link"
	"github.com/novacron/afterimage/testbed/tunnel"
)

// ErrPrivilege: this process may not lay a link.
var ErrPrivilege = tunnel.ErrPrivilege

// path is a tunnel between two namespaces, in which ends are started.
type path struct {
	near, far *tunnel.Space
	tunnel    *tunnel.Tunnel
	stop      context.CancelFunc
	ran       chan error
}

// newPath lays it. Without the right to do so the error is ErrPrivilege.
func newPath(c link.Config) (*path, error) {
	p := &path{}
	var err error
	if p.near, err = tunnel.NewSpace(); err != nil {
		return nil, err
	}
	if p.far, err = tunnel.NewSpace(); err != nil {
		return nil, errors.Join(err, p.close())
	}
	if p.tunnel, err = tunnel.Lay(p.near, p.far, 1, c); err != nil {
		return nil, errors.Join(err, p.close())
	}
	p.run()
	return p, nil
}

// run has the tunnel pass packets until close.
func (p *path) run() {
	ctx, stop := context.WithCancel(context.Background())
	p.stop, p.ran = stop, make(chan error, 1)
	go func() { p.ran <- p.tunnel.Run(ctx) }()
}

func (p *path) close() error {
	var err error
	if p.stop != nil {
		p.stop()
		err = <-p.ran
	}
	for _, s := range []*tunnel.Space{p.near, p.far} {
		if s != nil {
			s.Close()
		}
	}
	return err
}

// address is one on the far side.
func (p *path) address(port uint16) string {
	return netip.AddrPortFrom(p.tunnel.Far(), port).String()
}

// replicated is what an end's journal is about.
type replicated struct {
	identity journal.Identity
	volume   cbt.Volume
}

func newReplicated(volumeBytes int64) replicated {
	return replicated{
		identity: journal.Identity{Tenant: cbt.NewID(), Group: cbt.NewID(), Stream: cbt.NewID()},
		volume:   cbt.Volume{ID: cbt.VolumeID(cbt.NewID()), Name: "load", Size: volumeBytes},
	}
}

// site is an end with a journal.
type site struct {
	*child
	dir string
	pin string
}

// yard is where the ends of a run have their directories.
type yard struct {
	dir  string
	made int
	end  func(context.Context) *exec.Cmd
}

// place is a directory for one end.
func (y *yard) place() string {
	y.made++
	return filepath.Join(y.dir, fmt.Sprint(y.made))
}

// newSite starts an end in a place and opens its journal.
func (y *yard) newSite(ctx context.Context, name string, start func(*exec.Cmd) error, what replicated, o EndOpen) (*site, error) {
	c, err := startChild(ctx, name, y.end, start)
	if err != nil {
		return nil, fmt.Errorf("start end %s: %w", name, err)
	}
	s := &site{child: c, dir: y.place()}
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		return nil, errors.Join(err, s.close())
	}
	o.Dir, o.Identity, o.Volume = s.dir, what.identity, what.volume
	if err := s.call(ctx, "Open", o, &s.pin); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// replica starts b in a place, listening, and has a send to it. to says more of how.
func (y *yard) replica(ctx context.Context, start func(*exec.Cmd) error, address string, a *site, what replicated, o EndOpen, to EndPeer) (*site, error) {
	b, at, err := y.listener(ctx, start, address, a, what, o)
	if err != nil {
		return nil, err
	}
	to.Name, to.Address, to.Pin = at.Name, at.Address, at.Pin
	if err := a.call(ctx, "Dial", EndDial{Peers: []EndPeer{to}}, new(None)); err != nil {
		return nil, errors.Join(err, b.close())
	}
	return b, nil
}

// listener starts b in a place, listening for a, and says how to reach it.
func (y *yard) listener(ctx context.Context, start func(*exec.Cmd) error, address string, a *site, what replicated, o EndOpen) (*site, EndPeer, error) {
	b, err := y.newSite(ctx, "b", start, what, o)
	if err != nil {
		return nil, EndPeer{}, err
	}
	to := EndPeer{Name: "b", Pin: b.pin}
	if err := b.call(ctx, "Listen", EndListen{Address: address, Callers: map[string]string{"a": a.pin}}, &to.Address); err != nil {
		return nil, to, errors.Join(err, b.close())
	}
	return b, to, nil
}

// close ends the process and removes its journal.
func (s *site) close() error { return errors.Join(s.child.close(), os.RemoveAll(s.dir)) }

func (c *child) state(ctx context.Context) (EndState, error) {
	var s EndState
	err := c.call(ctx, "State", None{}, &s)
	return s, err
}
