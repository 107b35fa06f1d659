package guest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
)

// keptLines is how many lines a Console remembers.
const keptLines = 1 << 16

// shownLines is how many of them an error shows.
const shownLines = 20

// Console is our end of a guest's serial port. QEMU connects to it, so nothing the
// guest says is lost, and another QEMU may take its place later.
type Console struct {
	listener net.Listener
	readers  sync.WaitGroup

	mu      sync.Mutex    // guards all below
	conn    net.Conn      // the newest connection, nil before the first
	lines   []string      // the last keptLines at most
	dropped int           // lines that lie before them
	taken   int           // index of the first line that Wait has not passed, counted from the very first
	stamped uint64        // highest "stamped K"
	open    int           // connections that may still say something
	more    chan struct{} // closed and replaced when anything here changes
	ended   bool          // nobody will connect again
	why     error         // of ended
}

// ListenConsole listens on a unix socket. Close ends it.
func ListenConsole(path string) (*Console, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	c := &Console{listener: l, more: make(chan struct{})}
	c.readers.Go(c.accept)
	return c, nil
}

func (c *Console) accept() {
	for {
		conn, err := c.listener.Accept()
		if err != nil {
			return
		}
		c.mu.Lock()
		if errors.Is(c.why, net.ErrClosed) {
			c.mu.Unlock()
			conn.Close()
			return
		}
		c.conn = conn
		c.open++
		c.wake()
		c.mu.Unlock()
		c.readers.Go(func() { c.read(conn) })
	}
}

func (c *Console) read(conn net.Conn) {
	defer func() {
		conn.Close()
		c.mu.Lock()
		defer c.mu.Unlock()
		c.open--
		if c.conn == conn {
			c.conn = nil
		}
		c.wake()
	}()
	r := bufio.NewReader(conn)
	for {
		line, err := r.ReadString('\n')
		if line = strings.TrimRight(line, "\r\n"); line != "" {
			c.add(line)
		}
		if err != nil {
			return
		}
	}
}

func (c *Console) add(line string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.lines) == keptLines {
		half := keptLines / 2
		c.lines = append(c.lines[:0], c.lines[half:]...)
		c.dropped += half
	}
	c.lines = append(c.lines, line)
	if text, ok := strings.CutPrefix(line, "stamped "); ok {
		if k, err := strconv.ParseUint(text, 10, 64); err == nil {
			c.stamped = max(c.stamped, k)
		}
	}
	c.wake()
}

// wake tells all who wait that something changed. The caller holds mu.
func (c *Console) wake() {
	close(c.more)
	c.more = make(chan struct{})
}

// Wait returns the next line that begins with prefix and passes over all before
// it. A line "error …" that comes first is an error, unless it was asked for.
func (c *Console) Wait(ctx context.Context, prefix string) (string, error) {
	for {
		c.mu.Lock()
		more, over, why := c.more, c.over(), c.why
		for c.taken = max(c.taken, c.dropped); c.taken < c.dropped+len(c.lines); {
			line := c.lines[c.taken-c.dropped]
			c.taken++
			if strings.HasPrefix(line, prefix) {
				c.mu.Unlock()
				return line, nil
			}
			if strings.HasPrefix(line, "error ") {
				c.mu.Unlock()
				return "", fmt.Errorf("%w: wait for %q: the guest says %q", ErrConsole, prefix, line)
			}
		}
		c.mu.Unlock()
		if over {
			return "", fmt.Errorf("%w: wait for %q: %w%s", ErrConsole, prefix, why, c.tail())
		}
		select {
		case <-more:
		case <-ctx.Done():
			return "", fmt.Errorf("%w: wait for %q: %w%s", ErrConsole, prefix, ctx.Err(), c.tail())
		}
	}
}

// WaitStamped waits until the guest has said that stamp k, or a later one, is
// durable, and returns the highest said. It does not pass over lines.
func (c *Console) WaitStamped(ctx context.Context, k uint64) (uint64, error) {
	for {
		c.mu.Lock()
		more, stamped, over, why := c.more, c.stamped, c.over(), c.why
		c.mu.Unlock()
		if stamped >= k {
			return stamped, nil
		}
		if over {
			return stamped, fmt.Errorf("%w: wait for stamp %d, have %d: %w%s", ErrConsole, k, stamped, why, c.tail())
		}
		select {
		case <-more:
		case <-ctx.Done():
			return stamped, fmt.Errorf("%w: wait for stamp %d, have %d: %w%s", ErrConsole, k, stamped, ctx.Err(), c.tail())
		}
	}
}

// Stamped is the highest stamp that a guest on this console said is durable.
func (c *Console) Stamped() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stamped
}

// Send gives the guest an order, waiting for QEMU to connect first.
func (c *Console) Send(ctx context.Context, order string) error {
	for {
		c.mu.Lock()
		conn, more, over, why := c.conn, c.more, c.over(), c.why
		c.mu.Unlock()
		if over {
			return fmt.Errorf("%w: send %q: %w%s", ErrConsole, order, why, c.tail())
		}
		if conn != nil {
			if _, err := conn.Write([]byte(order + "\n")); err != nil {
				return fmt.Errorf("%w: send %q: %w", ErrConsole, order, err)
			}
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return fmt.Errorf("%w: send %q: %w", ErrConsole, order, ctx.Err())
		}
	}
}

// Ask sends an order and waits for the answer that begins with prefix.
func (c *Console) Ask(ctx context.Context, order, prefix string) (string, error) {
	if err := c.Send(ctx, order); err != nil {
		return "", err
	}
	return c.Wait(ctx, prefix)
}

// Transcript is what the guest said, the last keptLines lines of it.
func (c *Console) Transcript() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.lines...)
}

// tail is the end of the transcript, for errors.
func (c *Console) tail() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	last := c.lines[max(0, len(c.lines)-shownLines):]
	if len(last) == 0 {
		return "; it said nothing"
	}
	return "; it said last:\n" + strings.Join(last, "\n")
}

// end tells all who wait that the guest is gone, once what it said is read.
func (c *Console) end(why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return
	}
	if why == nil {
		why = ErrGone
	}
	c.ended, c.why = true, why
	c.wake()
}

// over reports whether nothing more will be said. The caller holds mu.
func (c *Console) over() bool { return c.ended && c.open == 0 }

// Close frees the socket and the connections and returns when nothing runs.
func (c *Console) Close() error {
	c.mu.Lock()
	c.ended, c.why = true, net.ErrClosed
	conn := c.conn
	c.wake()
	c.mu.Unlock()
	err := c.listener.Close()
	if conn != nil {
		conn.Close()
	}
	c.readers.Wait()
	return err
}
