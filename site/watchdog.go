package site

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"github.com/novacron/afterimage/cbt/qemu"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/fault"
)

// WatchdogCommand is the hidden command of the command line that runs Watchdog.
const WatchdogCommand = "watchdog"

// Watchdog is the whole work of the watchdog process: pid is its parent, the
// capturing process; beats come over stdin.
func Watchdog(ctx context.Context, pid int, stall time.Duration, stdin io.Reader, stderr io.Writer) error {
	if pid <= 1 || os.Getppid() != pid {
		return fault.New(fault.Usage, "watch process "+strconv.Itoa(pid), "it is not the process that started this one")
	}
	proc, err := os.FindProcess(pid)
	if err != nil {
		return fault.Wrap(fault.Unexpected, "watch process "+strconv.Itoa(pid), err)
	}
	log := slog.New(slog.NewTextHandler(stderr, nil)).With("part", "watchdog")
	return explain("watch", qemu.RunWatchdog(ctx, qemu.WatchdogOptions{Pipe: stdin, Proc: proc, StallBudget: stall, Log: log}))
}

// watchdog keeps a watchdog process beside this one while trackers need it.
type watchdog struct {
	beats *qemu.Heartbeat
	read  *os.File // what the process inherits
	write *os.File
	stall time.Duration
}

// newWatchdog makes the pipe, if a group names a socket for the watchdog; nil otherwise.
func (s *Site) newWatchdog() (*watchdog, error) {
	w := &watchdog{}
	wanted := false
	for _, g := range s.cfg.Groups {
		// Libvirt passes nothing out of band: there the watchdog kills us.
		if g.QEMU != nil && g.QEMU.Watchdog != "" || g.Libvirt != nil && g.Role == config.Primary {
			wanted = true
			w.stall = max(w.stall, 2*time.Duration(g.StallBudget))
		}
	}
	if !wanted {
		return nil, nil
	}
	var err error
	if w.read, w.write, err = os.Pipe(); err != nil {
		return nil, fmt.Errorf("make watchdog pipe: %w", err)
	}
	w.beats = qemu.NewHeartbeat(w.write)
	return w, nil
}

func (w *watchdog) heartbeat() *qemu.Heartbeat {
	if w == nil {
		return nil
	}
	return w.beats
}

func (w *watchdog) close() error {
	if w == nil {
		return nil
	}
	return errors.Join(w.write.Close(), w.read.Close())
}

// run starts the process, and again whenever it ends, until ctx does. The process
// is in a group of its own: what interrupts the daemon at a terminal must not
// take it first. It ends with the pipe's other end even if we are killed.
func (w *watchdog) run(ctx context.Context, s *Site) error {
	for ctx.Err() == nil {
		self := s.o.Executable
		if self == "" {
			var err error
			if self, err = os.Executable(); err != nil {
				return fmt.Errorf("find own program: %w", err)
			}
		}
		cmd := exec.CommandContext(ctx, self, WatchdogCommand, "--pid", strconv.Itoa(os.Getpid()), "--stall", w.stall.String())
		cmd.Stdin, cmd.Stderr = w.read, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		err := cmd.Run()
		if ctx.Err() != nil {
			return nil
		}
		s.o.Log.Error("watchdog ended and is started again", "err", err)
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
		}
	}
	return nil
}
