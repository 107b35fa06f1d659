package main

import (
	"log/slog"
	"os"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/novacron/afterimage/site"
	"github.com/novacron/afterimage/site/config"
)

func (w *world) daemonCommand() *cli.Command {
	return verb("daemon", "run the site until SIGTERM or SIGINT", "",
		"One daemon per data directory: a second one refuses to start with exit 11. It logs to stderr; with -o json as JSON lines.",
		[]string{"afterimage daemon --config /etc/afterimage/afterimage.yml"},
		[]cli.Flag{&cli.StringFlag{Name: "log-level", Value: "info", Usage: "`LEVEL`: debug, info, warn or error"}}, w.daemon)
}

func (w *world) daemon(c *cli.Context) error {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.String("log-level"))); err != nil {
		return usage("log level %q is none of debug, info, warn, error", c.String("log-level"))
	}
	file, err := config.Remember(c.String("config"))
	if err != nil {
		return err
	}
	cfg, err := config.Load(c.String("config"))
	if err != nil {
		return err
	}
	opts := &slog.HandlerOptions{Level: level}
	var h slog.Handler = slog.NewTextHandler(w.stderr, opts)
	if w.printer(c).json {
		h = slog.NewJSONHandler(w.stderr, opts)
	}
	s, err := site.Open(cfg, site.Options{Log: slog.New(h), File: file})
	if err != nil {
		return err
	}
	err = s.Run(c.Context)
	if cerr := s.Close(); err == nil {
		err = cerr
	}
	return err
}

func (w *world) watchdogCommand() *cli.Command {
	cmd := verb(site.WatchdogCommand, "let a machine's taps go when the daemon is stuck", "",
		"The daemon starts it by itself; it is not for people.",
		[]string{"afterimage watchdog --help"},
		[]cli.Flag{
			&cli.IntFlag{Name: "pid", Required: true, Usage: "`PROCESS` that captures: the parent"},
			&cli.DurationFlag{Name: "stall", Value: time.Second, Usage: "`SPAN` without a beat after which it acts"},
		},
		func(c *cli.Context) error {
			return site.Watchdog(c.Context, c.Int("pid"), c.Duration("stall"), w.stdin, w.stderr)
		})
	cmd.Hidden = true
	return cmd
}

func (w *world) packDogCommand() *cli.Command {
	cmd := verb(site.PackCommand, "pause machines when the right to run them unattended ends", "",
		"The daemon starts it by itself; it is not for people.",
		[]string{"afterimage " + site.PackCommand + " --help"},
		[]cli.Flag{&cli.StringSliceFlag{Name: "mark", Required: true, Usage: "`TEXT` in base64 that stands on the command line of a machine's QEMU"}},
		func(c *cli.Context) error { return site.PackDog(os.Stdin, os.Stdout, c.StringSlice("mark")) })
	cmd.Hidden = true
	return cmd
}
