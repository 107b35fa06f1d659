package witness

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Kennel is a Watchdog in a process of its own, which outlives this one: when this one
// hangs or dies the machine is paused at the time that was armed last. What it says and
// is told are lines:
//
//	→ ready
//	→ arm NANOSECONDS    by the clock that also counts while the host is suspended
//	→ mark BASE64        one more, of a pack
//	→ disarm
//	← ready, armed NANOSECONDS, marked BASE64, disarmed, paused
//
// The machine is paused by SIGSTOP to its process, which needs no monitor, no memory
// and no answer; it is found by a handle that no other process can come to have.
type Kennel struct {
	in    io.WriteCloser
	out   io.Closer
	left  atomic.Bool
	ended chan struct{} // closed when nobody reads what it says any more
	mu    sync.Mutex    // one command at a time
	lines chan string   // what it says; closed when it has ended
}

var _ Watchdog = (*Kennel)(nil)

var errGone = errors.New("it has ended")

// StartKennel runs cmd, whose program calls Dog with the machine's process id.
func StartKennel(cmd *exec.Cmd) (*Kennel, error) {
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	// A group of its own: what is sent to ours, a stop or an interrupt, is not for it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start watchdog: %w", err)
	}
	k := &Kennel{in: in, out: out, lines: make(chan string, 16), ended: make(chan struct{})}
	go func() {
		defer close(k.ended)
		defer close(k.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			k.lines <- s.Text()
		}
		if k.left.Load() {
			_ = cmd.Process.Release() // it ends after us
			return
		}
		_ = cmd.Wait() // that it has ended is all there is to know
	}()
	return k, nil
}

// Leave lets the process go on alone: the time that was armed last stands.
func (k *Kennel) Leave() {
	k.left.Store(true)
	_ = k.in.Close() // it reads that nobody says anything any more
	_ = k.out.Close()
	for range k.lines {
	}
	<-k.ended
}

// Ready returns once the process answers.
func (k *Kennel) Ready(ctx context.Context) error { return k.tell(ctx, "ready", "ready") }

// Arm implements Watchdog.
func (k *Kennel) Arm(ctx context.Context, until time.Time) error {
	now, err := uptime()
	if err != nil {
		return err
	}
	at := strconv.FormatInt(now+int64(time.Until(until)), 10)
	return k.tell(ctx, "arm "+at, "armed "+at)
}

// Mark gives a pack one more mark.
func (k *Kennel) Mark(ctx context.Context, m Mark) error {
	text := base64.RawURLEncoding.EncodeToString([]byte(m))
	return k.tell(ctx, "mark "+text, "marked "+text)
}

// Disarm implements Watchdog; the process ends. One that has ended watches no more.
func (k *Kennel) Disarm(ctx context.Context) error {
	if err := k.tell(ctx, "disarm", "disarmed"); err != nil && !errors.Is(err, errGone) {
		return err
	}
	_ = k.in.Close() // it ends by itself
	for range k.lines {
	}
	return nil
}

func (k *Kennel) tell(ctx context.Context, line, want string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, err := io.WriteString(k.in, line+"\n"); err != nil && !errors.Is(err, syscall.EPIPE) { // why it ended is read below
		return fmt.Errorf("tell watchdog: %w", err)
	}
	for {
		select {
		case said, ok := <-k.lines:
			switch {
			case !ok:
				return fmt.Errorf("tell watchdog: %w", errGone)
			case said == "paused":
				return fmt.Errorf("tell watchdog: it has paused the machine: %w", ErrLost)
			case said == want:
				return nil
			}
		case <-ctx.Done():
			return fmt.Errorf("tell watchdog: %w", context.Cause(ctx))
		}
	}
}

// uptime is CLOCK_BOOTTIME in nanoseconds.
func uptime() (int64, error) {
	var t unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t)
	return t.Nano(), err
}

// Dog is the process behind a Kennel: it reads in until disarmed, and pauses process pid
// at the time that was armed last, whether or not anybody still writes to in. It ends
// after that, or when the process is gone.
func Dog(in, out *os.File, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("watch process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	// An answer to a caller that has died meanwhile must not be the watchdog's end.
	signal.Ignore(unix.SIGPIPE, unix.SIGHUP, unix.SIGINT)
	_ = unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE) // where it is not allowed, it may be swapped out
	d := dog{in: in, out: out, machine: fd}
	for {
		over, err := d.step()
		if over || err != nil {
			return err
		}
	}
}

type dog struct {
	in, out *os.File
	machine int // pidfd; negative: a pack, found by marks
	marks   []Mark
	rest    string
	until   int64 // 0: not armed
	eof     bool
}

// longestWait bounds a sleep: poll's clock stands still while the host is suspended, and
// the time that was armed does not.
const longestWait = 50

// step waits for a line, for the time, or for the machine's end. What was said before the
// time is looked at counts: a watchdog that hung must not act on a time that is not the
// last one any more.
func (d *dog) step() (over bool, err error) {
	if said := []unix.PollFd{{Fd: int32(d.in.Fd()), Events: unix.POLLIN}}; !d.eof {
		if n, err := unix.Poll(said, 0); err == nil && n > 0 {
			return d.read()
		}
	}
	wait := -1
	if d.until != 0 {
		now, err := uptime()
		if err != nil || now >= d.until {
			return true, errors.Join(err, d.pause())
		}
		wait = int(min(longestWait, (d.until-now+int64(time.Millisecond)-1)/int64(time.Millisecond)))
	}
	fds := []unix.PollFd{{Fd: int32(d.machine), Events: unix.POLLIN}, {Fd: int32(d.in.Fd()), Events: unix.POLLIN}}
	if d.eof {
		fds = fds[:1]
	}
	// Poll passes a negative descriptor over.
	if _, err := unix.Poll(fds, wait); err != nil && !errors.Is(err, unix.EINTR) {
		return true, errors.Join(err, d.pause())
	}
	switch {
	case fds[0].Revents != 0:
		return true, nil // the machine is gone
	case !d.eof && fds[1].Revents != 0:
		return d.read()
	}
	return false, nil
}

func (d *dog) read() (over bool, err error) {
	var b [256]byte
	n, err := unix.Read(int(d.in.Fd()), b[:])
	if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
		return false, nil
	}
	if n <= 0 || err != nil {
		d.eof = true // the time that was armed stands
		return d.until == 0, nil
	}
	d.rest += string(b[:n])
	for {
		line, rest, whole := strings.Cut(d.rest, "\n")
		if !whole {
			return false, nil
		}
		d.rest = rest
		at, armed := strings.CutPrefix(line, "arm ")
		mark, marked := strings.CutPrefix(line, "mark ")
		switch {
		case marked:
			if m, err := base64.RawURLEncoding.DecodeString(mark); err == nil { // else it is not answered
				d.marks = append(d.marks, Mark(m))
				fmt.Fprintln(d.out, "marked "+mark)
			}
		case armed:
			if d.until, err = strconv.ParseInt(at, 10, 64); err != nil {
				return true, errors.Join(fmt.Errorf("read %q: %w", line, err), d.pause())
			}
			fmt.Fprintln(d.out, "armed "+at)
		case line == "ready":
			fmt.Fprintln(d.out, line)
		case line == "disarm":
			fmt.Fprintln(d.out, "disarmed")
			return true, nil
		}
	}
}

// pause stops the machine; one that is gone stands still too.
func (d *dog) pause() error {
	if d.machine < 0 {
		return d.hold()
	}
	err := unix.PidfdSendSignal(d.machine, unix.SIGSTOP, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		err = nil
	}
	fmt.Fprintln(d.out, "paused")
	return err
}
