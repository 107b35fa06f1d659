package tunnel

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrPrivilege: this process may not make network namespaces or TUN devices.
var ErrPrivilege = errors.New("network namespaces and TUN devices take root and /dev/net/tun")

// ErrClosed: the space is gone.
var ErrClosed = errors.New("tunnel: closed")

// Space is a network namespace with a loopback device. Sockets that are made, and
// processes that are started, within Do belong to it.
type Space struct {
	jobs    chan func()
	done    chan struct{}
	closing sync.Once

	mu    sync.Mutex // guards devices
	lanes int        // devices made so far
}

// NewSpace makes an empty namespace. Close frees it.
func NewSpace() (*Space, error) {
	s := &Space{jobs: make(chan func()), done: make(chan struct{})}
	made := make(chan error)
	go s.hold(made)
	if err := <-made; err != nil {
		return nil, fmt.Errorf("make network namespace: %w", privilege(err))
	}
	return s, nil
}

// hold is the thread of the namespace. It stays locked, so it ends with the goroutine.
func (s *Space) hold(made chan<- error) {
	runtime.LockOSThread()
	err := unix.Unshare(unix.CLONE_NEWNET)
	if err == nil {
		err = quiet()
	}
	made <- err
	if err != nil {
		return
	}
	for {
		select {
		case f := <-s.jobs:
			f()
		case <-s.done:
			return
		}
	}
}

// quiet raises the loopback and turns off IPv6, whose own packets nobody asked for.
func quiet() error {
	for _, scope := range []string{"all", "default"} {
		err := os.WriteFile("/proc/sys/net/ipv6/conf/"+scope+"/disable_ipv6", []byte("1"), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return raise("lo")
}

// Do runs f on the thread of the namespace, one f at a time, and returns its error.
// A socket belongs to the namespace if f itself makes it: a goroutine that f starts
// is elsewhere.
func (s *Space) Do(f func() error) error {
	result := make(chan error, 1)
	select {
	case s.jobs <- func() { result <- f() }:
		return <-result
	case <-s.done:
		return ErrClosed
	}
}

// Start starts a process in the namespace. It is killed when this process dies, or
// when the space is closed.
func (s *Space) Start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	return s.Do(cmd.Start)
}

// Close ends the thread. The namespace goes with the last socket and process in it.
func (s *Space) Close() { s.closing.Do(func() { close(s.done) }) }

// nextDevice is a name that the space has not used yet.
func (s *Space) nextDevice() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lanes++
	return fmt.Sprintf("lane%d", s.lanes)
}

func privilege(err error) error {
	for _, e := range []error{unix.EPERM, unix.EACCES, unix.ENOENT, unix.ENODEV, unix.ENXIO} {
		if errors.Is(err, e) {
			return fmt.Errorf("%w: %w", ErrPrivilege, err)
		}
	}
	return err
}
