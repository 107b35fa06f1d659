package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/novacron/afterimage/site"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

const defaultConfig = "/etc/afterimage/afterimage.yml"

// run is the whole program: arguments in, exit code out.
func run(ctx context.Context, w *world, args []string) int {
	app := newApp(w)
	// -o is needed to print a fault in the arguments themselves.
	p := &printer{world: w, json: wantsJSON(args)}
	if len(args) > 0 && args[0] == "help" {
		args = append(args[1:], "--help")
	}
	in, err := arrange(app, args)
	if err == nil {
		err = app.RunContext(ctx, append([]string{"afterimage"}, in.args...))
	}
	if err == nil {
		return fault.ExitOK
	}
	e := asFault(ctx, err)
	p.fail(e)
	return e.Exit()
}

// asFault gives err a code; what the flag library complains about is usage.
func asFault(ctx context.Context, err error) *fault.Error {
	var e *fault.Error
	var problems config.Problems
	switch {
	case errors.As(err, &e):
		return e
	case errors.As(err, &problems):
		return problems.Fault()
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		return &fault.Error{Code: fault.Interrupted, Why: "a signal came", Err: err}
	}
	var u *usageError
	if errors.As(err, &u) {
		return usage("%v", u.error)
	}
	if text, ok := strings.CutPrefix(err.Error(), "Required flag"); ok { // the library's error has no exported type
		if parts := strings.Split(text, `"`); len(parts) == 3 {
			return usage("--%s must be given", strings.ReplaceAll(parts[1], ", ", " and --"))
		}
		return usage("required flag%s", text)
	}
	return fault.Of(err)
}

type usageError struct{ error }

func (u *usageError) Unwrap() error { return u.error }

func wantsJSON(args []string) bool {
	for i, a := range args {
		switch a {
		case "--":
			return false
		case "-o=json", "--output=json", "--o=json", "-output=json":
			return true
		case "-o", "--output", "--o", "-output":
			return i+1 < len(args) && args[i+1] == "json"
		}
	}
	return false
}

// newApp is the command tree.
func newApp(w *world) *cli.App {
	app := &cli.App{
		Name:            "afterimage",
		Usage:           "every write of a virtual disk, kept, shipped, and brought back as of any moment",
		UsageText:       "afterimage NOUN VERB NAME [flags]",
		Description:     "See it work on this machine, without root or set-up:\n   afterimage demo\n\nEvery noun and verb has --help with an example:\n   afterimage failover unplanned --help",
		HideHelpCommand: true, HideVersion: true,
		Writer: w.stdout, ErrWriter: w.stderr, Reader: w.stdin,
		ExitErrHandler: func(*cli.Context, error) {},
		OnUsageError:   func(_ *cli.Context, err error, _ bool) error { return &usageError{err} },
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "config", Aliases: []string{"c"}, EnvVars: []string{"AFTERIMAGE_CONFIG"}, Value: defaultConfig, Usage: "`FILE` that sets up the site"},
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Value: "table", Usage: "`FORMAT` of data and errors: table or json"},
			&cli.BoolFlag{Name: "version", Usage: "print which release this is"},
			&cli.BoolFlag{Name: "no-color", Usage: "no colours; NO_COLOR in the environment does the same"},
		},
		Before: func(c *cli.Context) error {
			if o := c.String("output"); o != "table" && o != "json" {
				return usage("output %q is neither table nor json", o)
			}
			if c.Bool("version") && c.NArg() > 0 {
				return usage("--version stands alone")
			}
			return nil
		},
		Action: func(c *cli.Context) error {
			if c.Bool("version") {
				return w.printer(c).data(map[string]string{"version": site.Version()}, func() string { return "afterimage " + site.Version() + "\n" })
			}
			return w.incomplete(c)
		},
	}
	app.Commands = []*cli.Command{
		w.demoCommand(), w.daemonCommand(), w.configCommand(), w.statusCommand(), w.groupCommand(), w.peerCommand(),
		w.pointCommand(), w.viewCommand(), w.failoverCommand(), w.runbookCommand(), w.reportCommand(), w.verifyCommand(), w.doctorCommand(), w.benchCommand(), w.explainCommand(), w.watchdogCommand(), w.packDogCommand(),
	}
	sayNoDefaults(app.Flags)
	walk(app.Commands, nil, func(path []string, c *cli.Command) {
		if len(path) > 1 { // the library puts its name before the others
			c.HelpName = "afterimage " + strings.Join(path, " ")
		}
		c.HideHelpCommand = true
		c.OnUsageError = app.OnUsageError
		sayNoDefaults(c.Flags)
		if c.Action == nil {
			c.Action = func(c *cli.Context) error { return w.incomplete(c) }
		}
	})
	return app
}

// sayNoDefaults keeps "(default: false)" out of the help.
func sayNoDefaults(flags []cli.Flag) {
	for _, f := range flags {
		if b, ok := f.(*cli.BoolFlag); ok {
			b.DisableDefaultText = true
		}
	}
}

// incomplete answers a noun without its verb: help, on stderr, and exit 2.
func (w *world) incomplete(c *cli.Context) error {
	if !w.printer(c).json {
		was := c.App.Writer
		c.App.Writer = w.stderr
		defer func() { c.App.Writer = was }()
		var err error
		if c.Command != nil && c.Command.Name != "" && c.Command.Name != c.App.Name {
			err = cli.ShowSubcommandHelp(c)
		} else {
			err = cli.ShowAppHelp(c)
		}
		if err != nil {
			return err
		}
	}
	if c.Command == nil || c.Command.Name == "" || c.Command.Name == c.App.Name {
		return usage("a command is missing").Advise("Begin with afterimage demo, or afterimage status.")
	}
	return usage("a verb is missing").Advise("%s %s", c.Command.HelpName, strings.Join(verbsOf(c.Command), " | "))
}

func verbsOf(c *cli.Command) []string {
	var names []string
	for _, v := range c.Subcommands {
		names = append(names, v.Name)
	}
	return names
}

// noun is a command that only groups others.
func noun(name, usage string, verbs ...*cli.Command) *cli.Command {
	return &cli.Command{Name: name, Usage: usage, Description: "Example:\n   " + exampleOf(verbs), Subcommands: verbs}
}

func exampleOf(verbs []*cli.Command) string {
	_, ex, _ := strings.Cut(verbs[0].Description, "Example:\n   ")
	return strings.SplitN(ex, "\n", 2)[0]
}

// verb is a command that does something. args names its arguments, all of which
// must be given; names in brackets may be left out. about may be empty.
func verb(name, use, args, about string, examples []string, flags []cli.Flag, do func(*cli.Context) error) *cli.Command {
	if about != "" {
		about += "\n\n"
	}
	return &cli.Command{
		Name: name, Usage: use, ArgsUsage: args, Flags: flags,
		Description: about + "Example:\n   " + strings.Join(examples, "\n   "),
		Action: func(c *cli.Context) error {
			words := strings.Fields(args)
			least := 0
			for _, a := range words {
				if !strings.HasPrefix(a, "[") {
					least++
				}
			}
			switch n := c.NArg(); {
			case n < least:
				return usage("%s is missing", words[n]).Advise("%s %s; see --help.", c.Command.HelpName, args)
			case n > len(words):
				return usage("%q is one argument too many", c.Args().Get(len(words))).Advise("%s %s; see --help.", c.Command.HelpName, args)
			}
			return do(c)
		},
	}
}

// site is the site that the configuration describes.
func (w *world) site(c *cli.Context) (*config.Config, control.API, error) {
	cfg, err := config.Load(c.String("config"))
	if err != nil {
		return nil, nil, err
	}
	return cfg, w.reach(cfg), nil
}

// atFlag is --at.
func atFlag() cli.Flag {
	return &cli.StringFlag{Name: "at", Value: "latest",
		Usage: "`MOMENT`: latest, latest-app, -5m or -7d, an RFC 3339 time, name:X, before:X, #SEQ or #EPOCH.SEQ"}
}

func fprintf(w io.Writer, format string, args ...any) {
	// A closed pipe at the other end is the reader's choice; the exit code stands.
	_, _ = fmt.Fprintf(w, format, args...)
}
