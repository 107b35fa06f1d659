package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
	_ "time/tzdata" // bwlimit names zones on machines that have none

	"golang.org/x/sys/unix"

	"github.com/novacron/afterimage/site"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
)

func main() { os.Exit(mainStatus()) }

// mainStatus is main for tests, which run the program inside their own process.
func mainStatus() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return run(ctx, system(), os.Args[1:])
}

// world is what a command touches of the world around it.
type world struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	stdinTTY       bool
	stdoutTTY      bool
	stderrTTY      bool
	columns        func() int // of the terminal at stdout, 0 if unknown; may be nil
	getenv         func(string) string
	now            func() time.Time
	zone           *time.Location
	// reach gives the site behind a configuration.
	reach func(*config.Config) control.API
}

func system() *world {
	return &world{
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr,
		stdinTTY: isTerminal(os.Stdin), stdoutTTY: isTerminal(os.Stdout), stderrTTY: isTerminal(os.Stderr),
		columns: func() int { return widthOf(os.Stdout) },
		getenv:  os.Getenv, now: time.Now, zone: time.Local,
		reach: func(c *config.Config) control.API { return site.Reach(c, site.Options{}) },
	}
}

func widthOf(f *os.File) int {
	w, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	return int(w.Col)
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
