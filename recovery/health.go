package recovery

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"
)

// Health is what a machine that is up says on its serial console.
type Health struct {
	Prefix  string        `json:"prefix"`            // of a line; empty: nothing is waited for
	Timeout time.Duration `json:"timeout,omitempty"` // default 5 min
}

// maxLineBytes is how much of a line without an end is kept.
const maxLineBytes = 64 << 10

// Healthy waits for the line and returns it. When the machine goes or the time is
// up the error wraps ErrUnhealthy and shows what the console said last. The
// definition's Args must have written it: -serial file:{serial}.
func (r *Running) Healthy(ctx context.Context, h Health) (string, error) {
	if h.Timeout == 0 {
		h.Timeout = 5 * time.Minute
	}
	ctx, cancel := context.WithTimeout(ctx, h.Timeout)
	defer cancel()
	tick := time.NewTicker(poll)
	defer tick.Stop()
	c := console{path: r.Serial}
	defer c.close()
	for {
		gone, err := isGone(r.pidfd)
		if err != nil {
			return "", err
		}
		line, err := c.find(h.Prefix)
		if line != "" || err != nil {
			return line, err
		}
		if gone {
			return "", fmt.Errorf("machine %s: %w: it ended; last line %q", r.Name, ErrUnhealthy, c.last)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return "", fmt.Errorf("machine %s: %w: no line %q: %w; last line %q", r.Name, ErrUnhealthy, h.Prefix, context.Cause(ctx), c.last)
		}
	}
}

// console follows a growing file by lines.
type console struct {
	path string
	f    *os.File
	rest []byte // of the line that has no end yet
	last string
}

// find is the next line that begins with prefix, or "" when none has come yet.
func (c *console) find(prefix string) (string, error) {
	if c.f == nil {
		f, err := os.Open(c.path)
		if errors.Is(err, fs.ErrNotExist) {
			return "", nil
		}
		if err != nil {
			return "", err
		}
		c.f = f
	}
	buf := make([]byte, 8<<10)
	for {
		n, err := c.f.Read(buf)
		c.rest = append(c.rest, buf[:n]...)
		for {
			line, rest, whole := bytes.Cut(c.rest, []byte("\n"))
			if !whole {
				break
			}
			c.rest = rest
			if text := strings.TrimRight(string(line), "\r"); text != "" {
				c.last = text
				if strings.HasPrefix(text, prefix) {
					return text, nil
				}
			}
		}
		if over := len(c.rest) - maxLineBytes; over > 0 {
			c.rest = c.rest[over:]
		}
		if errors.Is(err, io.EOF) || err == nil && n == 0 {
			return "", nil
		}
		if err != nil {
			return "", err
		}
	}
}

func (c *console) close() {
	if c.f != nil {
		c.f.Close()
	}
}
