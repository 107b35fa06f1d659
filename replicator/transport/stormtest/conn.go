package stormtest

import (
	"context"
	"crypto/tls"
	"net"
	"time"

	"github.com/novacron/afterimage/replicator/transport"
)

const (
	// streamBytes wait in a stream that is not read.
	streamBytes = 1 << 20
	// unaccepted streams wait for the other end to look at them.
	unaccepted = 1 << 10
)

// conn is one end of a connection. The fields below done are guarded by the network's mu.
type conn struct {
	at      *site
	state   tls.ConnectionState
	other   *conn
	dialled bool
	number  uint64 // of the dials of the site that dialled
	control chan *stream
	asked   chan *stream
	lanes   chan *stream
	done    chan struct{}

	born    time.Time
	err     error // why it has ended, as this end sees it
	idle    *time.Timer
	reset   *time.Timer
	streams uint64    // that this end began
	halves  []*stream // that live here
	posted  uint64
}

func newPair(near, far *site, number uint64, here, beyond tls.ConnectionState) (*conn, *conn) {
	make1 := func(at *site, s tls.ConnectionState) *conn {
		return &conn{at: at, state: s, number: number, control: make(chan *stream, unaccepted), asked: make(chan *stream, unaccepted),
			lanes: make(chan *stream, unaccepted), done: make(chan struct{}), born: time.Now()}
	}
	a, b := make1(near, here), make1(far, beyond)
	a.other, b.other, a.dialled = b, a, true
	return a, b
}

func (c *conn) Transport() string          { return "storm" }
func (c *conn) State() tls.ConnectionState { return c.state }
func (c *conn) RemoteAddr() net.Addr       { return c.other.at.addr }
func (c *conn) Done() <-chan struct{}      { return c.done }

// out is the way that c sends on.
func (c *conn) out() way { return way{c.at.addr, c.other.at.addr} }

// What a connection says of its path, whatever that is like: sessions then bound what is
// under way, and send again what is late.
const (
	told       = 20 * time.Millisecond
	toldWindow = 64 << 10
)

func (c *conn) Stats() transport.Stats {
	c.at.n.mu.Lock()
	defer c.at.n.mu.Unlock()
	if c.err != nil {
		return transport.Stats{}
	}
	return transport.Stats{Connections: 1, RTT: told, MinRTT: told, Window: toldWindow}
}

// postLocked sends what happens at the other end.
func (c *conn) postLocked(arrive func(), key ...uint64) {
	c.at.n.sendLocked(c.out(), event{sender: c, key: append([]uint64{c.number}, key...), arrive: arrive})
}

// failLocked ends this end alone.
func (c *conn) failLocked(err error) {
	if c.err != nil {
		return
	}
	c.err = err
	delete(c.at.conns, c)
	for _, t := range []*time.Timer{c.idle, c.reset} {
		if t != nil {
			t.Stop()
		}
	}
	for _, s := range c.halves {
		s.wakeLocked()
	}
	close(c.done)
}

// Close tells the other end, once: a word that is lost is not said again.
func (c *conn) Close(code uint16, text string) {
	n := c.at.n
	n.mu.Lock()
	defer n.mu.Unlock()
	if c.err != nil {
		return
	}
	c.failLocked(net.ErrClosed)
	said := event{key: []uint64{c.number, closing}, arrive: func() {
		c.other.failLocked(&transport.ClosedError{Code: code, Text: text})
	}}
	n.sendLocked(c.out(), said)
	c.other.listenLocked()
}

// Kinds of what is on its way, in the keys of draws; those of streams are above.
const (
	closing = iota
	resetting
	firstStream
)

// listenLocked looks at what c can hear. It misses an end that is dead, or behind a way
// that is cut; where who is there now can tell it that nobody knows it, it does so.
func (c *conn) listenLocked() {
	n := c.at.n
	if c.err != nil || !c.at.conns[c] {
		return
	}
	in := c.out().back()
	lost := c.other.err != nil
	if !lost && !n.cut[in] {
		c.idle = stop(c.idle)
	} else if c.idle == nil {
		c.idle = time.AfterFunc(c.at.o.IdleTimeout, func() { c.fail(errIdle) })
	}
	told := lost && !n.cut[in] && !n.cut[c.out()] && n.lives[in.from] != nil
	if !told {
		c.reset = stop(c.reset)
	} else if c.reset == nil {
		c.posted++
		// It is told when it next says something, at a keep-alive at the latest.
		wait := n.delayLocked(c.out(), []uint64{c.number, resetting, c.posted}) + n.delayLocked(in, []uint64{c.number, resetting, c.posted})
		wait += time.Duration(n.draw(in, []uint64{c.number, resetting, c.posted, 1}) % uint64(c.at.o.IdleTimeout/3+1))
		c.reset = time.AfterFunc(wait, func() { c.fail(errReset) })
	}
}

func stop(t *time.Timer) *time.Timer {
	if t != nil {
		t.Stop()
	}
	return nil
}

func (c *conn) fail(err error) {
	c.at.n.mu.Lock()
	defer c.at.n.mu.Unlock()
	c.failLocked(err)
	c.other.listenLocked()
}

func (c *conn) reason() error {
	c.at.n.mu.Lock()
	defer c.at.n.mu.Unlock()
	return c.err
}

// Kinds of streams.
const (
	aControl = iota
	aQuestion
	aLane
)

// begin makes a stream; the other end sees it when the first of it arrives.
func (c *conn) begin(kind int) (*stream, error) {
	c.at.n.mu.Lock()
	defer c.at.n.mu.Unlock()
	if c.err != nil {
		return nil, c.err
	}
	number := firstStream + 2*c.streams
	if !c.dialled {
		number++
	}
	c.streams++
	limit := streamBytes
	if kind == aLane {
		limit = int(c.other.at.o.LaneBytes)
	}
	ours, theirs := newStreams(c, number, kind, limit)
	theirs.queue = [...]chan *stream{c.other.control, c.other.asked, c.other.lanes}[kind]
	return ours, nil
}

// next takes a stream that the other end began.
func (c *conn) next(ctx context.Context, from chan *stream) (*stream, error) {
	select {
	case s := <-from:
		return s, c.reason()
	case <-c.done:
		return nil, c.reason()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (c *conn) Control(ctx context.Context) (transport.Stream, error) {
	if c.dialled {
		return c.begin(aControl)
	}
	return c.next(ctx, c.control)
}

func (c *conn) Ask(context.Context) (transport.Stream, error) { return c.begin(aQuestion) }

func (c *conn) NextQuestion(ctx context.Context) (transport.Stream, error) {
	return c.next(ctx, c.asked)
}

func (c *conn) OpenLane(context.Context) (transport.SendLane, error) { return c.begin(aLane) }

func (c *conn) NextLane(ctx context.Context) (transport.ReceiveLane, error) {
	return c.next(ctx, c.lanes)
}
