package transport

import (
	"context"
	"crypto/tls"
	"errors"
)

// SecretOf is the secret of a session, which its two ends alone know.
func SecretOf(c Conn) [32]byte {
	if q, ok := c.(*quicConn); ok {
		return q.secret
	}
	return c.(*tlsConn).secret
}

// TrustAnyKey plants the mistake that whoever knows a session's secret may join it.
func TrustAnyKey(t Transport) {
	if q, ok := t.(*QUIC); ok {
		q.sessions.anyKey = true
		return
	}
	t.(*TLS).sessions.anyKey = true
}

// JoinAs joins a session at address as whoever has c, with one byte on a lane, and waits
// until it is turned away or ctx ends.
func JoinAs(ctx context.Context, t Transport, address string, c *tls.Config, first []byte) error {
	if l, ok := t.(*TLS); ok {
		conn, raw, err := l.dial(ctx, address, joiningTLS(c))
		if err != nil {
			return err
		}
		defer raw.Close()
		stop := context.AfterFunc(ctx, func() { raw.Close() })
		defer stop()
		if _, err := conn.Write(append(first, 'x')); err != nil {
			return tlsError(err)
		}
		s, err := readSign(conn)
		if err == nil {
			err = &ClosedError{s.code, s.text}
		}
		return tlsError(err)
	}
	q := t.(*QUIC)
	other, err := q.Dial(ctx, address, joiningTLS(c))
	if err != nil {
		return err
	}
	conn := other.(*quicConn).conn
	s, err := conn.OpenUniStreamSync(ctx)
	if err != nil {
		return quicError(err)
	}
	if _, err := s.Write(append(first, 'x')); err != nil {
		return quicError(err)
	}
	select {
	case <-conn.Context().Done():
		return quicError(context.Cause(conn.Context()))
	case <-ctx.Done():
		return errors.New("it was not turned away")
	}
}

// JoinText is what a joining connection says first.
func JoinText(s [32]byte, purpose byte) []byte { return secret(s).join(purpose) }
