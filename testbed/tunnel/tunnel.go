package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sync/errgroup"

	"github.com/novacron/afterimage/testbed/link"
)

// end is one side of a Tunnel.
type end struct {
	space *Space
	name  string // of the device
	file  *os.File
	addr  netip.Addr
	out   *link.Pipe // what this side sends
}

// Tunnel is a path between two spaces, near and far.
type Tunnel struct {
	near, far end
}

// Lay connects two spaces by the network 10.213.number.0/24: near has its address 1,
// far 2. A pair of spaces, and a space, may have several, with different numbers.
func Lay(near, far *Space, number uint8, c link.Config) (*Tunnel, error) {
	t := &Tunnel{near: end{space: near}, far: end{space: far}}
	for i, e := range []*end{&t.near, &t.far} {
		var err error
		if e.out, err = link.NewPipe(c, uint64(i)); err != nil {
			return nil, err
		}
		e.addr, e.name = netip.AddrFrom4([4]byte{10, 213, number, byte(i + 1)}), e.space.nextDevice()
	}
	for _, e := range []*end{&t.near, &t.far} {
		err := e.space.Do(func() (err error) {
			e.file, err = device(e.name, e.addr)
			return err
		})
		if err != nil {
			return nil, errors.Join(fmt.Errorf("lay tunnel %d: %w", number, privilege(err)), t.Close())
		}
	}
	return t, nil
}

// Near is the address of the near side, Far that of the other.
func (t *Tunnel) Near() netip.Addr { return t.near.addr }

// Far is the address of the far side.
func (t *Tunnel) Far() netip.Addr { return t.far.addr }

// Set changes the conditions of both directions for what comes from now on.
func (t *Tunnel) Set(c link.Config) error {
	if err := t.SetToward(c); err != nil {
		return err
	}
	return t.SetBack(c)
}

// SetToward changes those of the direction from near to far alone.
func (t *Tunnel) SetToward(c link.Config) error { return t.near.out.Set(c) }

// SetBack changes those of the direction from far to near alone.
func (t *Tunnel) SetBack(c link.Config) error { return t.far.out.Set(c) }

// Cut drops everything in both directions, what is on the way included, until Heal.
func (t *Tunnel) Cut() {
	t.CutToward()
	t.CutBack()
}

// CutToward drops all that goes from near to far, until Heal.
func (t *Tunnel) CutToward() { t.near.out.Cut() }

// CutBack drops all that goes from far to near, until Heal.
func (t *Tunnel) CutBack() { t.far.out.Cut() }

// Heal ends every cut.
func (t *Tunnel) Heal() {
	t.near.out.Heal()
	t.far.out.Heal()
}

// MoveNear gives the near side another address of the network, in place of the one
// that it has: host is from 3 to 254, or 1. Far stays where it is.
func (t *Tunnel) MoveNear(host uint8) error {
	b := t.near.addr.As4()
	b[3] = host
	return t.near.space.Do(func() error { return address(t.near.name, netip.AddrFrom4(b)) })
}

// Stats are the sums of both directions so far, of IP packets.
func (t *Tunnel) Stats() (toward, back link.Stats) { return t.near.out.Stats(), t.far.out.Stats() }

// Run passes packets until ctx ends (nil) or a device fails. It may be called once.
func (t *Tunnel) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, func() { t.Close() })
	defer stop()
	for _, way := range []struct{ from, to *end }{{&t.near, &t.far}, {&t.far, &t.near}} {
		g.Go(func() error { return way.from.out.Run(ctx) })
		g.Go(func() error { return way.from.read(way.to) })
	}
	err := g.Wait()
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// read takes what this side sends, for the other.
func (e *end) read(to *end) error {
	// A device that is down, or a packet that the kernel does not take, is a lost packet.
	send := func(p []byte) { to.file.Write(p) }
	buf := make([]byte, 1<<16)
	for {
		n, err := e.file.Read(buf)
		if err != nil {
			return err
		}
		e.out.Take(buf[:n], send)
	}
}

// Close takes the devices away; a Run ends. The spaces stay.
func (t *Tunnel) Close() error {
	var err error
	for _, e := range []*end{&t.near, &t.far} {
		if e.file == nil {
			continue
		}
		if e := e.file.Close(); e != nil && !errors.Is(e, os.ErrClosed) {
			err = errors.Join(err, e)
		}
	}
	return err
}
