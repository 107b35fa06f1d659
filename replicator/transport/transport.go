package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// Transport reaches peers and is reached by them, at one address.
type Transport interface {
	// Name is a stable word for people: "quic".
	Name() string
	Addr() net.Addr
	// Dial connects to host:port. c judges the other end's key.
	Dial(ctx context.Context, address string, c *tls.Config) (Conn, error)
	// Accept gives the next caller that Options.Accept let in. Without
	// Options.Listen it waits until ctx ends.
	Accept(ctx context.Context) (Conn, error)
	// Close ends all connections and waits for the transport's goroutines.
	Close() error
}

// Conn is a session's way to a peer; see the package.
type Conn interface {
	Transport() string
	State() tls.ConnectionState
	RemoteAddr() net.Addr
	// Control opens the control stream at the dialling end and waits for it at the
	// other. It is called once.
	Control(ctx context.Context) (Stream, error)
	// Ask opens a stream for one question; NextQuestion waits for the peer's.
	Ask(ctx context.Context) (Stream, error)
	NextQuestion(ctx context.Context) (Stream, error)
	// OpenLane is for the dialling end, NextLane for the other. A lane reaches the
	// other end with the first bytes written to it.
	OpenLane(ctx context.Context) (SendLane, error)
	NextLane(ctx context.Context) (ReceiveLane, error)
	Stats() Stats
	// Close ends it and every stream of it. The first call counts.
	Close(code uint16, text string)
	// Done is closed when the Conn has ended, whoever ended it.
	Done() <-chan struct{}
}

// SendLane carries bytes to the other end.
type SendLane interface {
	io.Writer
	// Close ends it: the other end reads io.EOF after all that was written.
	Close() error
	// Cancel gives it up: the other end reads an error, also for what it has not read
	// of a lane that was closed.
	Cancel()
	// Gone is closed when nothing that is written arrives any more, and what was written
	// may not have: the lane was cancelled, here or there, or what carries it has ended.
	Gone() <-chan struct{}
	SetWriteDeadline(t time.Time) error
}

// ReceiveLane is a SendLane's other end.
type ReceiveLane interface {
	io.Reader
	// Cancel gives it up: the other end's writes return errors.
	Cancel()
	SetReadDeadline(t time.Time) error
}

// Stream carries bytes both ways. Close ends its own direction alone, Cancel both.
type Stream interface {
	io.Reader
	io.Writer
	Close() error
	Cancel()
	SetDeadline(t time.Time) error
	SetReadDeadline(t time.Time) error
}

// Stats are of this life of a Conn, over all connections that it consists of.
type Stats struct {
	Connections int           // that live
	RTT         time.Duration // smoothed, the mean of all that know theirs; 0: not known
	MinRTT      time.Duration // the least that any of them saw; 0: not known
	Window      uint64        // bytes that may be under way together; 0: not known
	Sent        uint64        // bytes on the wire, with what was sent again
	Lost        uint64        // of those, thought lost
}

// meanRTT gathers the round trips of connections beside a first one.
type meanRTT struct {
	sum, least time.Duration
	n          time.Duration
}

func (m *meanRTT) add(rtt, least time.Duration) {
	if rtt <= 0 {
		return
	}
	m.sum, m.n = m.sum+rtt, m.n+1
	if least > 0 && (m.least == 0 || least < m.least) {
		m.least = least
	}
}

// into gives s, which has those of the first connection, the mean and the least of all.
func (m meanRTT) into(s Stats) Stats {
	m.add(s.RTT, s.MinRTT)
	if m.n > 0 {
		s.RTT, s.MinRTT = m.sum/m.n, m.least
	}
	return s
}

// Options of a Transport.
type Options struct {
	Listen string      // host:port; empty: nobody can call
	Accept *tls.Config // judges callers

	HandshakeTimeout time.Duration
	IdleTimeout      time.Duration // a silent connection is dead; keep-alives come thrice as often
	LaneBytes        int64         // that wait in a lane that is not read
	MaxLanes         int           // that a caller may open at once
	MaxQuestions     int           // that the peer may ask at once

	ResetKey, TokenKey [32]byte // the same in every life of a site
}

// ClosedError: the other end closed the connection.
type ClosedError struct {
	Code uint16
	Text string
}

func (e *ClosedError) Error() string {
	return fmt.Sprintf("the peer closed the connection (%d): %s", e.Code, e.Text)
}

// Sentinels of transports.
var (
	// ErrUntrusted: the other end does not accept the key that this one showed.
	ErrUntrusted = errors.New("the peer does not accept this site's key")
	// ErrNoAddress: the address names nothing that can be called.
	ErrNoAddress = errors.New("no address")
)
