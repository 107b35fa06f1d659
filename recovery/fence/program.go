package fence

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/novacron/afterimage/cbt"
)

// Program is a fence agent: a program that reads key=value lines on stdin, among them
// action=, and answers by its exit status. Source: ClusterLabs fence-agents,
// doc/FenceAgentAPI.md, "Agent Operations and Return Values".
type Program struct {
	Path    string
	Options []string // key=value lines beside action and plug
	// Secrets are lines like Options, in a file that is read when the program runs.
	Secrets string
	Plug    string // the machine's name there; empty: the device has one
	Control string // a plug that is on; none: only one that does not exist is asked for
	Host    bool   // the plug is the host's, not the machine's
	Timeout time.Duration
}

// Exit status of action=status.
const (
	exitOn  = 0
	exitOff = 2
)

const (
	defaultTimeout = 30 * time.Second
	keptOutput     = 8 << 10
)

var _ Switch = Program{}

// Name implements Channel.
func (p Program) Name() string {
	if p.Plug == "" {
		return "program " + p.Path
	}
	return fmt.Sprintf("program %s, plug %s", p.Path, p.Plug)
}

// OfHost tells that the plug is the host's.
func (p Program) OfHost() bool { return p.Host }

// Read implements Channel: action=status.
func (p Program) Read(ctx context.Context) (State, string, error) {
	said, code, err := p.run(ctx, "status", p.Plug)
	switch {
	case err != nil:
		return Unseen, said, err
	case code == exitOn:
		return SeenOn, said, nil
	case code == exitOff:
		return SeenOff, said, nil
	}
	return Unseen, said, fmt.Errorf("%w: status ended with %d: %s", ErrUnreachable, code, said)
}

// SwitchOff implements Switch: action=off. One that fails may not have reached its
// device; it refused where it can tell the plug's state.
func (p Program) SwitchOff(ctx context.Context) (string, error) {
	said, code, err := p.run(ctx, "off", p.Plug)
	switch {
	case err != nil:
		return said, err
	case code != 0:
		cause := ErrUnreachable
		if state, _, err := p.Read(ctx); err == nil && state != Unseen {
			cause = ErrRefused
		}
		return said, fmt.Errorf("%w: off ended with %d: %s", cause, code, said)
	}
	return said, nil
}

// Challenge implements Switch. A program that knows the state of a plug which was
// named by a roll of dice, or calls the control plug anything but on, lies. A device
// with one plug has no name to ask for: it needs a second channel all the more.
func (p Program) Challenge(ctx context.Context) (string, error) {
	if p.Plug != "" {
		bogus := "none-" + cbt.NewID().Short()
		said, code, err := p.run(ctx, "status", bogus)
		if err != nil {
			return said, err
		}
		if code == exitOn || code == exitOff {
			return said, fmt.Errorf("%w: it knows the state of plug %s, which does not exist", ErrLiar, bogus)
		}
	}
	if p.Control == "" {
		return "", nil
	}
	said, code, err := p.run(ctx, "status", p.Control)
	switch {
	case err != nil:
		return said, err
	case code == exitOff:
		return said, fmt.Errorf("%w: it calls control plug %s off", ErrLiar, p.Control)
	case code != exitOn:
		return said, fmt.Errorf("%w: status of control plug %s ended with %d", ErrUnreachable, p.Control, code)
	}
	return said, nil
}

// Actions asks the program what it can do: action=metadata.
func (p Program) Actions(ctx context.Context) ([]string, error) {
	said, code, err := p.run(ctx, "metadata", "")
	if err != nil || code != 0 {
		return nil, fmt.Errorf("ask for metadata: %w", errors.Join(err, fmt.Errorf("it ended with %d", code)))
	}
	var m struct {
		Actions []struct {
			Name string `xml:"name,attr"`
		} `xml:"actions>action"`
	}
	if err := xml.Unmarshal([]byte(said), &m); err != nil {
		return nil, fmt.Errorf("read metadata: %w", err)
	}
	var out []string
	for _, a := range m.Actions {
		out = append(out, a.Name)
	}
	return out, nil
}

// run gives the program an action. It runs without a shell and in a process group
// that is killed as a whole at the timeout: an assumption is not an answer.
func (p Program) run(ctx context.Context, action, plug string) (said string, code int, err error) {
	limit := p.Timeout
	if limit <= 0 {
		limit = defaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	lines := append([]string{"action=" + action}, p.Options...)
	if plug != "" {
		lines = append(lines, "plug="+plug, "port="+plug)
	}
	if p.Secrets != "" {
		b, err := os.ReadFile(p.Secrets)
		if err != nil {
			return "", 0, fmt.Errorf("%w: read secrets: %w", ErrUnreachable, err)
		}
		lines = append(lines, strings.TrimRight(string(b), "\n"))
	}
	cmd := exec.CommandContext(ctx, p.Path)
	cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second // for what holds its output although it was killed
	cmd.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
	out := &kept{limit: keptOutput}
	if action == "metadata" {
		out.limit = 1 << 20
	}
	cmd.Stdout, cmd.Stderr = out, out
	err = cmd.Run()
	said = strings.TrimSpace(strings.ToValidUTF8(out.String(), "\uFFFD"))
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return said, 0, fmt.Errorf("%w: action %s did not end within %v", ErrUnreachable, action, limit)
	case errors.As(err, &exit) && exit.Exited():
		return said, exit.ExitCode(), nil
	case err != nil && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, exec.ErrWaitDelay):
		return said, 0, fmt.Errorf("%w: run %s: %w", ErrUnreachable, p.Path, err)
	}
	return said, cmd.ProcessState.ExitCode(), nil
}

// CheckOption judges one line of Options.
func CheckOption(line string) error {
	key, _, ok := strings.Cut(line, "=")
	switch {
	case !ok || key == "" || strings.ContainsAny(key, " \t") || strings.ContainsAny(line, "\n\r\x00"):
		return fmt.Errorf("%q is not key=value on one line", line)
	case slices.Contains([]string{"action", "option", "plug", "port"}, key):
		return fmt.Errorf("%s= is given by us", key)
	}
	return nil
}

// kept is the first bytes of an output.
type kept struct {
	bytes.Buffer
	limit int
}

func (k *kept) Write(b []byte) (int, error) {
	k.Buffer.Write(b[:min(len(b), k.limit-k.Len())])
	return len(b), nil
}
