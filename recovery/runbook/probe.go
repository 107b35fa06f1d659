package runbook

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// keptOutput is how much of a program's output, or of a page, is kept and looked at.
const keptOutput = 64 << 10

// attemptLimit bounds one asking of a check, so that it is asked again.
const attemptLimit = 10 * time.Second

// Probe asks once what a check asks, from this host. Its kind is Ping, TCP, HTTP or
// Program.
func Probe(ctx context.Context, s Step, env []string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, attemptLimit)
	defer cancel()
	switch s.Kind {
	case Ping:
		return Execute(ctx, []string{"ping", "-n", "-c", "1", "-W", "2", "--", s.Address}, env)
	case TCP:
		c, err := new(net.Dialer).DialContext(ctx, "tcp", s.Address)
		if err != nil {
			return "", err
		}
		return "connected to " + c.RemoteAddr().String(), c.Close()
	case HTTP:
		return get(ctx, s)
	case Program:
		return Execute(ctx, s.Argv, env)
	}
	return "", fmt.Errorf("a %s step cannot be asked from here", s.Kind)
}

func get(ctx context.Context, s Step) (string, error) {
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL, nil)
	if err != nil {
		return "", err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	r, err := client.Do(q)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	page, err := io.ReadAll(io.LimitReader(r.Body, keptOutput))
	switch {
	case err != nil:
		return "", err
	case r.StatusCode != s.Status:
		return string(page), fmt.Errorf("it answered %s, want %d", r.Status, s.Status)
	case !bytes.Contains(page, []byte(s.Contains)):
		return string(page), fmt.Errorf("its answer does not contain %q", s.Contains)
	}
	return r.Status, nil
}

// Execute runs a program, without a shell, in a process group of its own that is
// killed as a whole when ctx ends. Its output is kept up to a bound. env is all that
// it is told beside a PATH of the system's directories.
func Execute(ctx context.Context, argv, env []string) (string, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir, cmd.Env = "/", append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}, env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second // for what holds its output although it was killed
	var out kept
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	switch {
	case errors.Is(err, exec.ErrNotFound):
		err = fmt.Errorf("%s is not installed: %w", argv[0], err)
	case err != nil && ctx.Err() != nil:
		err = fmt.Errorf("it was killed: %w", context.Cause(ctx))
	}
	return strings.ToValidUTF8(out.buf.String(), "\uFFFD"), err
}

// kept is the first bytes of an output.
type kept struct{ buf bytes.Buffer }

func (k *kept) Write(p []byte) (int, error) {
	k.buf.Write(p[:min(len(p), keptOutput-k.buf.Len())])
	return len(p), nil
}
