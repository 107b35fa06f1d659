package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/quic-go/quic-go"
)

// quicConn is a first QUIC connection and those that joined it. On the first, the
// control stream is the first bidirectional one, questions are the others; its first
// lane is a unidirectional one, and each further lane is the one stream of a joining
// connection.
type quicConn struct {
	q       *QUIC
	conn    *quic.Conn
	dialled bool
	secret  secret
	again   func(context.Context) (*quic.Conn, error) // dials another; nil at the listening end
	lanes   chan quicReceiver                         // of joined connections

	mu     sync.Mutex // guards all below
	ended  bool
	others map[*quic.Conn]bool
	first  bool  // a lane lives on the first connection
	past   Stats // of others that have ended
}

func newQUICConn(q *QUIC, conn *quic.Conn, again func(context.Context) (*quic.Conn, error)) (*quicConn, error) {
	s, err := secretOf(conn.ConnectionState().TLS)
	if err != nil {
		return nil, err
	}
	c := &quicConn{q: q, conn: conn, dialled: again != nil, secret: s, again: again, lanes: make(chan quicReceiver), others: map[*quic.Conn]bool{}}
	context.AfterFunc(conn.Context(), c.end)
	if !c.dialled {
		q.wg.Go(c.takeLanes)
	}
	return c, nil
}

// end ends what joined the first connection, which has ended.
func (c *quicConn) end() {
	c.mu.Lock()
	c.ended = true
	others := c.others
	c.others = nil
	c.mu.Unlock()
	for o := range others {
		_ = o.CloseWithError(0, "the session has ended") // nil or already closed
	}
}

// keep makes o end with c.
func (c *quicConn) keep(o *quic.Conn) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended || len(c.others) >= c.q.o.MaxLanes {
		return ErrNoSession
	}
	c.others[o] = true
	context.AfterFunc(o.Context(), func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.others, o)
		s := o.ConnectionStats()
		c.past.Sent, c.past.Lost = c.past.Sent+s.BytesSent, c.past.Lost+s.BytesLost
	})
	return nil
}

// joined takes a lane over a connection that named c's secret.
func (c *quicConn) joined(o *quic.Conn, s *quic.ReceiveStream) error {
	if err := c.keep(o); err != nil {
		return err
	}
	select {
	case c.lanes <- quicReceiver{s, o}:
		return nil
	case <-c.conn.Context().Done():
		return ErrNoSession
	case <-o.Context().Done():
		return context.Cause(o.Context())
	}
}

func (c *quicConn) Transport() string          { return "quic" }
func (c *quicConn) State() tls.ConnectionState { return c.conn.ConnectionState().TLS }
func (c *quicConn) RemoteAddr() net.Addr       { return c.conn.RemoteAddr() }
func (c *quicConn) Done() <-chan struct{}      { return c.conn.Context().Done() }

func (c *quicConn) Close(code uint16, text string) {
	_ = c.conn.CloseWithError(quic.ApplicationErrorCode(code), text) // nil or already closed
}

func (c *quicConn) Control(ctx context.Context) (Stream, error) {
	if c.dialled {
		return c.Ask(ctx)
	}
	return c.NextQuestion(ctx)
}

func (c *quicConn) Ask(ctx context.Context) (Stream, error) {
	s, err := c.conn.OpenStreamSync(ctx)
	if err != nil {
		return nil, quicError(err)
	}
	return quicStream{s}, nil
}

func (c *quicConn) NextQuestion(ctx context.Context) (Stream, error) {
	s, err := c.conn.AcceptStream(ctx)
	if err != nil {
		return nil, quicError(err)
	}
	return quicStream{s}, nil
}

// OpenLane opens the first on the first connection, and each other one over a
// connection of its own.
func (c *quicConn) OpenLane(ctx context.Context) (SendLane, error) {
	c.mu.Lock()
	first := !c.first
	c.first = true
	c.mu.Unlock()
	if first {
		s, err := c.conn.OpenUniStreamSync(ctx)
		if err != nil {
			return nil, quicError(err)
		}
		return &quicSender{SendStream: s, gone: c.firstGone}, nil
	}
	o, err := c.again(ctx)
	if err != nil {
		return nil, quicError(err)
	}
	s, err := c.openOn(ctx, o)
	if err != nil {
		_ = o.CloseWithError(0, "") // nil or already closed
		return nil, quicError(err)
	}
	return s, nil
}

func (c *quicConn) firstGone() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.first = false
}

// openOn opens the one stream of a connection that joins.
func (c *quicConn) openOn(ctx context.Context, o *quic.Conn) (*quicSender, error) {
	if err := c.keep(o); err != nil {
		return nil, err
	}
	s, err := o.OpenUniStreamSync(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := s.Write(c.secret.join(purposeLane)); err != nil {
		return nil, err
	}
	return &quicSender{SendStream: s, gone: func() {}, own: o}, nil
}

func (c *quicConn) NextLane(ctx context.Context) (ReceiveLane, error) {
	select {
	case l := <-c.lanes:
		return l, nil
	case <-c.conn.Context().Done():
		return nil, quicError(context.Cause(c.conn.Context()))
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// takeLanes hands on the lanes that begin on the first connection, until it ends.
func (c *quicConn) takeLanes() {
	ctx := c.conn.Context()
	for {
		s, err := c.conn.AcceptUniStream(ctx)
		if err != nil {
			return
		}
		select {
		case c.lanes <- quicReceiver{s, nil}:
		case <-ctx.Done():
			return
		}
	}
}

func (c *quicConn) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := c.past
	first := c.conn.ConnectionStats()
	all.Sent, all.Lost = all.Sent+first.BytesSent, all.Lost+first.BytesLost
	all.RTT, all.MinRTT, all.Window = first.SmoothedRTT, first.MinRTT, first.CongestionWindow
	if c.conn.Context().Err() == nil {
		all.Connections = 1 + len(c.others)
	}
	var trips meanRTT
	for o := range c.others {
		s := o.ConnectionStats()
		all.Sent, all.Lost = all.Sent+s.BytesSent, all.Lost+s.BytesLost
		all.Window += s.CongestionWindow
		trips.add(s.SmoothedRTT, s.MinRTT)
	}
	return trips.into(all)
}

type quicStream struct{ *quic.Stream }

func (s quicStream) Read(b []byte) (int, error) {
	n, err := s.Stream.Read(b)
	return n, quicError(err)
}

func (s quicStream) Write(b []byte) (int, error) {
	n, err := s.Stream.Write(b)
	return n, quicError(err)
}

func (s quicStream) Cancel() {
	s.CancelRead(cancelled)
	s.CancelWrite(cancelled)
}

type quicSender struct {
	*quic.SendStream
	gone func()     // called when it is given up
	own  *quic.Conn // that ends with the lane; nil: it lives on the first
}

func (s *quicSender) Cancel() {
	s.CancelWrite(cancelled)
	s.gone()
	if s.own != nil {
		_ = s.own.CloseWithError(0, "") // nil or already closed
	}
}

func (s *quicSender) Gone() <-chan struct{} { return s.Context().Done() }

func (s *quicSender) Close() error {
	s.gone()
	return quicError(s.SendStream.Close())
}

func (s *quicSender) Write(b []byte) (int, error) {
	n, err := s.SendStream.Write(b)
	return n, quicError(err)
}

// quicReceiver ends the connection of its own with the lane: what was sent is read then.
type quicReceiver struct {
	*quic.ReceiveStream
	own *quic.Conn
}

func (s quicReceiver) Cancel() {
	s.CancelRead(cancelled)
	s.leave()
}

func (s quicReceiver) leave() {
	if s.own != nil {
		_ = s.own.CloseWithError(0, "") // nil or already closed
	}
}

func (s quicReceiver) Read(b []byte) (int, error) {
	n, err := s.ReceiveStream.Read(b)
	if err == io.EOF {
		s.leave()
	}
	return n, quicError(err)
}

// quicError is what QUIC says of a connection's end in the words of this package.
func quicError(err error) error {
	var app *quic.ApplicationError
	if errors.As(err, &app) && app.Remote {
		return &ClosedError{Code: uint16(app.ErrorCode), Text: app.ErrorMessage}
	}
	var transport *quic.TransportError
	if errors.As(err, &transport) && transport.Remote && transport.ErrorCode.IsCryptoError() {
		return fmt.Errorf("%w: %w", ErrUntrusted, err)
	}
	return err // io.EOF stays as it is
}
