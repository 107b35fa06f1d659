package transport

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// TLS carries sessions over TCP and TLS 1.3, without a multiplexer: each stream of a
// session is a connection of its own, so that none waits for another's lost packets.
// The first one of a session carries nothing but signs of life and the end:
//
//	0  kind u8: 0 alive, 1 the session ends | reserved u8 | code u16
//	4  length of the text u16 | reserved u16
//	8  text
//
// The listening end says first that it is alive: then the caller knows that it was let in.
type TLS struct {
	o        Options
	listener net.Listener // nil: nobody can call
	accept   *tls.Config
	sessions sessions[*tlsConn]
	begun    chan *tlsConn
	joining  chan struct{} // a token for each caller whose session is not known yet

	ctx  context.Context // ends with Close
	stop context.CancelFunc
	wg   sync.WaitGroup
}

const (
	signBytes = 8
	signAlive = 0
	signEnd   = 1
	maxText   = 512
)

// NewTLS listens, if o says so.
func NewTLS(o Options) (*TLS, error) {
	ctx, stop := context.WithCancel(context.Background())
	t := &TLS{o: o, begun: make(chan *tlsConn, maxUnjoined), joining: make(chan struct{}, maxUnjoined), ctx: ctx, stop: stop}
	if o.Listen == "" {
		return t, nil
	}
	l, err := net.Listen("tcp", o.Listen)
	if err != nil {
		stop()
		return nil, fmt.Errorf("listen on %s: %w", o.Listen, err)
	}
	t.listener, t.accept = l, acceptTLS(o.Accept)
	t.wg.Go(t.acceptLoop)
	return t, nil
}

// Name is "tls".
func (t *TLS) Name() string { return "tls" }

// Addr is where callers come in; nil where nobody can call.
func (t *TLS) Addr() net.Addr {
	if t.listener == nil {
		return nil
	}
	return t.listener.Addr()
}

// Close ends all.
func (t *TLS) Close() error {
	t.stop()
	var err error
	if t.listener != nil {
		err = t.listener.Close()
	}
	t.wg.Wait()
	return err
}

// Accept gives the next caller that begins a session.
func (t *TLS) Accept(ctx context.Context) (Conn, error) {
	select {
	case c := <-t.begun:
		return c, nil
	case <-t.ctx.Done():
		return nil, fmt.Errorf("accept connection: %w", net.ErrClosed)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (t *TLS) acceptLoop() {
	for {
		raw, err := t.listener.Accept()
		if err != nil {
			return // the listener is closed
		}
		select {
		case t.joining <- struct{}{}:
			t.wg.Go(func() {
				t.welcome(raw)
				<-t.joining
			})
		default:
			_ = raw.Close() // too many whom nobody knows; they try again
		}
	}
}

// welcome finds out who calls and what for.
func (t *TLS) welcome(raw net.Conn) {
	tune(raw, t.o)
	conn := tls.Server(&wide{Conn: raw}, t.accept)
	if err := t.shake(t.ctx, conn); err != nil {
		_ = raw.Close() // nothing was said yet
		return
	}
	var err error
	if isJoining(conn.ConnectionState()) {
		err = t.join(conn, raw)
	} else {
		err = t.begin(conn, raw)
	}
	if err != nil {
		_ = conn.SetDeadline(time.Now().Add(lingerLimit))                              // fails with the connection
		_, _ = conn.Write(sign{signEnd, CodeNoSession, ErrNoSession.Error()}.encode()) // likewise
		_ = conn.Close()                                                               // likewise
	}
}

func (t *TLS) shake(ctx context.Context, conn *tls.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, t.o.HandshakeTimeout)
	defer cancel()
	return conn.HandshakeContext(ctx)
}

func (t *TLS) begin(conn *tls.Conn, raw net.Conn) error {
	c, err := newTLSConn(t, conn, raw, nil)
	if err != nil {
		return err
	}
	t.sessions.add(c.secret, c, keyOf(c.State()))
	if err := c.sign(signAlive, 0, ""); err != nil {
		t.sessions.drop(c.secret)
		return err
	}
	c.start()
	select {
	case t.begun <- c:
		return nil
	default:
		c.Close(CodeNoSession, "too many sessions at once")
		return nil
	}
}

func (t *TLS) join(conn *tls.Conn, raw net.Conn) error {
	if err := conn.SetReadDeadline(time.Now().Add(t.o.HandshakeTimeout)); err != nil {
		return err
	}
	named, purpose, err := readJoin(conn)
	if err != nil {
		return err
	}
	c, err := t.sessions.find(named, keyOf(conn.ConnectionState()))
	if err != nil {
		return err
	}
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	return c.joined(conn, raw, purpose)
}

// Dial begins a session at host:port.
func (t *TLS) Dial(ctx context.Context, address string, c *tls.Config) (Conn, error) {
	conn, raw, err := t.dial(ctx, address, c)
	if err != nil {
		return nil, err
	}
	again := func(ctx context.Context, purpose byte, s secret) (*tls.Conn, net.Conn, error) {
		conn, raw, err := t.dial(ctx, address, joiningTLS(c))
		if err != nil {
			return nil, nil, err
		}
		if _, err := conn.Write(s.join(purpose)); err != nil {
			abort(raw)
			return nil, nil, err
		}
		return conn, raw, nil
	}
	s, err := newTLSConn(t, conn, raw, again)
	if err == nil {
		err = s.heardAlive()
	}
	if err != nil {
		abort(raw)
		return nil, tlsError(err)
	}
	s.start()
	return s, nil
}

func (t *TLS) dial(ctx context.Context, address string, c *tls.Config) (*tls.Conn, net.Conn, error) {
	host, port, err := resolve(ctx, "tcp", address)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, t.o.HandshakeTimeout)
	defer cancel()
	defer context.AfterFunc(t.ctx, cancel)()
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", (&net.TCPAddr{IP: host.IP, Zone: host.Zone, Port: port}).String())
	if err != nil {
		return nil, nil, err
	}
	tune(raw, t.o)
	conn := tls.Client(&wide{Conn: raw}, c)
	if err := t.shake(ctx, conn); err != nil {
		_ = raw.Close()
		return nil, nil, tlsError(err)
	}
	return conn, raw, nil
}

// tlsError is what TLS says of being turned away in the words of this package.
func tlsError(err error) error {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "remote error" { // an alert: crypto/tls gives no other sign
		return fmt.Errorf("%w: %w", ErrUntrusted, err)
	}
	return err
}

// sign is one sign of life, or the end.
type sign struct {
	kind byte
	code uint16
	text string
}

func (s sign) encode() []byte {
	b := make([]byte, signBytes, signBytes+len(s.text))
	b[0] = s.kind
	binary.LittleEndian.PutUint16(b[2:], s.code)
	binary.LittleEndian.PutUint16(b[4:], uint16(len(s.text)))
	return append(b, s.text...)
}

var errSign = errors.New("not a sign of life")

func readSign(r io.Reader) (sign, error) {
	b := make([]byte, signBytes)
	if _, err := io.ReadFull(r, b); err != nil {
		return sign{}, err
	}
	n := binary.LittleEndian.Uint16(b[4:])
	if b[0] > signEnd || b[1]|b[6]|b[7] != 0 || n > maxText || b[0] == signAlive && (n > 0 || b[2]|b[3] != 0) {
		return sign{}, fmt.Errorf("read %x: %w", b, errSign)
	}
	text := make([]byte, n)
	if _, err := io.ReadFull(r, text); err != nil {
		return sign{}, err
	}
	return sign{kind: b[0], code: binary.LittleEndian.Uint16(b[2:]), text: string(text)}, nil
}
