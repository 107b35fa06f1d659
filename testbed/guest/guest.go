package guest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
)

// keptComplaints is how much of QEMU's own output is kept, in bytes.
const keptComplaints = 16 << 10

// Guest is a running QEMU and its console.
type Guest struct {
	*Console
	Config Config // as started: Image and Accel filled in
	Pid    int

	process *os.Process
	qemu    *complaints
	exited  chan struct{} // closed once QEMU is gone and exit is set
	exit    error
}

// Start runs a guest and returns as soon as QEMU runs; Wait(ctx, "ready") tells when
// the guest does. The QEMU is the caller's: it outlives ctx, and Kill or Close ends it.
// A console that listens on ConsolePath already (ListenConsole) is not taken over:
// use Argv then.
func Start(ctx context.Context, c Config) (*Guest, error) {
	c, err := Complete(ctx, c)
	if err != nil {
		return nil, err
	}
	argv, err := Argv(c)
	if err != nil {
		return nil, err
	}
	console, err := ListenConsole(c.ConsolePath())
	if err != nil {
		return nil, err
	}
	g := &Guest{Console: console, Config: c, qemu: &complaints{}, exited: make(chan struct{})}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = g.qemu, g.qemu
	if err := cmd.Start(); err != nil {
		console.Close()
		return nil, err
	}
	g.Pid, g.process = cmd.Process.Pid, cmd.Process
	go func() {
		if g.exit = cmd.Wait(); g.exit != nil {
			g.exit = fmt.Errorf("qemu: %w: %s", g.exit, g.qemu)
		}
		close(g.exited)
		g.end(g.exit)
	}()
	return g, nil
}

// Complete fills Image and Accel in where they are zero.
func Complete(ctx context.Context, c Config) (Config, error) {
	var err error
	if c.Image == (Image{}) {
		if c.Image, err = Build(ctx); err != nil {
			return c, err
		}
	}
	if c.Accel == "" {
		c.Accel, err = Accelerator(ctx, c.Image)
	}
	return c, err
}

// Exited is closed once QEMU is gone.
func (g *Guest) Exited() <-chan struct{} { return g.exited }

// WaitExit waits until QEMU is gone; the error is its exit, with what it printed.
func (g *Guest) WaitExit(ctx context.Context) error {
	select {
	case <-g.exited:
		return g.exit
	case <-ctx.Done():
		return fmt.Errorf("wait for qemu %d to end: %w", g.Pid, ctx.Err())
	}
}

// Kill is kill -9 of QEMU; it returns once QEMU is gone.
func (g *Guest) Kill() {
	select {
	case <-g.exited:
	default:
		g.process.Kill()
		<-g.exited
	}
}

// Signal sends QEMU a signal: SIGSTOP and SIGCONT, say.
func (g *Guest) Signal(s syscall.Signal) error { return g.process.Signal(s) }

// Close kills QEMU and frees the console.
func (g *Guest) Close() error {
	g.Kill()
	return g.Console.Close()
}

// complaints keeps the beginning of what QEMU prints.
type complaints struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (c *complaints) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.buf.Write(p[:min(len(p), max(0, keptComplaints-c.buf.Len()))])
	return len(p), nil
}

func (c *complaints) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(bytes.TrimSpace(c.buf.Bytes()))
}
