package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt/nbd"
	"github.com/novacron/afterimage/site"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/testbed/scale"
	"github.com/novacron/afterimage/testbed/tunnel"
)

// patience is for what should take no more than a second or two.
const patience = time.Minute

// program is afterimage, built once.
var program string

func TestMain(m *testing.M) { os.Exit(build(m)) }

func build(m *testing.M) int {
	dir, err := os.MkdirTemp("", "ai-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "afterimage")
	args := []string{"build", "-o", program}
	if scale.Race {
		args = append(args, "-race")              // a daemon that raced exits with another code than 0
		os.Setenv("GORACE", "atexit_sleep_ms=10") // else every command takes a second longer
	}
	cmd := exec.Command("go", append(args, "github.com/novacron/afterimage/cli/afterimage")...)
	if out, err := cmd.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build afterimage: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// daemon is one site. Its methods are for one goroutine, but api and cli are for any.
type daemon struct {
	t      *testing.T
	name   string
	dir    string
	config string
	api    *control.Client
	space  *tunnel.Space // where the process runs; nil: here
	cmd    *exec.Cmd
	exited chan struct{}
	lives  int
}

// newDaemon makes the directory and the key; start starts it. What still runs when
// the test ends is killed, and when the test has failed its log's end is shown.
func newDaemon(t *testing.T, name string) *daemon {
	t.Helper()
	dir, err := os.MkdirTemp("", "ai") // its sockets' paths must be short
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{t: t, name: name, dir: dir, config: filepath.Join(dir, "afterimage.yml")}
	d.api = control.NewClient(d.path("control.sock"))
	t.Cleanup(func() {
		if d.running() {
			d.kill()
		}
		if t.Failed() {
			d.showLog()
		}
		os.RemoveAll(dir)
	})
	return d
}

func (d *daemon) path(name string) string { return filepath.Join(d.dir, name) }

func (d *daemon) showLog() {
	text, err := os.ReadFile(d.path("daemon.log"))
	if err != nil {
		return
	}
	const most = 12 << 10
	if len(text) > most {
		text = text[len(text)-most:]
	}
	d.t.Logf("the end of %s's log:\n%s", d.name, text)
}

// pin draws the site's key.
func (d *daemon) pin() string {
	d.t.Helper()
	pin, err := site.Pin(&config.Config{Key: d.path("site.key")})
	if err != nil {
		d.t.Fatal(err)
	}
	return pin
}

func (d *daemon) configure(text string) {
	d.t.Helper()
	if err := os.WriteFile(d.config, []byte(text), 0o600); err != nil {
		d.t.Fatal(err)
	}
}

func (d *daemon) running() bool {
	if d.exited == nil {
		return false
	}
	select {
	case <-d.exited:
		return false
	default:
		return true
	}
}

// launch starts the process and waits for nothing.
func (d *daemon) launch() {
	d.t.Helper()
	log, err := os.OpenFile(d.path("daemon.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	defer log.Close()
	d.lives++
	fmt.Fprintf(log, "=== life %d\n", d.lives)
	cmd := exec.Command(program, "daemon", "--config", d.config, "--log-level", "debug")
	cmd.Stdout, cmd.Stderr = log, log
	start := (*exec.Cmd).Start
	if d.space != nil {
		start = d.space.Start
	}
	if err := start(cmd); err != nil {
		d.t.Fatal(err)
	}
	exited := make(chan struct{})
	d.cmd, d.exited = cmd, exited
	go func() {
		defer close(exited)
		_ = cmd.Wait() // how it ended is in its log
	}()
}

// start starts the process and waits until its group is open.
func (d *daemon) start() {
	d.t.Helper()
	d.launch()
	d.until("the group is open", func(ctx context.Context) bool {
		_, err := d.api.Points(ctx, control.PointsQuery{Group: "g"})
		return err == nil
	})
}

// startSynced starts the process and waits until every write is a point.
func (d *daemon) startSynced() {
	d.t.Helper()
	d.start()
	d.awaitState(control.StateSynced)
}

func (d *daemon) awaitState(state string) {
	d.t.Helper()
	d.until("the group is "+state, func(ctx context.Context) bool {
		st, err := d.api.Status(ctx)
		return err == nil && len(st.Groups) == 1 && st.Groups[0].State == state
	})
}

// until asks ok again and again, for as long as patience.
func (d *daemon) until(what string, ok func(context.Context) bool) {
	d.t.Helper()
	d.within(patience, what, ok)
}

// within is until for what takes its time.
func (d *daemon) within(patience time.Duration, what string, ok func(context.Context) bool) {
	d.t.Helper()
	ctx, stop := context.WithTimeout(d.t.Context(), patience)
	defer stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok(ctx) {
		select {
		case <-tick.C:
		case <-d.exited:
			d.t.Fatalf("wait until %s at %s: its daemon ended", what, d.name)
		case <-ctx.Done():
			d.t.Fatalf("wait until %s at %s: not within %v", what, d.name, patience)
		}
	}
}

func (d *daemon) signal(s syscall.Signal) {
	d.t.Helper()
	if err := d.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		d.t.Fatalf("signal %s: %v", d.name, err)
	}
}

// kill is kill -9.
func (d *daemon) kill() {
	d.t.Helper()
	d.signal(syscall.SIGKILL)
	<-d.exited
}

// stop is SIGTERM, and the exit code has to be 0.
func (d *daemon) stop() {
	d.t.Helper()
	d.signal(syscall.SIGTERM)
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case <-d.exited:
	case <-late.C:
		d.t.Fatalf("%s did not end within %v of SIGTERM", d.name, patience)
	}
	if code := d.cmd.ProcessState.ExitCode(); code != 0 {
		d.t.Errorf("%s ended with %d after SIGTERM", d.name, code)
	}
}

// cli runs a command of the site and decodes the JSON that it prints.
func (d *daemon) cli(into any, args ...string) error {
	var out, said bytes.Buffer
	ctx, stop := context.WithTimeout(d.t.Context(), patience)
	defer stop()
	cmd := exec.CommandContext(ctx, program, append([]string{"--config", d.config, "-o", "json"}, args...)...)
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("afterimage %q at %s: %w\n%s%s", args, d.name, err, said.Bytes(), out.Bytes())
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(out.Bytes(), into)
}

// group is the one group of the site.
func (d *daemon) group() control.GroupDetail {
	d.t.Helper()
	g, err := d.api.Group(d.t.Context(), "g")
	if err != nil {
		d.t.Fatal(err)
	}
	return g
}

// connect opens a served volume.
func (d *daemon) connect(volume string) *nbd.Client {
	d.t.Helper()
	c, err := nbd.Dial(d.t.Context(), "unix", d.path("nbd.sock"), nbd.DialOptions{Export: "g/" + volume})
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { c.Close() })
	return c
}

// view reads all volumes at a moment, or those named, by name, from a served view.
func (d *daemon) view(at string, only ...string) (map[string][]byte, control.Point, error) {
	return d.beginnings(at, math.MaxInt64, only...)
}

// beginnings is view of the first bytes of each volume, at most so many.
func (d *daemon) beginnings(at string, most int64, only ...string) (map[string][]byte, control.Point, error) {
	ctx, stop := context.WithTimeout(d.t.Context(), patience)
	defer stop()
	views, served := make(chan control.View, 1), make(chan error, 1)
	go func() {
		served <- d.api.Serve(ctx, control.ServeRequest{Group: "g", At: at, Lease: true}, func(v control.View) { views <- v })
	}()
	var v control.View
	select {
	case v = <-views:
	case err := <-served:
		return nil, control.Point{}, fmt.Errorf("serve %s at %s: %w", at, d.name, err)
	}
	images := map[string][]byte{}
	var err error
	for _, e := range v.Exports {
		if len(only) > 0 && !slices.Contains(only, e.Volume) {
			continue
		}
		if images[e.Volume], err = readExport(ctx, e.URI, most); err != nil {
			err = fmt.Errorf("read %s of %s at %s: %w", e.Volume, at, d.name, err)
			break
		}
	}
	stop()
	<-served // it says that it was interrupted
	return images, v.Point, err
}

// readExport reads the beginning, or all, of nbd+unix:///EXPORT?socket=PATH.
func readExport(ctx context.Context, uri string, most int64) ([]byte, error) {
	u, err := url.Parse(uri)
	if err != nil {
		return nil, err
	}
	c, err := nbd.Dial(ctx, "unix", u.Query().Get("socket"), nbd.DialOptions{Export: u.Path[1:]})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return readFirst(ctx, c, most)
}

func readAll(ctx context.Context, c *nbd.Client) ([]byte, error) {
	return readFirst(ctx, c, math.MaxInt64)
}

func readFirst(ctx context.Context, c *nbd.Client, most int64) ([]byte, error) {
	p := make([]byte, min(c.Info().Size, most))
	for at := 0; at < len(p); at += 1 << 20 {
		if err := c.ReadAt(ctx, p[at:min(at+1<<20, len(p))], int64(at)); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// restore writes all volumes of a moment to raw files by the command line, and
// reads those.
func (d *daemon) restore(at string) (map[string][]byte, error) {
	dir, err := os.MkdirTemp(d.dir, "restored")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	var r control.Restored
	if err := d.cli(&r, "view", "restore", "g", "--at", at, "--format", control.FormatRaw, "--to", filepath.Join(dir, "to")); err != nil {
		return nil, err
	}
	images := map[string][]byte{}
	for _, f := range r.Files {
		if images[f.Volume], err = os.ReadFile(f.Path); err != nil {
			return nil, err
		}
	}
	return images, nil
}
