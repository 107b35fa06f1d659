package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"
)

// Options of a connection; the zero value works.
type Options struct {
	MaxLine int // bytes of one message, default 16 MiB
}

func (o Options) withDefaults() Options {
	if o.MaxLine <= 0 {
		o.MaxLine = 16 << 20
	}
	return o
}

// Client is one connection to a QMP server.
type Client struct {
	conn    net.Conn
	opts    Options
	version Version
	oob     bool
	done    chan struct{}

	wmu sync.Mutex // serialises writes to conn

	mu      sync.Mutex // guards what follows
	next    uint64
	pending map[uint64]chan message // by id; each holds one reply
	subs    map[*Subscription]struct{}
	err     error // why the connection ended
}

// Dial connects to the unix socket at path and negotiates. ctx bounds that only.
// QEMU serves one client per socket at a time and lets others wait, so a ctx
// without an end may wait for ever.
func Dial(ctx context.Context, path string, o Options) (*Client, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("dial qmp: %w", err)
	}
	c, err := newClient(ctx, conn, o)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("dial qmp %s: %w", path, err)
	}
	return c, nil
}

func newClient(ctx context.Context, conn net.Conn, o Options) (*Client, error) {
	c := &Client{
		conn: conn, opts: o.withDefaults(), done: make(chan struct{}),
		pending: make(map[uint64]chan message), subs: make(map[*Subscription]struct{}),
	}
	stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })
	br := bufio.NewReader(conn)
	m, err := readMessage(br, c.opts.MaxLine)
	if !stop() {
		return nil, context.Cause(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("read greeting: %w", err)
	}
	if m.Greeting == nil {
		return nil, fmt.Errorf("read greeting: %w", errKind)
	}
	c.version = m.Greeting.Version.QEMU
	c.oob = slices.Contains(m.Greeting.Capabilities, "oob")
	go c.read(br)
	enable := []string{}
	if c.oob {
		enable = append(enable, "oob")
	}
	if err := c.Execute(ctx, "qmp_capabilities", map[string]any{"enable": enable}, nil); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Version of the QEMU at the other end.
func (c *Client) Version() Version { return c.version }

// OOB reports whether ExecuteOOB works.
func (c *Client) OOB() bool { return c.oob }

// Done is closed when the connection has ended.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err says why the connection ended, nil while it lives.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection, fails what waits for replies, and returns when the reader has ended.
func (c *Client) Close() error {
	c.fail(ErrClosed)
	<-c.done
	return nil
}

// Execute runs a command in QEMU's main loop. args is marshalled to an object
// (nil: none), the reply unmarshalled into result (nil: ignored). A refusal is
// *Error. When ctx ends first the command may still be carried out.
func (c *Client) Execute(ctx context.Context, name string, args, result any) error {
	return c.run(ctx, name, command{Execute: name, Args: args}, result)
}

// ExecuteOOB runs a command out of band: at once, in the monitor's own thread.
// QEMU allows it for few commands, yank among them.
func (c *Client) ExecuteOOB(ctx context.Context, name string, args, result any) error {
	if !c.oob {
		return fmt.Errorf("qmp %s: %w", name, ErrNoOOB)
	}
	return c.run(ctx, name, command{ExecOOB: name, Args: args}, result)
}

func (c *Client) run(ctx context.Context, name string, cmd command, result any) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("qmp %s: %w", name, context.Cause(ctx))
	}
	reply := make(chan message, 1)
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return fmt.Errorf("qmp %s: %w", name, c.err)
	}
	c.next++
	cmd.ID = c.next
	c.pending[cmd.ID] = reply
	c.mu.Unlock()
	defer c.forget(cmd.ID)

	line, err := json.Marshal(cmd)
	if err != nil {
		return fmt.Errorf("qmp %s: encode arguments: %w", name, err)
	}
	if err := c.write(ctx, append(line, '\n')); err != nil {
		return fmt.Errorf("qmp %s: %w", name, err)
	}
	select {
	case m := <-reply:
		return finish(name, m, result)
	case <-ctx.Done():
		return fmt.Errorf("qmp %s: %w", name, context.Cause(ctx))
	case <-c.done:
	}
	select { // the reply may have come with the connection's last bytes
	case m := <-reply:
		return finish(name, m, result)
	default:
		return fmt.Errorf("qmp %s: %w", name, c.Err())
	}
}

func finish(name string, m message, result any) error {
	if m.Error != nil {
		return &Error{Command: name, Class: m.Error.Class, Desc: m.Error.Desc}
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(m.Return, result); err != nil {
		return fmt.Errorf("qmp %s: decode reply: %w", name, err)
	}
	return nil
}

// write sends one line; a line cut short by ctx ends the connection, for what
// follows would be read as its rest.
func (c *Client) write(ctx context.Context, line []byte) error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	c.conn.SetWriteDeadline(time.Time{})
	stop := context.AfterFunc(ctx, func() { c.conn.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	n, err := c.conn.Write(line)
	if err == nil {
		return nil
	}
	if n > 0 || ctx.Err() == nil {
		c.fail(fmt.Errorf("qmp: write: %w", err))
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return c.Err()
}

func (c *Client) forget(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pending, id)
}

// fail records the first cause and ends the connection.
func (c *Client) fail(err error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = err
	}
	c.mu.Unlock()
	c.conn.Close()
}

// read is the connection's reader; it ends with the connection.
func (c *Client) read(br *bufio.Reader) {
	defer close(c.done)
	for {
		m, err := readMessage(br, c.opts.MaxLine)
		switch {
		case errors.Is(err, io.EOF):
			c.end(errors.New("qmp: peer closed the connection"))
			return
		case err != nil:
			c.end(err)
			return
		}
		c.dispatch(m)
	}
}

func (c *Client) end(err error) {
	c.fail(err)
	c.mu.Lock()
	defer c.mu.Unlock()
	for s := range c.subs {
		s.end(c.err)
	}
}

// dispatch never blocks: a reply's channel has room for it, a full subscription counts a loss.
func (c *Client) dispatch(m message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case m.Event != "":
		for s := range c.subs {
			s.put(m.event())
		}
	case m.ID != nil:
		// An unknown id answers a command whose caller has gone.
		if ch, ok := c.pending[*m.ID]; ok {
			delete(c.pending, *m.ID)
			ch <- m
		}
	}
}
