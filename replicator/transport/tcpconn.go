package transport

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"sync"
	"time"
)

// lingerLimit bounds how long the end of a session waits for the other end to have heard.
const lingerLimit = 2 * time.Second

// tlsConn is a first connection and those that joined it.
type tlsConn struct {
	t       *TLS
	conn    *tls.Conn
	raw     net.Conn
	dialled bool
	secret  secret
	again   func(ctx context.Context, purpose byte, s secret) (*tls.Conn, net.Conn, error)
	signing sync.Mutex // one sign at a time

	control, asked, parked, lanes chan *tlsStream
	parking                       sync.Once // the dialling end parks once somebody answers

	ctx  context.Context // ends with the session
	stop context.CancelFunc

	mu      sync.Mutex // guards all below
	err     error      // why the session has ended
	streams map[*tlsStream]bool
}

func newTLSConn(t *TLS, conn *tls.Conn, raw net.Conn, again func(context.Context, byte, secret) (*tls.Conn, net.Conn, error)) (*tlsConn, error) {
	s, err := secretOf(conn.ConnectionState())
	if err != nil {
		return nil, err
	}
	c := &tlsConn{t: t, conn: conn, raw: raw, dialled: again != nil, secret: s, again: again, control: make(chan *tlsStream, 1),
		asked: make(chan *tlsStream), parked: make(chan *tlsStream), lanes: make(chan *tlsStream), streams: map[*tlsStream]bool{}}
	c.ctx, c.stop = context.WithCancel(t.ctx)
	return c, nil
}

// heardAlive waits for the first sign, at the dialling end.
func (c *tlsConn) heardAlive() error {
	if err := c.conn.SetReadDeadline(time.Now().Add(c.t.o.HandshakeTimeout)); err != nil {
		return err
	}
	_, err := readSign(c.conn)
	return err
}

// start follows the signs until the session ends.
func (c *tlsConn) start() {
	c.t.wg.Go(c.listen)
	c.t.wg.Go(c.pulse)
}

func (c *tlsConn) Transport() string          { return "tls" }
func (c *tlsConn) State() tls.ConnectionState { return c.conn.ConnectionState() }
func (c *tlsConn) RemoteAddr() net.Addr       { return c.raw.RemoteAddr() }
func (c *tlsConn) Done() <-chan struct{}      { return c.ctx.Done() }

// Close says why, and lets go of the connections once the other end has heard.
func (c *tlsConn) Close(code uint16, text string) {
	if !c.ended(net.ErrClosed) {
		return
	}
	if len(text) > maxText {
		text = text[:maxText]
	}
	c.t.wg.Go(func() {
		_ = c.raw.SetDeadline(time.Now().Add(lingerLimit)) // it is closed below whatever comes
		if c.sign(signEnd, code, text) == nil {
			for { // until the other end, which has heard, closes
				if _, err := readSign(c.conn); err != nil {
					break
				}
			}
		}
		c.release()
	})
}

// ended notes why the session ends; false: it has ended before. Calls on its streams
// return from now on.
func (c *tlsConn) ended(err error) bool {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return false
	}
	c.err = err
	var streams []*tlsStream
	for s := range c.streams {
		streams = append(streams, s)
	}
	c.mu.Unlock()
	c.t.sessions.drop(c.secret)
	c.stop()
	for _, s := range streams {
		_ = s.raw.SetDeadline(time.Unix(1, 0)) // fails with the connection
	}
	return true
}

// release closes all connections.
func (c *tlsConn) release() {
	c.mu.Lock()
	streams := c.streams
	c.streams = map[*tlsStream]bool{}
	c.mu.Unlock()
	for s := range streams {
		abort(s.raw)
	}
	_ = c.raw.Close() // nil or already closed
}

func (c *tlsConn) reason() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

func (c *tlsConn) sign(kind byte, code uint16, text string) error {
	c.signing.Lock()
	defer c.signing.Unlock()
	_, err := c.conn.Write(sign{kind, code, text}.encode())
	return err
}

// listen follows the other end's signs.
func (c *tlsConn) listen() {
	for {
		_ = c.raw.SetReadDeadline(time.Now().Add(c.t.o.IdleTimeout)) // fails with the connection, as the read does
		if c.ctx.Err() != nil {
			break // Close reads on
		}
		s, err := readSign(c.conn)
		if err == nil && s.kind == signAlive {
			continue
		}
		if err == nil {
			err = &ClosedError{Code: s.code, Text: s.text}
		} else {
			err = fmt.Errorf("connection lost: %w", tlsError(err))
		}
		if c.ended(err) {
			c.release()
		}
		return
	}
	if c.t.ctx.Err() != nil && c.ended(net.ErrClosed) {
		c.release()
	}
}

// pulse signs that this end lives, and ends the session with the transport.
func (c *tlsConn) pulse() {
	tick := time.NewTicker(max(c.t.o.IdleTimeout/3, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			_ = c.raw.SetWriteDeadline(time.Now().Add(c.t.o.IdleTimeout)) // likewise
			if err := c.sign(signAlive, 0, ""); err != nil && c.ended(fmt.Errorf("connection lost: %w", err)) {
				c.release()
			}
		case <-c.ctx.Done():
			if c.ended(net.ErrClosed) { // with the transport
				c.release()
			}
			return
		}
	}
}

// keep makes a stream one of the session's.
func (c *tlsConn) keep(s *tlsStream) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	if len(c.streams) >= c.t.o.MaxLanes+c.t.o.MaxQuestions+2 {
		return ErrNoSession
	}
	c.streams[s] = true
	return nil
}

func (c *tlsConn) drop(s *tlsStream) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.streams, s)
}

// joined hands a stream that named c's secret to who waits for one.
func (c *tlsConn) joined(conn *tls.Conn, raw net.Conn, purpose byte) error {
	to := map[byte]chan *tlsStream{purposeLane: c.lanes, purposeControl: c.control, purposeQuestion: c.asked, purposeParked: c.parked}[purpose]
	s := &tlsStream{Conn: conn, c: c, raw: raw}
	if to == nil {
		return ErrNoSession
	}
	if purpose == purposeLane {
		conn.NetConn().(*wide).widen()
	}
	if err := c.keep(s); err != nil {
		return err
	}
	c.t.wg.Go(func() {
		select {
		case to <- s:
		case <-c.ctx.Done():
		}
	})
	return nil
}

// begin dials a stream.
func (c *tlsConn) begin(ctx context.Context, purpose byte) (*tlsStream, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.ctx, cancel)()
	conn, raw, err := c.again(ctx, purpose, c.secret)
	if err != nil {
		if ended := c.reason(); ended != nil {
			return nil, ended
		}
		return nil, err
	}
	s := &tlsStream{Conn: conn, c: c, raw: raw}
	if err := c.keep(s); err != nil {
		abort(raw)
		return nil, err
	}
	return s, nil
}

func (c *tlsConn) next(ctx context.Context, from chan *tlsStream) (*tlsStream, error) {
	select {
	case s := <-from:
		return s, nil
	case <-c.ctx.Done():
		if err := c.reason(); err != nil {
			return nil, err
		}
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (c *tlsConn) Control(ctx context.Context) (Stream, error) {
	if c.dialled {
		return some(c.begin(ctx, purposeControl))
	}
	return some(c.next(ctx, c.control))
}

func (c *tlsConn) Ask(ctx context.Context) (Stream, error) {
	if c.dialled {
		return some(c.begin(ctx, purposeQuestion))
	}
	return some(c.next(ctx, c.parked))
}

func (c *tlsConn) NextQuestion(ctx context.Context) (Stream, error) {
	if c.dialled {
		c.parking.Do(func() { c.t.wg.Go(c.park) })
	}
	return some(c.next(ctx, c.asked))
}

// some is s, or no stream at all.
func some(s *tlsStream, err error) (Stream, error) {
	if err != nil {
		return nil, err
	}
	return s, nil
}

// park keeps one connection at the listening end, for its next question.
func (c *tlsConn) park() {
	for c.ctx.Err() == nil {
		s, err := c.begin(c.ctx, purposeParked)
		if err != nil {
			timer := time.NewTimer(time.Second)
			select {
			case <-timer.C:
			case <-c.ctx.Done():
			}
			timer.Stop()
			continue
		}
		if err := s.peek(); err != nil {
			s.Cancel()
			continue
		}
		select {
		case c.asked <- s:
		case <-c.ctx.Done():
		}
	}
}

func (c *tlsConn) OpenLane(ctx context.Context) (SendLane, error) {
	s, err := c.begin(ctx, purposeLane)
	if err != nil {
		return nil, err
	}
	s.below, s.gone = s.NetConn().(*wide), make(chan struct{})
	c.t.wg.Go(s.watch)
	return s, nil
}

func (c *tlsConn) NextLane(ctx context.Context) (ReceiveLane, error) {
	s, err := c.next(ctx, c.lanes)
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (c *tlsConn) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return Stats{}
	}
	all := measure(c.raw)
	all.Window = 0 // it carries signs of life alone
	var trips meanRTT
	for s := range c.streams {
		one := measure(s.raw)
		all.Sent, all.Lost, all.Window = all.Sent+one.Sent, all.Lost+one.Lost, all.Window+one.Window
		trips.add(one.RTT, one.MinRTT)
	}
	all = trips.into(all)
	all.Connections = 1 + len(c.streams)
	return all
}
