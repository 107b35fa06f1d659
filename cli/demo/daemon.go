package demo

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/novacron/afterimage/site"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
)

// daemon is one site: a directory and a process.
type daemon struct {
	name, dir  string
	executable string
	api        *control.Client
	cmd        *exec.Cmd
	exited     chan struct{}
	log        *os.File
}

func newDaemon(executable, dir, name string) (*daemon, error) {
	d := &daemon{name: name, dir: filepath.Join(dir, name), executable: executable}
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make site %s: %w", name, err)
	}
	d.api = control.NewClient(d.path("control.sock"))
	return d, nil
}

func (d *daemon) path(name string) string { return filepath.Join(d.dir, name) }

// pin draws the site's key.
func (d *daemon) pin() (string, error) {
	return site.Pin(&config.Config{Key: d.path("site.key")})
}

// start runs the daemon with a configuration and waits until it answers.
func (d *daemon) start(ctx context.Context, text string) error {
	file := d.path("afterimage.yml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return fmt.Errorf("configure site %s: %w", d.name, err)
	}
	if _, err := config.Load(file); err != nil {
		return fmt.Errorf("configure site %s: %w", d.name, err)
	}
	log, err := os.Create(d.path("daemon.log"))
	if err != nil {
		return fmt.Errorf("start site %s: %w", d.name, err)
	}
	d.log = log
	d.cmd = exec.Command(d.executable, "daemon", "--config", file, "--log-level", "debug")
	d.cmd.Stderr, d.cmd.Stdout = log, log
	if err := d.cmd.Start(); err != nil {
		return fmt.Errorf("start site %s: %w", d.name, err)
	}
	d.exited = make(chan struct{})
	go func() {
		defer close(d.exited)
		_ = d.cmd.Wait() // how it ended is in its log
	}()
	return d.until(ctx, "the daemon answers", 20*time.Second, func(ctx context.Context) (bool, error) {
		_, err := d.api.Status(ctx)
		return err == nil, nil
	})
}

// until asks again and again until ok, for at most limit.
func (d *daemon) until(ctx context.Context, what string, limit time.Duration, ok func(context.Context) (bool, error)) error {
	ctx, stop := context.WithTimeout(ctx, limit)
	defer stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		done, err := ok(ctx)
		if done || (err != nil && ctx.Err() == nil) {
			return err
		}
		select {
		case <-tick.C:
		case <-d.exited:
			return fmt.Errorf("wait until %s at site %s: its daemon ended: see %s", what, d.name, d.path("daemon.log"))
		case <-ctx.Done():
			return fmt.Errorf("wait until %s at site %s: not within %v", what, d.name, limit)
		}
	}
}

// kill ends the daemon as a power cut would, as far as the process goes.
func (d *daemon) kill() error {
	if err := d.cmd.Process.Signal(syscall.SIGKILL); err != nil {
		return fmt.Errorf("kill site %s: %w", d.name, err)
	}
	<-d.exited
	return nil
}

// stop ends the daemon in order, if it still runs.
func (d *daemon) stop() error {
	if d.cmd == nil {
		return nil
	}
	select {
	case <-d.exited:
	default:
		if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("stop site %s: %w", d.name, err)
		}
		t := time.NewTimer(15 * time.Second)
		defer t.Stop()
		select {
		case <-d.exited:
		case <-t.C:
			return errors.Join(fmt.Errorf("stop site %s: it did not end within 15 s", d.name), d.kill(), d.log.Close())
		}
	}
	return d.log.Close()
}

// freeUDP is a loopback address that nobody uses at the moment.
func freeUDP() (string, error) {
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	addr := c.LocalAddr().String()
	return addr, c.Close()
}
