package recovery

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
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
	QMP     string `json:"qmp,omitempty"` // these three of a machine that no Host runs
	QMP2    string `json:"qmp2,omitempty"`
	Serial  string `json:"serial"`
	Log     string `json:"log,omitempty"`
	Adopted bool   `json:"adopted"` // it ran already
	// Besides are the other machines of its group.
	Besides []*Running `json:"besides,omitempty"`

	pidfd   int
	machine Machine
}

// Ensure returns the machine running: it finds the one that runs, or starts it. The
// lock that QEMU holds on its pid file keeps a second one from starting, whatever
// was interrupted when. ctx bounds the call, not the machine's life.
func (m Machine) Ensure(ctx context.Context, uris map[string]string) (*Running, error) {
	if len(m.Besides) > 0 {
		return m.ensureAll(ctx, uris)
	}
	m = m.withDefaults()
	ctx, cancel := context.WithTimeout(ctx, m.Ready)
	defer cancel()
	start := m.start
	if m.Host != nil {
		start = m.startHosted
	}
	r, err := m.Attach(ctx)
	if errors.Is(err, ErrNotRunning) {
		r, err = start(ctx, uris)
	}
	if err != nil {
		return nil, fmt.Errorf("start machine %s: %w", m.Name, err)
	}
	return r, nil
}

// Attach finds the machine if it runs (else ErrNotRunning) and waits until its
// guest does. A process with another name or UUID at its sockets is ErrWrongMachine.
func (m Machine) Attach(ctx context.Context) (*Running, error) {
	if len(m.Besides) > 0 {
		return m.attachAll(ctx)
	}
	if err := m.validate(); err != nil {
		return nil, err
	}
	if m.Host != nil {
		return m.attachHosted(ctx)
	}
	pid, pidfd, err := owner(m.pidFile())
	if err != nil {
		return nil, err
	}
	id, err := m.identity()
	if err == nil {
		err = m.awaitRunning(ctx, id.UUID, pid, pidfd)
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(pidfd))
	}
	return m.running(id.UUID, pid, pidfd, true), nil
}

func (m Machine) running(uuid string, pid, pidfd int, adopted bool) *Running {
	r := &Running{Name: m.Name, UUID: uuid, PID: pid, Serial: m.serial(), Adopted: adopted, pidfd: pidfd, machine: m}
	if m.Host == nil {
		r.QMP, r.QMP2, r.Log = m.qmp(), m.qmp2(), m.logFile()
	}
	return r
}

// start runs QEMU in a session of its own and waits until its guest runs.
func (m Machine) start(ctx context.Context, uris map[string]string) (*Running, error) {
	if err := sameDevices(uris); err != nil {
		return nil, err
	}
	id, err := m.prepare(uris)
	if err != nil {
		return nil, err
	}
	log, err := os.OpenFile(m.logFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	before, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(id.Argv[0], id.Argv[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = m.Dir, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	pidfd, err := unix.PidfdOpen(cmd.Process.Pid, 0) // its number is not given away before Wait
	go func() { _ = cmd.Wait() }()                   // its end is seen through the pidfd
	if err == nil {
		err = m.awaitRunning(ctx, id.UUID, cmd.Process.Pid, pidfd)
	}
	if err == nil {
		return m.running(id.UUID, cmd.Process.Pid, pidfd, false), nil
	}
	if errors.Is(err, ErrExited) {
		if r, aerr := m.Attach(ctx); aerr == nil { // another one had the lock: it is the machine
			return r, unix.Close(pidfd)
		}
		err = fmt.Errorf("%w: %s", err, tail(m.logFile(), before))
	} else if pidfd >= 0 {
		// One that does not come to run is not left behind: the next try starts anew.
		err = errors.Join(err, unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0), waitGone(context.WithoutCancel(ctx), pidfd))
	}
	if pidfd >= 0 {
		unix.Close(pidfd)
	}
	return nil, err
}

// awaitRunning returns once process pid holds the machine's lock, QMP answers with
// our UUID and the guest runs. The lock comes first: without it the answer may be of
// another process, that of a start which this one lost to.
func (m Machine) awaitRunning(ctx context.Context, uuid string, pid, pidfd int) error {
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for patience := firstPatience; ; {
		gone, err := isGone(pidfd)
		if err != nil {
			return err
		}
		if gone {
			return ErrExited
		}
		err = m.holds(pid)
		if err == nil {
			asking, cancel := context.WithTimeout(ctx, patience)
			err = m.ask(asking, uuid)
			if asking.Err() != nil {
				patience *= 2
			}
			cancel()
		}
		if err == nil || errors.Is(err, ErrWrongMachine) || errors.Is(err, ErrMachine) {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("wait until it runs: %w (%w)", context.Cause(ctx), err)
		}
	}
}

// firstPatience is how long a QEMU may take to answer before it is asked over another
// connection; each time it is given twice as long. A monitor's listening socket is, for a
// moment of QEMU 7.2's start, watched by two of its threads: a connection made then is
// taken by one of them, and the other, its main loop, waits in accept for the next one.
// Until somebody connects anew nothing in that QEMU goes on, its guest included.
const firstPatience = time.Second

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
func (r *Running) Wait(ctx context.Context) error {
	for _, x := range r.All() {
		if err := waitGone(ctx, x.pidfd); err != nil {
			return err
		}
	}
	return nil
}

// Kill ends the machine at once, as a power cut would, and waits until it is gone.
func (r *Running) Kill(ctx context.Context) error {
	var errs []error
	for _, x := range r.All() {
		if err := unix.PidfdSendSignal(x.pidfd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("kill machine %s: %w", x.Name, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return r.Wait(ctx)
}

// Close frees the handle; the machine goes on.
func (r *Running) Close() error {
	var errs []error
	for _, x := range r.All() {
		errs = append(errs, unix.Close(x.pidfd))
	}
	return errors.Join(errs...)
}

// tail is the end of what was logged from an offset on, for an error.
func tail(path string, from int64) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	b = b[min(from, int64(len(b))):]
	return strings.TrimSpace(string(b[max(0, len(b)-2048):]))
}
