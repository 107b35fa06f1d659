package nbd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/novacron/afterimage/cbt"
)

// call is one request of a Client and what came back so far. The reader of
// replies works on it under mu; ended is closed when the reply is complete.
type call struct {
	cmd     uint16
	flags   uint16
	extent  cbt.Extent
	payload []byte // of a write
	into    []byte // of a read
	context uint32 // of a block status

	mu        sync.Mutex // guards all below, and into
	abandoned bool       // nobody waits any more; into is not ours
	got       []cbt.Extent
	status    []byte // descriptors
	described bool   // a BLOCK_STATUS chunk of our context has come
	err       error

	ended chan struct{}
}

// receivePatience is how long a cancelled read waits for a payload that is on
// its way into the caller's buffer before it gives the connection up.
const receivePatience = time.Second

// do sends cl and waits for its reply.
func (c *Client) do(ctx context.Context, cl *call) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	cl.ended = make(chan struct{})
	select {
	case c.slots <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-c.done:
		return c.Err()
	}
	cookie, err := c.register(cl)
	if err != nil {
		<-c.slots
		return err
	}
	var head [requestBytes]byte
	request{cl.flags, cl.cmd, cookie, uint64(cl.extent.Offset), uint32(cl.extent.Length)}.put(&head)
	if err := c.send(ctx, head[:], cl.payload); err != nil {
		if c.forget(cookie) {
			<-c.slots
		}
		// The reader may be completing the call because the connection failed.
		cl.abandon()
		return err
	}
	select {
	case <-cl.ended:
		return cl.err
	case <-ctx.Done():
	}
	if cl.mu.TryLock() {
		cl.abandoned = true
		cl.mu.Unlock()
		return context.Cause(ctx)
	}
	return c.awaitReceipt(ctx, cl)
}

// awaitReceipt ends a cancelled call whose reply is being received.
func (c *Client) awaitReceipt(ctx context.Context, cl *call) error {
	t := time.AfterFunc(receivePatience, func() {
		c.fail(fmt.Errorf("receive of a cancelled %s takes too long: %w", commandName(cl.cmd), context.Cause(ctx)))
	})
	defer t.Stop()
	cl.abandon()
	return context.Cause(ctx)
}

// abandon says that nobody waits any more, once the reader has let go of cl.
func (cl *call) abandon() {
	cl.mu.Lock()
	cl.abandoned = true
	cl.mu.Unlock()
}

func (c *Client) register(cl *call) (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, c.err
	}
	c.cookie++
	c.calls[c.cookie] = cl
	return c.cookie, nil
}

// forget takes a call that was not sent out of the table and reports whether it
// was there.
func (c *Client) forget(cookie uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.calls[cookie]
	delete(c.calls, cookie)
	return ok
}

// send writes one message whole, or none of it, or ends the connection.
func (c *Client) send(ctx context.Context, head, payload []byte) error {
	select {
	case c.sending <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-c.done:
		return c.Err()
	}
	defer func() { <-c.sending }()
	expired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		c.conn.SetWriteDeadline(time.Unix(1, 0))
		close(expired)
	})
	bufs := net.Buffers{head}
	if len(payload) > 0 {
		bufs = append(bufs, payload)
	}
	n, err := bufs.WriteTo(c.conn)
	if !stop() {
		<-expired
		c.conn.SetWriteDeadline(time.Time{})
	}
	if err == nil {
		return nil
	}
	if n == 0 && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	c.fail(fmt.Errorf("send request: %w", err))
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return c.Err()
}

// listen reads replies until the connection ends, then completes all calls.
func (c *Client) listen() {
	for {
		if err := c.receive(); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.EOF
			}
			c.fail(err)
			break
		}
	}
	c.mu.Lock()
	calls, err := c.calls, c.err
	c.calls = nil
	c.mu.Unlock()
	for _, cl := range calls {
		cl.err = err
		close(cl.ended)
	}
	close(c.done)
}

// find is the call that a reply is for.
func (c *Client) find(cookie uint64) (*call, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	cl := c.calls[cookie]
	if cl == nil {
		return nil, violation("reply to unknown cookie %#x", cookie)
	}
	return cl, nil
}

// complete takes a call out of the table and lets its caller go.
func (c *Client) complete(cookie uint64, cl *call) {
	if c.forget(cookie) {
		close(cl.ended)
		<-c.slots
	}
}
