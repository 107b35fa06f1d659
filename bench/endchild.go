package bench

import (
	"context"
	"errors"
	"io"
	"net/rpc"
	"os"
	"os/exec"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// endService is the name of an end's methods.
const endService = "End"

// EndChild is one end of a measured path, in a process of its own, so that it can live
// in a network namespace of its own: it does what it is asked over in and out until in
// ends, and frees what it opened.
func EndChild(in io.ReadCloser, out io.WriteCloser) error {
	e := newEnd()
	s := rpc.NewServer()
	if err := s.RegisterName(endService, e); err != nil {
		return err
	}
	s.ServeConn(pipes{in, out})
	return e.close()
}

// pipes are a process's standard input and output as one connection.
type pipes struct {
	io.ReadCloser
	io.WriteCloser
}

func (p pipes) Close() error { return errors.Join(p.ReadCloser.Close(), p.WriteCloser.Close()) }

// child is an end as its parent has it. Its methods may be called from anywhere.
type child struct {
	name  string
	cmd   *exec.Cmd
	rpc   *rpc.Client
	said  tail
	once  sync.Once
	ended error
}

// startChild starts an end; start, unless nil, starts the process in a place of its own.
func startChild(ctx context.Context, name string, program func(context.Context) *exec.Cmd, start func(*exec.Cmd) error) (*child, error) {
	if start == nil {
		start = (*exec.Cmd).Start
	}
	c := &child{name: name, cmd: program(ctx)}
	in, err := c.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.cmd.Stderr = &c.said
	if err := start(c.cmd); err != nil {
		return nil, err
	}
	c.rpc = rpc.NewClient(pipes{out, in})
	return c, nil
}

// call asks the end for one thing and waits for the answer.
func (c *child) call(ctx context.Context, method string, args, reply any) error {
	done := c.rpc.Go(endService+"."+method, args, reply, make(chan *rpc.Call, 1)).Done
	select {
	case call := <-done:
		if call.Error != nil {
			return &endError{c.name, method, call.Error, c.said.text()}
		}
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// close ends the process: it gives back what it opened, and is killed if it takes long.
func (c *child) close() error {
	c.once.Do(func() {
		_ = c.rpc.Close() // its standard input ends, and so does the end
		late := time.AfterFunc(30*time.Second, func() { _ = c.cmd.Process.Kill() })
		defer late.Stop()
		if err := c.cmd.Wait(); err != nil && !errors.Is(err, os.ErrClosed) {
			c.ended = &endError{c.name, "close", err, c.said.text()}
		}
	})
	return c.ended
}

// endError is what went wrong at an end, with the last that its process said.
type endError struct {
	end, method string
	err         error
	said        string
}

func (e *endError) Error() string {
	text := "end " + e.end + ": " + e.method + ": " + e.err.Error()
	if e.said != "" {
		text += " (it said: " + e.said + ")"
	}
	return text
}

func (e *endError) Unwrap() error { return e.err }

// tail keeps the last kilobyte of what a process says.
type tail struct {
	mu sync.Mutex // guards p
	p  []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.p = append(t.p, p...)
	t.p = t.p[max(0, len(t.p)-1024):]
	return len(p), nil
}

func (t *tail) text() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.p)
}

// processorTime is what this process has used.
func processorTime() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u) // it fails only for bad arguments
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
