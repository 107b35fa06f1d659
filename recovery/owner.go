package recovery

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// poll is how often a process, a socket or a file is looked at while one waits.
const poll = 10 * time.Millisecond

// owner is the process that holds the lock on a QEMU's pid file. QEMU keeps it as
// long as it lives, so a number that is stale or was given away is never taken.
func owner(path string) (pid, pidfd int, err error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, -1, ErrNotRunning
	}
	if err != nil {
		return 0, -1, err
	}
	defer f.Close()
	if held, err := locked(f); err != nil || !held {
		return 0, -1, errors.Join(ErrNotRunning, err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, -1, err
	}
	pid, err = strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0, -1, fmt.Errorf("%w: %s says %q", ErrNotRunning, path, text)
	}
	pidfd, err = unix.PidfdOpen(pid, 0)
	if err != nil {
		return 0, -1, fmt.Errorf("%w: process %d: %w", ErrNotRunning, pid, err)
	}
	if held, err := locked(f); err != nil || !held { // it went while we looked
		return 0, -1, errors.Join(ErrNotRunning, err, unix.Close(pidfd))
	}
	return pid, pidfd, nil
}

// Process is the process of the machine, without asking its guest; a machine that
// does not run is ErrNotRunning.
func (m Machine) Process() (pid int, err error) {
	if len(m.Besides) > 0 {
		return m.processOfAny()
	}
	if m.Host != nil {
		pid, pidfd, err := m.hostedProcess()
		if err != nil {
			return 0, err
		}
		return pid, unix.Close(pidfd)
	}
	pid, pidfd, err := owner(m.withDefaults().pidFile())
	if err != nil {
		return 0, err
	}
	return pid, unix.Close(pidfd)
}

func locked(f *os.File) (bool, error) {
	l := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &l); err != nil {
		return false, fmt.Errorf("ask for the lock of %s: %w", f.Name(), err)
	}
	return l.Type != unix.F_UNLCK, nil
}

// holds reports whether pid is the process that has the machine's lock.
func (m Machine) holds(pid int) error {
	has, fd, err := owner(m.pidFile())
	if err != nil {
		return err
	}
	if has != pid {
		err = fmt.Errorf("process %d has the lock", has)
	}
	return errors.Join(err, unix.Close(fd))
}

// isGone asks without waiting.
func isGone(pidfd int) (bool, error) {
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	if errors.Is(err, unix.EINTR) {
		return false, nil
	}
	return n > 0, err
}

func waitGone(ctx context.Context, pidfd int) error {
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for {
		gone, err := isGone(pidfd)
		if gone || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
