package transporttest

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/novacron/afterimage/replicator/transport"
)

// Network is where the transports that Open opens find each other.
type Network struct {
	mu    sync.Mutex // guards all below
	sites map[string]*memory
	last  int
}

// NewNetwork is an empty one.
func NewNetwork() *Network { return &Network{sites: map[string]*memory{}} }

// address is a name on a Network.
type address string

func (a address) Network() string { return "memory" }
func (a address) String() string  { return string(a) }

// memory is one site's transport.
type memory struct {
	n      *Network
	o      transport.Options
	addr   address
	called chan *conn
	closed chan struct{}

	mu    sync.Mutex // guards conns
	conns map[*conn]bool
}

// Open binds o.Listen; where that is empty or ends in ":0", the network finds a name.
func (n *Network) Open(o transport.Options) (transport.Transport, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	at := o.Listen
	if _, port, err := net.SplitHostPort(at); err != nil || port == "0" {
		n.last++
		at = fmt.Sprintf("site-%d:1", n.last)
	}
	if n.sites[at] != nil {
		return nil, fmt.Errorf("listen on %s: address in use", at)
	}
	m := &memory{n: n, o: o, addr: address(at), called: make(chan *conn, unaccepted), closed: make(chan struct{}), conns: map[*conn]bool{}}
	n.sites[at] = m
	return m, nil
}

func (m *memory) Name() string   { return "memory" }
func (m *memory) Addr() net.Addr { return m.addr }

func (m *memory) Accept(ctx context.Context) (transport.Conn, error) {
	select {
	case c := <-m.called:
		return c, nil
	case <-m.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (m *memory) Close() error {
	m.n.mu.Lock()
	delete(m.n.sites, string(m.addr))
	m.n.mu.Unlock()
	m.mu.Lock()
	conns := m.conns
	m.conns = nil
	if conns != nil {
		close(m.closed)
	}
	m.mu.Unlock()
	for c := range conns {
		c.end(net.ErrClosed, net.ErrClosed)
	}
	return nil
}

// keep notes that c ends with m.
func (m *memory) keep(c *conn) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.conns == nil {
		return net.ErrClosed
	}
	m.conns[c] = true
	return nil
}

func (m *memory) forget(c *conn) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.conns, c)
}

func (m *memory) Dial(ctx context.Context, at string, ours *tls.Config) (transport.Conn, error) {
	m.n.mu.Lock()
	there := m.n.sites[at]
	m.n.mu.Unlock()
	if there == nil || there.o.Listen == "" {
		return nil, fmt.Errorf("dial %s: nobody listens", at)
	}
	here, beyond, err := Introduce(m.addr, ours, there.o.Accept)
	if err != nil {
		return nil, err
	}
	near, far := newPair(m, there, here, beyond)
	if err := errors.Join(m.keep(near), there.keep(far)); err != nil {
		return nil, err
	}
	select {
	case there.called <- far:
		return near, nil
	case <-there.closed:
		err = net.ErrClosed
	case <-m.closed:
		err = net.ErrClosed
	case <-ctx.Done():
		err = ctx.Err()
	}
	near.end(err, err)
	return nil, fmt.Errorf("dial %s: %w", at, err)
}
