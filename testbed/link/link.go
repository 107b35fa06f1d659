package link

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const (
	// maxDatagram is the largest UDP payload, in bytes.
	maxDatagram = 65507
	// maxClients is how many client addresses a Link keeps apart.
	maxClients = 256
	// socketBytes is asked of the kernel for each socket, so that it drops nothing
	// that the dice let through.
	socketBytes = 8 << 20
)

// Link is a path from clients of Addr to a target, and back.
type Link struct {
	target netip.AddrPort
	near   *net.UDPConn
	toward *Pipe // clients → target
	back   *Pipe // target → clients

	mu      sync.Mutex // guards clients and closed
	clients map[netip.AddrPort]*net.UDPConn
	closed  bool
}

// New binds a loopback address for a path to target.
func New(target netip.AddrPort, c Config) (*Link, error) {
	toward, err := NewPipe(c, 0)
	if err != nil {
		return nil, err
	}
	back, err := NewPipe(c, 1)
	if err != nil {
		return nil, err
	}
	near, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		return nil, fmt.Errorf("bind link: %w", err)
	}
	widen(near)
	return &Link{target: target, near: near, toward: toward, back: back, clients: map[netip.AddrPort]*net.UDPConn{}}, nil
}

// Addr is where clients send to.
func (l *Link) Addr() netip.AddrPort {
	return l.near.LocalAddr().(*net.UDPAddr).AddrPort()
}

// Cut drops everything in both directions, what is on the way included, until Heal.
func (l *Link) Cut() {
	l.toward.Cut()
	l.back.Cut()
}

// Heal ends a Cut.
func (l *Link) Heal() {
	l.toward.Heal()
	l.back.Heal()
}

// Set changes the path's conditions for datagrams that arrive from now on. The dice
// go on where they are; Seed is not looked at.
func (l *Link) Set(c Config) error {
	if err := l.toward.Set(c); err != nil {
		return err
	}
	return l.back.Set(c)
}

// Stats are the sums of both directions so far.
func (l *Link) Stats() (toward, back Stats) { return l.toward.Stats(), l.back.Stats() }

// Run relays until ctx ends (nil) or a socket fails. It may be called once.
func (l *Link) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	g.Go(func() error { return l.toward.Run(ctx) })
	g.Go(func() error { return l.back.Run(ctx) })
	g.Go(func() error { return l.readNear(ctx, g) })
	err := g.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Close frees the sockets; a Run ends.
func (l *Link) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for _, far := range l.clients {
		far.Close()
	}
	if err := l.near.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

func (l *Link) readNear(ctx context.Context, g *errgroup.Group) error {
	buf := make([]byte, maxDatagram)
	for {
		n, from, err := l.near.ReadFromUDPAddrPort(buf)
		if err != nil {
			return err
		}
		far, fresh, err := l.client(from)
		if err != nil {
			return err
		}
		if fresh {
			g.Go(func() error { return l.readFar(ctx, far, from) })
		}
		l.toward.Take(buf[:n], func(p []byte) {
			// The target may be down: its ICMP answer is a lost datagram to us.
			far.Write(p)
		})
	}
}

func (l *Link) readFar(ctx context.Context, far *net.UDPConn, client netip.AddrPort) error {
	buf := make([]byte, maxDatagram)
	for {
		n, err := far.Read(buf)
		if errors.Is(err, unix.ECONNREFUSED) {
			continue
		}
		if err != nil {
			return err
		}
		l.back.Take(buf[:n], func(p []byte) { l.near.WriteToUDPAddrPort(p, client) })
	}
}

// client is the socket through which a client's datagrams reach the target, so that
// answers find their way back.
func (l *Link) client(from netip.AddrPort) (far *net.UDPConn, fresh bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, false, net.ErrClosed
	}
	if far = l.clients[from]; far != nil {
		return far, false, nil
	}
	if len(l.clients) == maxClients {
		return nil, false, ErrTooManyClients
	}
	far, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(l.target))
	if err != nil {
		return nil, false, fmt.Errorf("dial %v: %w", l.target, err)
	}
	widen(far)
	l.clients[from] = far
	return far, true, nil
}

// widen asks for large socket buffers: past the system's limit as root, else up to it.
func widen(c *net.UDPConn) {
	c.SetReadBuffer(socketBytes)
	c.SetWriteBuffer(socketBytes)
	if raw, err := c.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) {
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, socketBytes)
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, socketBytes)
		})
	}
}
