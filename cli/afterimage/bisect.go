package main

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

	"github.com/urfave/cli/v2"

	"github.com/novacron/afterimage/site"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

func (w *world) bisectVerb() *cli.Command {
	return verb("bisect", "find the record that did it: by halves, with a program that tells good points from bad ones", "NAME",
		"Each point that is tried is served as NBD exports, read-only, while the program runs here, without a shell. It finds in its environment AFTERIMAGE_POINT, AFTERIMAGE_POINT_TIME, AFTERIMAGE_GROUP, AFTERIMAGE_NBD_SOCKET, AFTERIMAGE_URI (of --volume, or of the only volume) and AFTERIMAGE_URI_VOLUME for each, in capitals. Exit 0 is good, 1 to 124 bad, 125 or a time-out cannot tell; anything else stops the search. What was tried is kept: the same command goes on after an interruption. Where history was thinned the answer is the interval between two points that are left, and says so. Changes nothing. Works without the daemon.",
		[]string{"afterimage point bisect web --good name:before-patch --bad latest --check /usr/local/bin/fsck-root", "afterimage point bisect web --good '#2.900' --bad '#3.1200' --volume root --check 'nbdsh-check.py quick' --timeout 2m --pin-as clean"},
		[]cli.Flag{
			&cli.StringFlag{Name: "good", Required: true, Usage: "`MOMENT` at which all was well: -7d, an RFC 3339 time, name:X, #SEQ or #EPOCH.SEQ"},
			&cli.StringFlag{Name: "bad", Value: "latest", Usage: "`MOMENT` after it at which it was not"},
			&cli.StringFlag{Name: "check", Required: true, Usage: "`PROGRAM` and its arguments, parted by blanks"},
			&cli.StringFlag{Name: "volume", Usage: "`NAME` of the volume that AFTERIMAGE_URI leads to"},
			spanFlag("timeout", "10m", "`SPAN` that the program may take for a point"),
			&cli.BoolFlag{Name: "scratch", Usage: "writable exports; what is written is forgotten with the try"},
			&cli.BoolFlag{Name: "restart", Usage: "forget what was tried before"},
			&cli.StringFlag{Name: "pin-as", Usage: "`NAME`: pin the last good point as NAME, and the first bad one as NAME-bad"},
		}, w.pointBisect)
}

// checker runs the program of a bisection.
type checker struct {
	argv    []string
	volume  string
	limit   time.Duration
	scratch bool
	output  io.Writer // of the program; nil: nobody sees it
}

func (w *world) pointBisect(c *cli.Context) error {
	for _, name := range []string{"good", "bad"} {
		if err := site.CheckAt(c.String(name)); err != nil {
			return err
		}
	}
	limit, err := spanOf(c, "timeout")
	if err != nil {
		return err
	}
	pins := c.String("pin-as")
	if pins != "" {
		if err := site.CheckMarkName(pins + firstBad); err != nil { // the longer of the two
			return err
		}
	}
	x := checker{argv: strings.Fields(c.String("check")), volume: c.String("volume"), limit: limit, scratch: c.Bool("scratch")}
	if len(x.argv) == 0 {
		return usage("--check names no program")
	}
	_, api, err := w.site(c)
	if err != nil {
		return err
	}
	p := w.printer(c)
	if !p.json { // else nothing but JSON may be said
		x.output = w.stderr
	}
	q := control.BisectRequest{Group: c.Args().First(), Good: c.String("good"), Bad: c.String("bad"), Check: strings.Join(x.argv, " "), Volume: x.volume, Restart: c.Bool("restart")}
	b, err := api.Bisect(c.Context, q)
	if err != nil {
		return err
	}
	p.resolved(b.Group, q.Good, b.Good)
	p.resolved(b.Group, q.Bad, b.Bad)
	if b.Resumed {
		p.note("goes on after %s", plural(uint64(len(b.Tries)), "trial"))
	}
	q.Good, q.Bad, q.Restart = seqName(b.Good), seqName(b.Bad), false // -5m means another moment by now
	for b.Next != nil {
		p.note("%s between, %s at most: %s, %s", plural(b.Between, "point"), plural(uint64(b.Left), "trial"), seqName(*b.Next), p.when(b.Next.Time))
		t, err := x.try(c.Context, api, b)
		if err != nil {
			return err
		}
		p.note("%s is %s (exit %d)", seqName(t.Point), t.Verdict, t.Exit)
		q.Tried = &t
		if b, err = api.Bisect(c.Context, q); err != nil {
			return err
		}
	}
	// The answer took long to find: it is said before anything else can fail.
	if err := p.data(b, func() string { return p.bisected(b) }); err != nil {
		return err
	}
	if pins != "" {
		if err := pinFound(c.Context, api, b, pins); err != nil {
			return fault.Wrap(fault.Partly, "pin what bisect found", err).Advise("The points are told above: point pin %s --name NAME --at POINT.", b.Group)
		}
	}
	for _, t := range b.Tries {
		if t.Verdict == "skip" && !b.Exact {
			return fault.New(fault.BisectUnclear, "bisect "+b.Group, "%s", b.Why)
		}
	}
	return nil
}

// firstBad is what the first bad point's pin is called beyond the last good one's.
const firstBad = "-bad"

func pinFound(ctx context.Context, api control.API, b control.Bisection, name string) error {
	note := "bisect by " + b.Check
	_, err := api.Pin(ctx, control.PinRequest{Group: b.Group, Name: name, At: seqName(b.LastGood), Note: note + ": the last good point"})
	if err == nil {
		_, err = api.Pin(ctx, control.PinRequest{Group: b.Group, Name: name + firstBad, At: seqName(b.FirstBad), Note: note + ": the first bad point"})
	}
	return err
}

// try serves the point that is next and asks the program.
func (x checker) try(ctx context.Context, api control.API, b control.Bisection) (control.BisectTry, error) {
	t := control.BisectTry{Point: *b.Next}
	serving, over := context.WithCancel(ctx)
	defer over()
	var failed error
	done := false
	err := api.Serve(serving, control.ServeRequest{Group: b.Group, At: seqName(*b.Next), Scratch: x.scratch, Lease: true}, func(v control.View) {
		defer over()
		began := time.Now()
		t.Exit, failed = x.run(ctx, b, v)
		t.Seconds, done = time.Since(began).Seconds(), true
	})
	switch {
	case ctx.Err() != nil:
		return t, context.Cause(ctx)
	case failed != nil:
		return t, failed
	case !done:
		return t, err
	}
	switch {
	case t.Exit == 0:
		t.Verdict = "good"
	case t.Exit == unclear:
		t.Verdict = "skip"
	default:
		t.Verdict = "bad"
	}
	return t, nil
}

// unclear is the exit status of a check that cannot tell; above it are those of
// programs that did not run, and of signals.
const unclear = 125

// run gives the exit status of the program; 125 when its time is up.
func (x checker) run(ctx context.Context, b control.Bisection, v control.View) (int, error) {
	what := "check point " + seqName(v.Point)
	limited, cancel := context.WithTimeout(ctx, x.limit)
	defer cancel()
	cmd := exec.CommandContext(limited, x.argv[0], x.argv[1:]...)
	cmd.Stdout, cmd.Stderr = x.output, x.output
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) } // and what it started
	cmd.WaitDelay = 5 * time.Second
	cmd.Env = append(os.Environ(), "AFTERIMAGE_GROUP="+b.Group, "AFTERIMAGE_POINT="+seqName(v.Point), "AFTERIMAGE_POINT_TIME="+v.Point.Time.Format(time.RFC3339Nano), "AFTERIMAGE_NBD_SOCKET="+v.Listen)
	chosen := false
	for _, e := range v.Exports {
		cmd.Env = append(cmd.Env, "AFTERIMAGE_URI_"+envName(e.Volume)+"="+e.URI)
		if e.Volume == x.volume || x.volume == "" && len(v.Exports) == 1 {
			chosen = true
			cmd.Env = append(cmd.Env, "AFTERIMAGE_URI="+e.URI, "AFTERIMAGE_VOLUME="+e.Volume)
		}
	}
	if x.volume != "" && !chosen {
		return 0, fault.New(fault.VolumeUnknown, what, "the group has no volume %q there", x.volume)
	}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return 0, context.Cause(ctx)
	case limited.Err() != nil:
		return unclear, nil
	case err == nil:
		return 0, nil
	case !errors.As(err, &exit):
		return 0, fault.Wrap(fault.BisectCheck, what, err)
	case !exit.Exited() || exit.ExitCode() > unclear:
		return 0, fault.New(fault.BisectCheck, what, "%s: %s", x.argv[0], exit.ProcessState)
	}
	return exit.ExitCode(), nil
}

// envName is a volume's name as part of a variable's.
func envName(volume string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, strings.ToUpper(volume))
}

func (p *printer) bisected(b control.Bisection) string {
	var s strings.Builder
	t := p.newTable("TRIED", "VERDICT", "EXIT", "TOOK")
	for _, x := range b.Tries {
		t.row(seqName(x.Point), x.Verdict, fmt.Sprint(x.Exit), seconds(x.Seconds))
	}
	s.WriteString(t.String() + "\n")
	fmt.Fprintf(&s, "last good  %s, %s\nfirst bad  %s, %s\n", seqName(b.LastGood), p.when(b.LastGood.Time), seqName(b.FirstBad), p.when(b.FirstBad.Time))
	if b.Exact {
		fmt.Fprintf(&s, "found: record %s did it, after %s\n", seqName(b.FirstBad), plural(uint64(len(b.Tries)), "trial"))
	} else {
		fmt.Fprintf(&s, "between the two: %s\n", b.Why)
	}
	return s.String()
}
