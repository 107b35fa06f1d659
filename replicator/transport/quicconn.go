package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"

	"github.com/quic-go/quic-go"
)

// quicConn is one QUIC connection: the control stream is its first bidirectional one,
// questions are the others, lanes are unidirectional ones.
type quicConn struct {
	conn    *quic.Conn
	dialled bool
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

func (c *quicConn) OpenLane(ctx context.Context) (SendLane, error) {
	s, err := c.conn.OpenUniStreamSync(ctx)
	if err != nil {
		return nil, quicError(err)
	}
	return quicSender{s}, nil
}

func (c *quicConn) NextLane(ctx context.Context) (ReceiveLane, error) {
	s, err := c.conn.AcceptUniStream(ctx)
	if err != nil {
		return nil, quicError(err)
	}
	return quicReceiver{s}, nil
}

func (c *quicConn) Stats() Stats {
	s := c.conn.ConnectionStats()
	n := 1
	if c.conn.Context().Err() != nil {
		n = 0
	}
	return Stats{Connections: n, RTT: s.SmoothedRTT, Sent: s.BytesSent, Lost: s.BytesLost}
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

type quicSender struct{ *quic.SendStream }

func (s quicSender) Cancel() { s.CancelWrite(cancelled) }

func (s quicSender) Write(b []byte) (int, error) {
	n, err := s.SendStream.Write(b)
	return n, quicError(err)
}

type quicReceiver struct{ *quic.ReceiveStream }

func (s quicReceiver) Cancel() { s.CancelRead(cancelled) }

func (s quicReceiver) Read(b []byte) (int, error) {
	n, err := s.ReceiveStream.Read(b)
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
