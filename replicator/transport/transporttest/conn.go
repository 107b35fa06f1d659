package transporttest

import (
	"context"
	"crypto/tls"
	"net"
	"sync"

	"github.com/novacron/afterimage/replicator/transport"
)

const (
	// streamBytes wait in a stream that is not read.
	streamBytes = 1 << 20
	// unaccepted streams wait for the other end to look at them.
	unaccepted = 64
)

// conn is one end of a connection.
type conn struct {
	at      *memory
	state   tls.ConnectionState
	other   *conn
	dialled bool
	control chan stream
	asked   chan stream
	lanes   chan stream
	done    chan struct{}

	mu   sync.Mutex // guards all below
	err  error      // why it has ended, as this end sees it
	open []*half    // of streams that this end began
}

func newPair(near, far *memory, here, beyond tls.ConnectionState) (*conn, *conn) {
	make1 := func(at *memory, s tls.ConnectionState) *conn {
		return &conn{at: at, state: s, control: make(chan stream, 1), asked: make(chan stream, unaccepted), lanes: make(chan stream, unaccepted), done: make(chan struct{})}
	}
	a, b := make1(near, here), make1(far, beyond)
	a.other, b.other, a.dialled = b, a, true
	return a, b
}

func (c *conn) Transport() string          { return "memory" }
func (c *conn) State() tls.ConnectionState { return c.state }
func (c *conn) RemoteAddr() net.Addr       { return c.other.at.addr }
func (c *conn) Done() <-chan struct{}      { return c.done }

func (c *conn) Stats() transport.Stats {
	select {
	case <-c.done:
		return transport.Stats{}
	default:
		return transport.Stats{Connections: 1}
	}
}

func (c *conn) Close(code uint16, text string) {
	c.end(net.ErrClosed, &transport.ClosedError{Code: code, Text: text})
}

// end ends both ends, with what each is to hear.
func (c *conn) end(ours, theirs error) {
	open := append(c.stop(ours), c.other.stop(theirs)...)
	for _, h := range open {
		h.fail(errEnded)
	}
}

// stop notes why c ends; it gives the streams that c began, the first time.
func (c *conn) stop(err error) []*half {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return nil
	}
	c.err = err
	close(c.done)
	open := c.open
	c.open = nil
	c.mu.Unlock()
	c.at.forget(c)
	return open
}

func (c *conn) reason() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// adopt makes a half end with c.
func (c *conn) adopt(hs ...*half) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	c.open = append(c.open, hs...)
	return nil
}

// begin makes a stream and hands its other end to to.
func (c *conn) begin(ctx context.Context, to chan stream, bothWays bool, limit int) (stream, error) {
	there := newHalf(limit)
	ours, theirs := stream{c: c, out: there}, stream{c: c.other, in: there}
	halves := []*half{there}
	if bothWays {
		back := newHalf(limit)
		ours.in, theirs.out = back, back
		halves = append(halves, back)
	}
	if err := c.adopt(halves...); err != nil {
		return stream{}, err
	}
	select {
	case to <- theirs:
		return ours, nil
	case <-c.done:
		return stream{}, c.reason()
	case <-ctx.Done():
		return stream{}, ctx.Err()
	}
}

// next takes a stream that the other end began.
func (c *conn) next(ctx context.Context, from chan stream) (stream, error) {
	select {
	case s := <-from:
		return s, c.reason()
	case <-c.done:
		return stream{}, c.reason()
	case <-ctx.Done():
		return stream{}, ctx.Err()
	}
}

func (c *conn) Control(ctx context.Context) (transport.Stream, error) {
	if c.dialled {
		return c.begin(ctx, c.other.control, true, streamBytes)
	}
	return c.next(ctx, c.control)
}

func (c *conn) Ask(ctx context.Context) (transport.Stream, error) {
	return c.begin(ctx, c.other.asked, true, streamBytes)
}

func (c *conn) NextQuestion(ctx context.Context) (transport.Stream, error) {
	return c.next(ctx, c.asked)
}

func (c *conn) OpenLane(ctx context.Context) (transport.SendLane, error) {
	return c.begin(ctx, c.other.lanes, false, int(c.other.at.o.LaneBytes))
}

func (c *conn) NextLane(ctx context.Context) (transport.ReceiveLane, error) {
	return c.next(ctx, c.lanes)
}
