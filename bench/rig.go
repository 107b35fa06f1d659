package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"sync/atomic"

	"github.com/novacron/afterimage/testbed/link"
)

// rig is two sites, a and b, each a process, and what lies between them: packets in a
// tunnel between two namespaces or, where those are not to be had, datagrams in a relay
// on the loopback.
type rig struct {
	*yard
	o     RPOOptions
	a, b  *site
	to    EndPeer // b, as a reaches it
	path  *path
	relay *link.Link
	stop  context.CancelFunc // of relay
	ran   chan error
	cut   atomic.Bool
}

func (o RPOOptions) conditions() link.Config {
	c := link.Config{RTT: o.RTT, Loss: o.Loss, BytesPerSecond: o.LinkRate, Seed: o.Seed}
	if o.LinkRate > 0 { // as much as is under way in a round trip waits at most
		c.QueueBytes = max(int64(o.RTT.Seconds()*float64(o.LinkRate)), 64<<10)
	}
	return c
}

// newRig starts everything but the load.
func newRig(ctx context.Context, o RPOOptions) (_ *rig, err error) {
	r := &rig{yard: &yard{dir: o.Dir, end: o.End}, o: o}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	r.path, err = newPath(o.conditions())
	if err != nil && !errors.Is(err, ErrPrivilege) {
		return nil, err
	}
	start, listen := [2]func(*exec.Cmd) error{}, "127.0.0.1:0"
	if r.path != nil {
		start, listen = [2]func(*exec.Cmd) error{r.path.near.Start, r.path.far.Start}, r.path.address(benchPort)
	}
	what := newReplicated(slots * o.WriteBytes)
	if r.a, err = r.newSite(ctx, "a", start[0], what, EndOpen{Source: true, SyncProcess: true}); err != nil {
		return nil, err
	}
	if r.b, r.to, err = r.listener(ctx, start[1], listen, r.a, what, EndOpen{SyncProcess: true}); err != nil {
		return nil, err
	}
	if r.path == nil {
		if err := r.relayed(); err != nil {
			return nil, err
		}
	}
	return r, r.a.call(ctx, "Dial", EndDial{Peers: []EndPeer{r.to}}, new(None))
}

// relayed puts a relay before b.
func (r *rig) relayed() error {
	target, err := netip.ParseAddrPort(r.to.Address)
	if err != nil {
		return fmt.Errorf("relay to %s: %w", r.to.Address, err)
	}
	if r.relay, err = link.New(target, r.o.conditions()); err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	r.stop, r.ran = stop, make(chan error, 1)
	go func() { r.ran <- r.relay.Run(ctx) }()
	r.to.Address = r.relay.Addr().String()
	return nil
}

// between is the path's name in results.
func (r *rig) between() string {
	if r.path == nil {
		return "datagrams"
	}
	return "packets"
}

// setCut cuts the path, or makes it whole again.
func (r *rig) setCut(cut bool) {
	var path interface {
		Cut()
		Heal()
	} = r.relay
	if r.path != nil {
		path = r.path.tunnel
	}
	r.cut.Store(cut)
	if cut {
		path.Cut()
	} else {
		path.Heal()
	}
}

// close ends everything that newRig started.
func (r *rig) close() error {
	var err error
	for _, s := range []*site{r.a, r.b} {
		if s != nil {
			err = errors.Join(err, s.close())
		}
	}
	if r.relay != nil {
		r.stop()
		err = errors.Join(err, <-r.ran)
	}
	if r.path != nil {
		err = errors.Join(err, r.path.close())
	}
	return err
}
