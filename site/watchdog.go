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
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/novacron/afterimage/cbt/libvirt"
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
	return explain("watch", qemu.RunWatchdog(ctx, qemu.WatchdogOptions{Pipe: stdin, Proc: proc, StallBudget: stall, Log: log, Dial: dialWatched}))
}

// byLibvirt begins the address of a monitor that is reached through libvirtd: no path does.
const byLibvirt = "libvirt:"

// domainAddress is that of a domain's monitor in a beat.
func domainAddress(uri, domain string) string { return byLibvirt + uri + " " + domain }

// dialWatched is the watchdog's way to the monitor of a machine.
func dialWatched(ctx context.Context, address string) (qemu.Monitor, error) {
	at, ok := strings.CutPrefix(address, byLibvirt)
	if !ok {
		return qemu.DialQMP(ctx, address)
	}
	uri, domain, _ := strings.Cut(at, " ")
	m, err := libvirt.DialMonitor(ctx, uri, domain)
	if err != nil {
		return nil, err
	}
	return m, nil
}

// watchdog keeps a watchdog process beside this one, from the first tracker that needs it.
type watchdog struct {
	beats  *qemu.Heartbeat
	read   *os.File // what the process inherits
	write  *os.File
	stall  time.Duration // the least that a tracker may be silent for
	taps   bool          // the configuration wants it for taps; else it is for local disks alone
	needed chan struct{}
	need   func() // closes needed
}

// newWatchdog makes the pipe, if a group names a socket for the watchdog, or a machine
// whose disks may become local; nil otherwise.
func (s *Site) newWatchdog() (*watchdog, error) {
	w := &watchdog{}
	wanted := false
	for _, g := range s.cfg.Groups {
		if g.Machine != nil && g.Machine.Libvirt == nil {
			wanted = true
			w.bound(g)
		}
		for _, t := range g.Taps() {
			// Libvirt passes nothing out of band: where a write waits the watchdog kills us.
			if t.QEMU != nil && t.QEMU.Watchdog != "" || t.Libvirt != nil && g.Role == config.Primary {
				wanted, w.taps = true, true
				w.bound(g)
			}
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
	w.needed = make(chan struct{})
	w.need = sync.OnceFunc(func() { close(w.needed) })
	return w, nil
}

// bound has the process look often enough for g, should g be tapped. For how long a tracker
// may be silent it says itself: one that never runs makes nobody wait for another's guest.
func (w *watchdog) bound(g config.Group) {
	if mine := 2 * time.Duration(g.StallBudget); w.stall == 0 || mine < w.stall {
		w.stall = mine
	}
}

// heartbeat is for a tracker of a machine, which is our own or was there before us; nil:
// it has no watchdog.
func (w *watchdog) heartbeat(own bool) *qemu.Heartbeat {
	if w == nil || !own && !w.taps {
		return nil
	}
	w.need()
	return w.beats
}

func (w *watchdog) close() error {
	if w == nil {
		return nil
	}
	return errors.Join(w.write.Close(), w.read.Close())
}

// run starts the process once it is needed, and again whenever it ends, until ctx does. The process
// is in a group of its own: what interrupts the daemon at a terminal must not
// take it first. It ends with the pipe's other end even if we are killed.
func (w *watchdog) run(ctx context.Context, s *Site) error {
	select {
	case <-w.needed:
	case <-ctx.Done():
	}
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
