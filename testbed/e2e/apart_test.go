package e2e

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/novacron/afterimage/testbed/link"
	"github.com/novacron/afterimage/testbed/scale"
	"github.com/novacron/afterimage/testbed/tunnel"
)

// space is a network namespace until the test ends.
func space(t *testing.T) *tunnel.Space {
	t.Helper()
	s, err := tunnel.NewSpace()
	if errors.Is(err, tunnel.ErrPrivilege) {
		scale.Missing(t, err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// lay connects two spaces until the test ends.
func lay(t *testing.T, near, far *tunnel.Space, number uint8, c link.Config) *tunnel.Tunnel {
	t.Helper()
	l, err := tunnel.Lay(near, far, number, c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- l.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	})
	return l
}

// apart is a source and a replica in namespaces of their own, and the tunnel through
// which the source dials.
type apart struct {
	a, b *daemon
	path *tunnel.Tunnel
	disk *ownDisk // of b
}

// newApart configures both sites and starts neither.
func newApart(t *testing.T, vs []volume, seed uint64) *apart {
	t.Helper()
	p := &apart{disk: newOwnDisk(t)}
	near, far := space(t), space(t)
	p.path = lay(t, near, far, 1, link.Config{Seed: seed})
	p.a, p.b = newDaemon(t, "a"), newDaemon(t, "b")
	p.a.space, p.b.space = near, far
	listen := fmt.Sprintf("%s:7700", p.path.Far())
	p.b.configure(fmt.Sprintf("site: b\ndata: %s\nkey: %s\ncontrol: %s\nnbd: %s\nlisten: %s\npeers:\n  - {name: a, pin: %q}\ngroups:\n  - name: g\n    role: replica\n    peers: [a]\n",
		p.disk.dir, p.b.path("site.key"), p.b.path("control.sock"), p.b.path("nbd.sock"), listen, p.a.pin()))
	p.a.configure(fmt.Sprintf("site: a\ndata: %s\npeers:\n  - {name: b, address: %q, pin: %q}\ngroups:\n  - name: g\n    role: primary\n    peers: [b]\n%s",
		p.a.dir, listen, p.b.pin(), volumesOf(p.a, vs)))
	return p
}
