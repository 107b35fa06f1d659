package stormtest

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/novacron/afterimage/replicator/transport"
	"github.com/novacron/afterimage/replicator/transport/transporttest"
)

// maxCalls wait to be accepted.
const maxCalls = 64

var (
	errIdle      = errors.New("nothing was heard of the other end")
	errForgotten = errors.New("the connection was forgotten")
	errUnplugged = errors.New("the site is off the network")
	errReset     = errors.New("the other end knows of no such connection")
)

// site is one life of a transport at an address.
type site struct {
	n      *Network
	o      transport.Options
	addr   address
	called chan *conn
	closed chan struct{}

	conns map[*conn]bool // nil once it has ended; guarded by n.mu
}

func (s *site) Name() string   { return "storm" }
func (s *site) Addr() net.Addr { return s.addr }

// sorted are its connections, the oldest first.
func (s *site) sorted() []*conn {
	var cs []*conn
	for c := range s.conns {
		cs = append(cs, c)
	}
	slices.SortFunc(cs, func(a, b *conn) int { return int(a.born.Sub(b.born)) })
	return cs
}

func (s *site) endLocked(err error) {
	if s.conns == nil {
		return
	}
	for _, c := range s.sorted() {
		c.failLocked(err)
	}
	s.conns = nil
	if s.n.lives[s.addr] == s {
		delete(s.n.lives, s.addr)
	}
	close(s.closed)
}

func (s *site) Close() error {
	s.n.mu.Lock()
	defer s.n.mu.Unlock()
	s.endLocked(net.ErrClosed)
	s.n.stirLocked()
	return nil
}

func (s *site) Accept(ctx context.Context) (transport.Conn, error) {
	select {
	case c := <-s.called:
		return c, nil
	case <-s.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Dial takes one and a half round trips: there, back, and there again. The other end
// is a connection there once the third has arrived.
func (s *site) Dial(ctx context.Context, at string, ours *tls.Config) (transport.Conn, error) {
	out := way{s.addr, address(at)}
	s.n.mu.Lock()
	s.n.dials[out]++
	number := s.n.dials[out]
	limit := time.NewTimer(s.o.HandshakeTimeout)
	s.n.mu.Unlock()
	defer limit.Stop()
	var there *site
	for i, w := range []way{out, out.back()} {
		var err error
		if there, err = s.cross(ctx, w, []uint64{number, uint64(i)}, out.to, limit.C); err != nil {
			return nil, fmt.Errorf("dial %s: %w", at, err)
		}
	}
	here, beyond, err := transporttest.Introduce(s.addr, ours, there.o.Accept)
	if err != nil {
		return nil, err
	}
	s.n.mu.Lock()
	defer s.n.mu.Unlock()
	if s.conns == nil {
		return nil, net.ErrClosed
	}
	near, far := newPair(s, there, number, here, beyond)
	s.conns[near] = true
	near.postLocked(func() {
		if there.conns == nil {
			return
		}
		select {
		case there.called <- far:
			there.conns[far] = true
			far.listenLocked()
		default: // nobody accepts: it will miss us
		}
	}, number, 2)
	near.listenLocked()
	return near, nil
}

// cross waits until a packet of a handshake has gone a way. There is who answers.
func (s *site) cross(ctx context.Context, w way, key []uint64, called address, limit <-chan time.Time) (*site, error) {
	n := s.n
	n.mu.Lock()
	delay := n.delayLocked(w, key)
	n.mu.Unlock()
	for {
		timer := time.NewTimer(delay)
		select {
		case <-timer.C:
		case <-ctx.Done():
		case <-limit:
			timer.Stop()
			return nil, errIdle
		}
		timer.Stop()
		n.mu.Lock()
		there, open, changed := n.lives[called], !n.cut[w], n.changed
		n.mu.Unlock()
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case open && there != nil && there.o.Listen != "":
			return there, nil
		case open && there != nil:
			return nil, errors.New("nobody listens")
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-limit:
			return nil, errIdle
		}
	}
}
