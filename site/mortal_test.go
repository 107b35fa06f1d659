package site

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt/nbd"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
)

// mortalSite is the variable that names the configuration of a site which a process of
// this test's program is, instead of running tests.
const mortalSite = "AFTERIMAGE_TEST_SITE"

// liveAndDie runs a site until SIGTERM. While there is a file "armed" in its directory,
// holding a number and a word, it kills itself (kill -9) when it has passed that many
// durable steps since the word was another one, and took the file away.
func liveAndDie(path string) int {
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	c, err := config.Load(path)
	if err != nil {
		return fail(err)
	}
	var mu sync.Mutex
	var word string
	left := 0
	passed := func(step string) {
		text, err := os.ReadFile(filepath.Join(c.Data, "armed"))
		if err != nil {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if string(text) != word {
			word = string(text)
			n, _, _ := strings.Cut(word, " ")
			left, _ = strconv.Atoi(n)
		}
		fmt.Fprintf(os.Stderr, "passes %q, %d left\n", step, left)
		if left--; left == 0 && os.Remove(filepath.Join(c.Data, "armed")) == nil { // else it was disarmed in the meantime
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
	s, err := Open(c, Options{Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), Heartbeat: 20 * time.Millisecond, HeadPatience: 100 * time.Millisecond, passed: passed})
	if err != nil {
		return fail(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := s.Run(ctx); err != nil {
		return fail(err)
	}
	if err := s.Close(); err != nil {
		return fail(err)
	}
	return 0
}

// mortal is a site in a process of its own.
type mortal struct {
	t    *testing.T
	cfg  *config.Config
	path string
	api  *control.Client
	log  *lockedBuffer

	cmd    *exec.Cmd
	exited chan struct{}
	armed  bool
}

// mortal writes a site's configuration to a file; {dir} is the world's directory.
func (w *world) mortal(name, rest string) *mortal {
	w.t.Helper()
	m := &mortal{t: w.t, cfg: w.configure(name, rest), path: filepath.Join(w.dir, name+".yml"), log: &lockedBuffer{}}
	text := fmt.Sprintf("site: %s\ndata: %s\n%s", name, filepath.Join(w.dir, name), rest)
	if err := os.WriteFile(m.path, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
	m.api = control.NewClient(m.cfg.Control)
	w.t.Cleanup(func() {
		m.kill()
		if w.t.Failed() {
			text := m.log.String()
			w.t.Logf("the end of %s's log:\n%s", name, text[max(0, len(text)-24<<10):])
		}
	})
	return m
}

func (m *mortal) start() {
	m.t.Helper()
	m.cmd = exec.Command(os.Args[0])
	m.cmd.Env = append(os.Environ(), mortalSite+"="+m.path)
	m.cmd.Stdout, m.cmd.Stderr = m.log, m.log
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := m.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	cmd, exited := m.cmd, make(chan struct{})
	m.exited = exited
	go func() {
		defer close(exited)
		_ = cmd.Wait() // how it ended is in its log
	}()
}

func (m *mortal) dead() bool {
	select {
	case <-m.exited:
		return true
	default:
		return false
	}
}

func (m *mortal) kill() {
	if m.cmd != nil {
		_ = m.cmd.Process.Kill() // it may have died
		<-m.exited
	}
}

// stop is SIGTERM.
func (m *mortal) stop() {
	m.t.Helper()
	if err := m.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		m.t.Fatal(err)
	}
	await(m.t, m.cfg.Site+" ends", m.dead)
}

// arm has the process die at its n-th durable step from now on; 0: at none.
func (m *mortal) arm(n int, word string) {
	m.t.Helper()
	if m.armed = n > 0; !m.armed {
		return
	}
	path := m.trigger()
	if err := os.WriteFile(path+".new", fmt.Appendf(nil, "%d %s", n, word), 0o600); err != nil {
		m.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		m.t.Fatal(err)
	}
}

// trigger is the file that has the process die. Who takes it away, the process or who
// disarms it, has it his way.
func (m *mortal) trigger() string { return filepath.Join(m.cfg.Data, "armed") }

// disarm ends what arm began, and says whether the process died of it; later it does not.
func (m *mortal) disarm() (died bool) {
	m.t.Helper()
	if !m.armed {
		return false
	}
	m.armed = false
	err := os.Remove(m.trigger())
	if err == nil {
		return false
	}
	if !errors.Is(err, fs.ErrNotExist) {
		m.t.Fatal(err)
	}
	await(m.t, m.cfg.Site+" is dead", m.dead)
	return true
}

// line is the group as the site tells of it; none where it does not answer.
func (m *mortal) line() control.Group {
	ctx, cancel := context.WithTimeout(m.t.Context(), 10*time.Second)
	defer cancel()
	st, err := m.api.Status(ctx)
	if err != nil || len(st.Groups) != 1 {
		return control.Group{}
	}
	return st.Groups[0]
}

func (m *mortal) awaitRole(role recovery.Role, state string) {
	m.t.Helper()
	await(m.t, m.cfg.Site+" is "+string(role)+" and "+state, func() bool {
		g := m.line()
		return g.Role == string(role) && g.State == state
	})
}

// disk calls f with the group's disk, served by the site.
func (m *mortal) disk(f func(ctx context.Context, c *nbd.Client) error) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), time.Minute)
	defer cancel()
	c, err := nbd.Dial(ctx, "unix", m.cfg.NBD, nbd.DialOptions{Export: "web/root"})
	if err == nil {
		err = f(ctx, c)
		c.Close()
	}
	if err != nil {
		m.t.Fatalf("disk at %s: %v", m.cfg.Site, err)
	}
}

const mortalBlock = 4096

func (m *mortal) write(fill byte) {
	m.t.Helper()
	m.disk(func(ctx context.Context, c *nbd.Client) error {
		return c.WriteAt(ctx, bytes.Repeat([]byte{fill}, mortalBlock), int64(fill)*mortalBlock, true)
	})
}

// has holds the disk to what was written and kept.
func (m *mortal) has(written map[byte]bool) {
	m.t.Helper()
	m.disk(func(ctx context.Context, c *nbd.Client) error {
		for fill, kept := range written {
			p := make([]byte, mortalBlock)
			if err := c.ReadAt(ctx, p, int64(fill)*mortalBlock); err != nil {
				return err
			}
			want := bytes.Repeat([]byte{fill}, mortalBlock)
			if !kept {
				want = make([]byte, mortalBlock)
			}
			if !bytes.Equal(p, want) {
				m.t.Errorf("%s: write %#x, kept %v, reads % x", m.cfg.Site, fill, kept, p[:4])
			}
		}
		return nil
	})
}
