package recovery

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/novacron/afterimage/cbt/qmp"
)

// Running is a machine that runs.
type Running struct {
	Name    string `json:"name"`
	UUID    string `json:"uuid"`
	PID     int    `json:"pid"`
	QMP     string `json:"qmp"`
	QMP2    string `json:"qmp2"`
	Serial  string `json:"serial"`
	Log     string `json:"log"`
	Adopted bool   `json:"adopted"` // it ran already

	pidfd int
}

// machineFile is a machine's identity, durable before QEMU is started.
type machineFile struct {
	Name string   `json:"name"`
	UUID string   `json:"uuid"`
	Argv []string `json:"argv"`
}

const poll = 10 * time.Millisecond

// Ensure returns the machine running: it finds the one that runs, or starts it. The
// lock that QEMU holds on its pid file keeps a second one from starting, whatever
// was interrupted when. ctx bounds the call, not the machine's life.
func (m Machine) Ensure(ctx context.Context, uris map[string]string) (*Running, error) {
	m = m.withDefaults()
	ctx, cancel := context.WithTimeout(ctx, m.Ready)
	defer cancel()
	r, err := m.Attach(ctx)
	if errors.Is(err, ErrNotRunning) {
		r, err = m.start(ctx, uris)
	}
	if err != nil {
		return nil, fmt.Errorf("start machine %s: %w", m.Name, err)
	}
	return r, nil
}

// Attach finds the machine if it runs (else ErrNotRunning) and waits until its
// guest does. A process with another name or UUID at its sockets is ErrWrongMachine.
func (m Machine) Attach(ctx context.Context) (*Running, error) {
	if err := m.validate(); err != nil {
		return nil, err
	}
	pid, pidfd, err := owner(m.pidFile())
	if err != nil {
		return nil, err
	}
	id, err := m.identity()
	if err == nil {
		err = m.awaitRunning(ctx, id.UUID, pidfd)
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(pidfd))
	}
	return m.running(id.UUID, pid, pidfd, true), nil
}

func (m Machine) running(uuid string, pid, pidfd int, adopted bool) *Running {
	return &Running{Name: m.Name, UUID: uuid, PID: pid, QMP: m.qmp(), QMP2: m.qmp2(), Serial: m.serial(), Log: m.logFile(), Adopted: adopted, pidfd: pidfd}
}

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

func locked(f *os.File) (bool, error) {
	l := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &l); err != nil {
		return false, fmt.Errorf("ask for the lock of %s: %w", f.Name(), err)
	}
	return l.Type != unix.F_UNLCK, nil
}

// identity is the machine's, the one given before if it had one.
func (m Machine) identity() (machineFile, error) {
	b, err := os.ReadFile(filepath.Join(m.Dir, "machine.json"))
	if err != nil {
		return machineFile{}, err
	}
	var id machineFile
	if err := json.Unmarshal(b, &id); err != nil {
		return id, fmt.Errorf("read machine.json: %w", err)
	}
	if id.Name != m.Name {
		return id, fmt.Errorf("%w: %s in %s", ErrWrongMachine, id.Name, m.Dir)
	}
	return id, nil
}

// prepare makes directory and identity.
func (m Machine) prepare(uris map[string]string) (machineFile, error) {
	if err := os.MkdirAll(m.Dir, 0o700); err != nil {
		return machineFile{}, err
	}
	id, err := m.identity()
	if errors.Is(err, fs.ErrNotExist) {
		id, err = machineFile{Name: m.Name, UUID: newUUID()}, nil
	}
	if err != nil {
		return id, err
	}
	for i, a := range m.Args {
		if a == "-uuid" && i+1 < len(m.Args) {
			id.UUID = m.Args[i+1]
		}
	}
	if id.Argv, err = m.Argv(uris, id.UUID); err != nil {
		return id, err
	}
	b, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return id, err
	}
	return id, writeFile(filepath.Join(m.Dir, "machine.json"), append(b, '\n'))
}

// newUUID is RFC 9562, version 4.
func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails on Linux; the runtime aborts first
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// start runs QEMU in a session of its own and waits until its guest runs.
func (m Machine) start(ctx context.Context, uris map[string]string) (*Running, error) {
	id, err := m.prepare(uris)
	if err != nil {
		return nil, err
	}
	log, err := os.OpenFile(m.logFile(), os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(id.Argv[0], id.Argv[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = m.Dir, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	pidfd, err := unix.PidfdOpen(cmd.Process.Pid, 0) // its number is not given away before Wait
	go func() { _ = cmd.Wait() }()                   // its end is seen through the pidfd
	if err == nil {
		err = m.awaitRunning(ctx, id.UUID, pidfd)
	}
	if err == nil {
		return m.running(id.UUID, cmd.Process.Pid, pidfd, false), nil
	}
	if errors.Is(err, ErrExited) {
		if r, aerr := m.Attach(ctx); aerr == nil { // another one had the lock: it is the machine
			return r, errors.Join(nil, unix.Close(pidfd))
		}
		err = fmt.Errorf("%w: %s", err, tail(m.logFile()))
	} else if pidfd >= 0 {
		// One that does not come to run is not left behind: the next try starts anew.
		err = errors.Join(err, unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0), waitGone(context.WithoutCancel(ctx), pidfd))
	}
	if pidfd >= 0 {
		unix.Close(pidfd)
	}
	return nil, err
}

// awaitRunning returns once QMP answers with our UUID and the guest runs.
func (m Machine) awaitRunning(ctx context.Context, uuid string, pidfd int) error {
	tick := time.NewTicker(poll)
	defer tick.Stop()
	last := errors.New("nobody asked")
	for {
		gone, err := isGone(pidfd)
		if err != nil {
			return err
		}
		if gone {
			return ErrExited
		}
		if last = m.ask(ctx, uuid); last == nil || errors.Is(last, ErrWrongMachine) || errors.Is(last, ErrMachine) {
			return last
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("wait until it runs: %w (%w)", context.Cause(ctx), last)
		}
	}
}

// waitingStates are those in which QEMU will come to run by itself.
var waitingStates = map[string]bool{"prelaunch": true, "inmigrate": true, "restore-vm": true}

func (m Machine) ask(ctx context.Context, uuid string) error {
	c, err := qmp.Dial(ctx, m.qmp(), qmp.Options{})
	if err != nil {
		return err
	}
	defer c.Close()
	var is struct {
		UUID   string `json:"UUID"`
		Status string `json:"status"`
	}
	if err := c.Execute(ctx, "query-uuid", nil, &is); err != nil {
		return err
	}
	if !strings.EqualFold(is.UUID, uuid) {
		return fmt.Errorf("%w: UUID %s, not %s", ErrWrongMachine, is.UUID, uuid)
	}
	if err := c.Execute(ctx, "query-status", nil, &is); err != nil {
		return err
	}
	switch {
	case is.Status == "running":
		return nil
	case waitingStates[is.Status]:
		return fmt.Errorf("its state is %s", is.Status)
	}
	return fmt.Errorf("%w: its state is %s", ErrMachine, is.Status)
}

// Wait returns nil once the machine's process is gone.
func (r *Running) Wait(ctx context.Context) error { return waitGone(ctx, r.pidfd) }

// Kill ends the machine at once, as a power cut would, and waits until it is gone.
func (r *Running) Kill(ctx context.Context) error {
	if err := unix.PidfdSendSignal(r.pidfd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill machine %s: %w", r.Name, err)
	}
	return r.Wait(ctx)
}

// Close frees the handle; the machine goes on.
func (r *Running) Close() error { return unix.Close(r.pidfd) }

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

// tail is the end of a log, for an error.
func tail(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(b[max(0, len(b)-2048):]))
}

// writeFile replaces a file durably.
func writeFile(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(filepath.Dir(path))
}
