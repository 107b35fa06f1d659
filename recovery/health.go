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

// Health is how a machine tells that it is up: by a line on its serial console, or by
// its guest agent's answer.
type Health struct {
	Prefix  string        `json:"prefix,omitempty"` // of a line
	Agent   bool          `json:"agent,omitempty"`
	Timeout time.Duration `json:"timeout,omitempty"` // default 5 min
}

// Wanted reports whether anything is waited for.
func (h Health) Wanted() bool { return h.Prefix != "" || h.Agent }

// maxLineBytes is how much of a line without an end is kept.
const maxLineBytes = 64 << 10

// Healthy waits for the line and returns it. When the machine goes or the time is
// up the error wraps ErrUnhealthy and shows what the console said last. The
// definition's Args must have written it: -serial file:{serial}.
func (r *Running) Healthy(ctx context.Context, h Health) (string, error) {
	if len(r.Besides) > 0 {
		return r.healthyAll(ctx, h)
	}
	if h.Timeout == 0 {
		h.Timeout = 5 * time.Minute
	}
	ctx, cancel := context.WithTimeout(ctx, h.Timeout)
	defer cancel()
	if h.Prefix == "" {
		return r.answers(ctx)
	}
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

// agentLimit bounds one asking of an agent, which may not be there yet.
const agentLimit = 2 * time.Second

// answers waits for the guest's agent.
func (r *Running) answers(ctx context.Context) (string, error) {
	tick := time.NewTicker(10 * poll)
	defer tick.Stop()
	for {
		one, cancel := context.WithTimeout(ctx, agentLimit)
		err := r.machine.AgentAnswers(one)
		cancel()
		if err == nil {
			return "its guest agent answers", nil
		}
		gone, gerr := isGone(r.pidfd)
		switch {
		case gerr != nil:
			return "", gerr
		case gone:
			return "", fmt.Errorf("machine %s: %w: it ended; its agent: %w", r.Name, ErrUnhealthy, err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return "", fmt.Errorf("machine %s: %w: no agent: %w; %w", r.Name, ErrUnhealthy, context.Cause(ctx), err)
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
