package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/quic-go/quic-go"
	"golang.org/x/time/rate"
)

const (
	controlWindowBytes = 8 << 20
	// freeHandshakesPerSecond come in without proving their address first; beyond
	// that callers get a Retry, so that spoofed ones cost us no state.
	freeHandshakesPerSecond = 20
	// cancelled is the code of streams that are given up; nobody reads it.
	cancelled = quic.StreamErrorCode(0)
)

// QUIC carries sessions over QUIC (RFC 9000), from one UDP socket.
type QUIC struct {
	o         Options
	socket    *net.UDPConn
	transport *quic.Transport
	listener  *quic.Listener // nil: nobody can call
	sessions  sessions[*quicConn]
	begun     chan *quicConn // wait for Accept
	closed    chan struct{}
	joining   chan struct{} // a token for each connection that has not named its session
	wg        sync.WaitGroup
}

// NewQUIC binds the one UDP socket that is listened on and dialled from.
func NewQUIC(o Options) (*QUIC, error) {
	address := o.Listen
	if address == "" {
		address = ":0"
	}
	local, err := net.ResolveUDPAddr("udp", address)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	socket, err := net.ListenUDP("udp", local)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	// Derived from the site's key, so that peers learn of our restart from the
	// first packet they send and not from their idle timeout.
	reset, token := quic.StatelessResetKey(o.ResetKey), quic.TokenGeneratorKey(o.TokenKey)
	free := rate.NewLimiter(freeHandshakesPerSecond, 2*freeHandshakesPerSecond)
	q := &QUIC{o: o, socket: socket, joining: make(chan struct{}, maxUnjoined), begun: make(chan *quicConn, maxUnjoined), closed: make(chan struct{}), transport: &quic.Transport{
		Conn:                socket,
		StatelessResetKey:   &reset,
		TokenGeneratorKey:   &token,
		VerifySourceAddress: func(net.Addr) bool { return !free.AllowN(time.Now(), 1) },
	}}
	if o.Listen == "" {
		return q, nil
	}
	if q.listener, err = q.transport.Listen(acceptTLS(o.Accept), quicConfig(o, true)); err != nil {
		q.Close()
		return nil, fmt.Errorf("listen on %s: %w", o.Listen, err)
	}
	q.wg.Go(q.acceptLoop)
	return q, nil
}

// quicConfig is used at both ends; only the listening one takes lanes.
//
// The windows bound what waits for a slow reader: a lane holds at most LaneBytes. The
// connection's window has room for all of them and the control stream at once, from the
// start: a lane that does not move must hold up neither heartbeats nor another lane.
func quicConfig(o Options, listening bool) *quic.Config {
	all := uint64(o.LaneBytes)*uint64(o.MaxLanes) + controlWindowBytes
	c := &quic.Config{
		Versions:                       []quic.Version{quic.Version1},
		HandshakeIdleTimeout:           o.HandshakeTimeout,
		MaxIdleTimeout:                 o.IdleTimeout,
		KeepAlivePeriod:                o.IdleTimeout / 3,
		InitialStreamReceiveWindow:     uint64(min(o.LaneBytes, 1<<20)),
		MaxStreamReceiveWindow:         uint64(o.LaneBytes),
		InitialConnectionReceiveWindow: all,
		MaxConnectionReceiveWindow:     all,
		MaxIncomingStreams:             int64(o.MaxQuestions),
		MaxIncomingUniStreams:          -1,
		Allow0RTT:                      false,
	}
	if listening {
		c.MaxIncomingStreams = 1 + int64(o.MaxQuestions) // the control stream
		c.MaxIncomingUniStreams = int64(o.MaxLanes)
	}
	return c
}

// Name is "quic".
func (q *QUIC) Name() string { return "quic" }

// Addr is where the socket is bound.
func (q *QUIC) Addr() net.Addr { return q.socket.LocalAddr() }

// Dial connects to host:port.
func (q *QUIC) Dial(ctx context.Context, address string, c *tls.Config) (Conn, error) {
	host, port, err := resolve(ctx, "udp", address)
	if err != nil {
		return nil, err
	}
	to := &net.UDPAddr{IP: host.IP, Zone: host.Zone, Port: port}
	conn, err := q.transport.Dial(ctx, to, c, quicConfig(q.o, false))
	if err != nil {
		return nil, quicError(err)
	}
	again := func(ctx context.Context) (*quic.Conn, error) {
		return q.transport.Dial(ctx, to, joiningTLS(c), quicConfig(q.o, false))
	}
	return newQUICConn(q, conn, again)
}

// Accept gives the next caller that begins a session.
func (q *QUIC) Accept(ctx context.Context) (Conn, error) {
	select {
	case c := <-q.begun:
		return c, nil
	case <-q.closed:
		return nil, fmt.Errorf("accept connection: %w", net.ErrClosed)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// acceptLoop tells callers that begin a session from those that join one.
func (q *QUIC) acceptLoop() {
	for {
		conn, err := q.listener.Accept(context.Background())
		if err != nil {
			return // the listener is closed
		}
		if !isJoining(conn.ConnectionState().TLS) {
			q.begin(conn)
			continue
		}
		select {
		case q.joining <- struct{}{}:
			q.wg.Go(func() { q.join(conn) })
		default:
			refuse(conn, "too many connections at once")
		}
	}
}

func refuse(conn *quic.Conn, text string) {
	_ = conn.CloseWithError(quic.ApplicationErrorCode(CodeNoSession), text) // nil or already closed
}

func (q *QUIC) begin(conn *quic.Conn) {
	c, err := newQUICConn(q, conn, nil)
	if err != nil {
		refuse(conn, err.Error())
		return
	}
	q.sessions.add(c.secret, c, keyOf(c.State()))
	context.AfterFunc(conn.Context(), func() { q.sessions.drop(c.secret) })
	select {
	case q.begun <- c:
	default:
		refuse(conn, "too many sessions at once")
	}
}

// join hands a joining connection's one stream to its session.
func (q *QUIC) join(conn *quic.Conn) {
	err := q.joinSession(conn)
	<-q.joining
	if err != nil {
		refuse(conn, ErrNoSession.Error())
	}
}

func (q *QUIC) joinSession(conn *quic.Conn) error {
	ctx, cancel := context.WithTimeout(conn.Context(), q.o.HandshakeTimeout)
	defer cancel()
	s, err := conn.AcceptUniStream(ctx)
	if err != nil {
		return err
	}
	if err := s.SetReadDeadline(time.Now().Add(q.o.HandshakeTimeout)); err != nil {
		return err
	}
	named, purpose, err := readJoin(s)
	if err != nil {
		return err
	}
	c, err := q.sessions.find(named, keyOf(conn.ConnectionState().TLS))
	if err != nil || purpose != purposeLane {
		return ErrNoSession
	}
	if err := s.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	return c.joined(conn, s)
}

// Close ends all.
func (q *QUIC) Close() error {
	close(q.closed)
	if q.listener != nil {
		_ = q.listener.Close() // what it accepted ends with the transport
	}
	err := q.transport.Close()
	q.wg.Wait()
	return errors.Join(err, q.socket.Close())
}

// Buffers are the socket's sizes in bytes as the kernel granted them (it reports
// twice what can be asked for; see socket(7), SO_RCVBUF).
func (q *QUIC) Buffers() (receive, send int, err error) {
	raw, err := q.socket.SyscallConn()
	if err != nil {
		return 0, 0, fmt.Errorf("inspect UDP buffers: %w", err)
	}
	var rerr, serr error
	err = raw.Control(func(fd uintptr) {
		receive, rerr = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF)
		send, serr = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_SNDBUF)
	})
	if err = errors.Join(err, rerr, serr); err != nil {
		return 0, 0, fmt.Errorf("inspect UDP buffers: %w", err)
	}
	return receive, send, nil
}
