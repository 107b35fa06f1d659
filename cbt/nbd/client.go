package nbd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/novacron/afterimage/cbt"
)

// DialOptions say what a Client asks of a server.
type DialOptions struct {
	Export string
	// MetaContexts are asked for by exact name, such as ContextAllocation; what
	// the server does not grant is found by HasMetaContext and BlockStatus.
	MetaContexts     []string
	HandshakeTimeout time.Duration // default 10 s
	MaxInFlight      int           // requests sent and not answered; default 64
	// NoStructuredReplies talks as an old client does; no meta contexts then.
	NoStructuredReplies bool
}

func (o DialOptions) withDefaults() DialOptions {
	if o.HandshakeTimeout <= 0 {
		o.HandshakeTimeout = 10 * time.Second
	}
	if o.MaxInFlight <= 0 {
		o.MaxInFlight = 64
	}
	return o
}

// Info is what the server told about the export.
type Info struct {
	Size           int64  // bytes
	Flags          uint16 // transmission flags as sent
	ReadOnly       bool
	CanFlush       bool
	CanFUA         bool
	CanTrim        bool
	CanZero        bool
	CanMultiConn   bool
	Structured     bool
	MinBlock       int64 // bytes; requests must be aligned to it
	PreferredBlock int64 // bytes
	MaxPayload     int64 // bytes; longer reads and writes are split
}

// Client is a connection to an export. All methods are safe for concurrent use.
//
// A call returns when its context ends, without waiting for the server; a
// buffer given to it is never touched after that. When the bytes of a message
// are half sent or half received at that moment, and stay so, the connection is
// given up, since nothing sensible could follow on it.
//
// *Client is itself a Device.
type Client struct {
	conn net.Conn
	r    *bufio.Reader
	opts DialOptions
	info Info
	meta map[string]uint32 // granted contexts to their ids

	sending chan struct{} // holds a token while somebody writes to conn
	slots   chan struct{} // holds a token per request in flight
	asking  chan struct{} // holds a token while a BlockStatus is in flight

	mu     sync.Mutex // guards calls, cookie and err
	calls  map[uint64]*call
	cookie uint64
	err    error // why the connection ended

	done chan struct{}
}

var _ Device = (*Client)(nil)

// Dial connects, negotiates and starts to listen for replies; network is "unix"
// or "tcp". The context bounds the dialing only; Close ends the client.
func Dial(ctx context.Context, network, address string, o DialOptions) (*Client, error) {
	o = o.withDefaults()
	ctx, cancel := context.WithTimeout(ctx, o.HandshakeTimeout)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, fmt.Errorf("dial nbd server: %w", err)
	}
	c, err := newClient(ctx, conn, o)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("negotiate nbd export %q at %s: %w", o.Export, address, err)
	}
	return c, nil
}

// newClient negotiates on conn and starts the reader of replies.
func newClient(ctx context.Context, conn net.Conn, o DialOptions) (*Client, error) {
	c := &Client{
		conn: conn, r: bufio.NewReaderSize(conn, 64<<10), opts: o,
		meta:    make(map[string]uint32),
		sending: make(chan struct{}, 1), slots: make(chan struct{}, o.MaxInFlight), asking: make(chan struct{}, 1),
		calls: make(map[uint64]*call), done: make(chan struct{}),
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	h := clientHaggler{w: conn, r: c.r, opts: o, meta: c.meta}
	info, err := h.run()
	if !stop() {
		return nil, errors.Join(context.Cause(ctx), err)
	}
	if err != nil {
		return nil, err
	}
	c.info = info
	go c.listen()
	return c, nil
}

// Info is what the server told about the export.
func (c *Client) Info() Info { return c.info }

// HasMetaContext reports whether the server granted name.
func (c *Client) HasMetaContext(name string) bool {
	_, ok := c.meta[name]
	return ok
}

// Done is closed once the connection is gone.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err is why the connection is gone, nil as long as it is not.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close says farewell, as far as the server listens, and ends the connection
// and every call.
func (c *Client) Close() error {
	const patience = 100 * time.Millisecond
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if c.Err() == nil {
		var head [requestBytes]byte
		request{cmd: cmdDisconnect}.put(&head)
		// A server that does not take the farewell sees the connection end.
		_ = c.send(ctx, head[:], nil)
	}
	c.fail(net.ErrClosed)
	<-c.done
	return nil
}

// fail ends the connection; the reader of replies then completes all calls.
func (c *Client) fail(err error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = fmt.Errorf("%w: %w", ErrDisconnected, err)
	}
	c.mu.Unlock()
	c.conn.Close()
}

// check refuses what the server would or could not do.
func (c *Client) check(e cbt.Extent) error {
	if !e.Within(c.info.Size) {
		return fmt.Errorf("extent %v is outside of the export's %d bytes: %w", e, c.info.Size, EINVAL)
	}
	if m := c.info.MinBlock; e.Offset%m != 0 || e.Length%m != 0 {
		return fmt.Errorf("extent %v is not aligned to the server's block of %d bytes: %w", e, m, EINVAL)
	}
	return nil
}

// split calls f for e in pieces of at most limit bytes, in order.
func split(e cbt.Extent, limit int64, f func(cbt.Extent) error) error {
	for e.Length > 0 {
		n := min(e.Length, limit)
		if err := f(cbt.Extent{Offset: e.Offset, Length: n}); err != nil {
			return err
		}
		e.Offset, e.Length = e.Offset+n, e.Length-n
	}
	return nil
}

// maxRangeBytes is the longest range of a request without payload: a length has
// 32 bits, and this is the largest power of two that many servers take well.
const maxRangeBytes = 1 << 30

// ReadAt fills p from off.
func (c *Client) ReadAt(ctx context.Context, p []byte, off int64) error {
	e := cbt.Extent{Offset: off, Length: int64(len(p))}
	if err := c.check(e); err != nil {
		return err
	}
	return split(e, c.info.MaxPayload, func(e cbt.Extent) error {
		return c.do(ctx, &call{cmd: cmdRead, extent: e, into: p[e.Offset-off:][:e.Length]})
	})
}

// WriteAt writes p at off; with fua it returns once p is safe against power
// loss, by a flush of its own where the server has no FUA.
func (c *Client) WriteAt(ctx context.Context, p []byte, off int64, fua bool) error {
	e := cbt.Extent{Offset: off, Length: int64(len(p))}
	if err := c.check(e); err != nil {
		return err
	}
	err := split(e, c.info.MaxPayload, func(e cbt.Extent) error {
		return c.do(ctx, &call{cmd: cmdWrite, flags: c.fua(fua), extent: e, payload: p[e.Offset-off:][:e.Length]})
	})
	return c.sealed(ctx, fua, err)
}

// Zero makes e read as zeros; where the server cannot, zeros are written.
func (c *Client) Zero(ctx context.Context, e cbt.Extent, fua, noHole bool) error {
	if err := c.check(e); err != nil {
		return err
	}
	flags := c.fua(fua)
	if noHole {
		flags |= cmdFlagNoHole
	}
	if c.info.CanZero {
		err := split(e, maxRangeBytes, func(e cbt.Extent) error {
			return c.do(ctx, &call{cmd: cmdWriteZeroes, flags: flags, extent: e})
		})
		return c.sealed(ctx, fua, err)
	}
	limit := min(c.info.MaxPayload, 1<<20)
	zeros := make([]byte, min(limit, e.Length))
	err := split(e, limit, func(e cbt.Extent) error {
		return c.do(ctx, &call{cmd: cmdWrite, flags: c.fua(fua), extent: e, payload: zeros[:e.Length]})
	})
	return c.sealed(ctx, fua, err)
}

// Trim discards e; ErrUnsupported where the server cannot.
func (c *Client) Trim(ctx context.Context, e cbt.Extent, fua bool) error {
	if !c.info.CanTrim {
		return fmt.Errorf("trim: %w", ErrUnsupported)
	}
	if err := c.check(e); err != nil {
		return err
	}
	err := split(e, maxRangeBytes, func(e cbt.Extent) error {
		return c.do(ctx, &call{cmd: cmdTrim, flags: c.fua(fua), extent: e})
	})
	return c.sealed(ctx, fua, err)
}

// Flush returns once every change that has returned is safe against power loss.
func (c *Client) Flush(ctx context.Context) error {
	if !c.info.CanFlush {
		return fmt.Errorf("flush: %w", ErrUnsupported)
	}
	return c.do(ctx, &call{cmd: cmdFlush})
}

func (c *Client) fua(want bool) uint16 {
	if want && c.info.CanFUA {
		return cmdFlagFUA
	}
	return 0
}

// sealed makes a change with fua safe where the server has no FUA.
func (c *Client) sealed(ctx context.Context, fua bool, err error) error {
	if err != nil || !fua || c.info.CanFUA {
		return err
	}
	return c.Flush(ctx)
}

// Status implements Device from base:allocation; without it all is data.
func (c *Client) Status(ctx context.Context, e cbt.Extent) ([]StatusExtent, error) {
	if !c.HasMetaContext(ContextAllocation) {
		return []StatusExtent{{Length: e.Length}}, nil
	}
	es, err := c.BlockStatus(ctx, ContextAllocation, e)
	if err != nil {
		return nil, err
	}
	return slices.Collect(func(yield func(StatusExtent) bool) {
		for _, x := range es {
			if !yield(StatusExtent{x.Extent.Length, x.Flags&StateHole != 0, x.Flags&StateZero != 0}) {
				return
			}
		}
	}), nil
}
