package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/testbed/link"
)

// Options of Run.
type Options struct {
	Executable string    // afterimage itself: the sites run it as daemons
	Dir        string    // for everything; empty: a new temporary directory, which stays
	Progress   io.Writer // lines for people
	QEMU       bool      // a real guest's disk instead of an embedded volume
	Load       time.Duration
}

// Result is the final object of `demo -o json`.
type Result struct {
	RPOP50          float64 `json:"rpo_p50_seconds"`
	RPOP99          float64 `json:"rpo_p99_seconds"`
	RPOMax          float64 `json:"rpo_max_seconds"`
	RTO             float64 `json:"rto_seconds"`
	Writes          uint64  `json:"writes"`
	Lost            uint64  `json:"lost_writes"`
	ReportedLoss    uint64  `json:"reported_loss_writes"`
	ReportedSeconds float64 `json:"reported_loss_seconds"`
	Verified        bool    `json:"verified"`
	Checks          []Check `json:"checks"`
	Report          string  `json:"report"`
	Plot            string  `json:"plot"`
	Seconds         float64 `json:"seconds"`
	Mode            string  `json:"mode"` // embedded, qemu
}

// Check is one claim and whether it held.
type Check struct {
	Claim string `json:"claim"`
	Held  bool   `json:"held"`
	Seen  string `json:"seen"`
}

// Sample is one measurement of the RPO.
type Sample struct {
	At  time.Duration // since the load began
	RPO time.Duration
}

// ErrNotVerified says that a claim did not hold; the Result tells which.
var ErrNotVerified = errors.New("the demo's claims did not all hold")

// Run runs the demo. The Result is filled as far as it came.
func Run(ctx context.Context, o Options) (Result, error) {
	if o.Progress == nil {
		o.Progress = io.Discard
	}
	if o.Load == 0 {
		o.Load = 15 * time.Second
	}
	if o.Dir == "" {
		dir, err := os.MkdirTemp("", "afterimage-demo-")
		if err != nil {
			return Result{}, fmt.Errorf("demo: %w", err)
		}
		o.Dir = dir
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return Result{}, fmt.Errorf("demo: %w", err)
	}
	ctx, stop := context.WithTimeoutCause(ctx, 5*time.Minute, errors.New("the demo took more than 5 minutes"))
	defer stop()
	s := &story{o: o, begun: time.Now()}
	err := s.tell(ctx)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = errors.Join(cause, err)
	}
	err = errors.Join(err, s.end())
	if err != nil {
		return s.result, fmt.Errorf("demo: %w (logs are in %s)", err, o.Dir)
	}
	if !s.result.Verified {
		return s.result, ErrNotVerified
	}
	return s.result, nil
}

// story is a run of the demo.
type story struct {
	o             Options
	begun         time.Time
	a, b          *daemon
	way           *link.Link // from a to b
	wayEnded      chan error
	disk          disk
	result        Result
	samples       []Sample
	behindSamples []Sample // while the link was meant to be too slow

	mark   control.Point
	marked uint64 // last stamp before the mark
	done   control.FailedOver
}

func (s *story) say(format string, args ...any) {
	// A closed pipe at the other end is the reader's choice.
	_, _ = fmt.Fprintf(s.o.Progress, format+"\n", args...)
}

func (s *story) check(held bool, claim, seen string, args ...any) {
	c := Check{claim, held, fmt.Sprintf(seen, args...)}
	s.result.Checks = append(s.result.Checks, c)
	word := "ok  "
	if !held {
		word = "FAIL"
	}
	s.say("  %s %s (%s)", word, c.Claim, c.Seen)
}

// tell is the whole story.
func (s *story) tell(ctx context.Context) error {
	s.result.Mode = "embedded"
	if s.o.QEMU {
		s.result.Mode = "qemu"
	}
	steps := []func(context.Context) error{s.setUp, s.load, s.attack, s.lookBack, s.fallBehind, s.disaster, s.thin}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return err
		}
	}
	s.sumUp()
	return s.report()
}

// sumUp fills what the samples and checks say.
func (s *story) sumUp() {
	var rpo []time.Duration
	for _, x := range s.samples {
		rpo = append(rpo, x.RPO)
	}
	slices.Sort(rpo)
	if n := len(rpo); n > 0 {
		s.result.RPOP50, s.result.RPOP99, s.result.RPOMax = rpo[n/2].Seconds(), rpo[n*99/100].Seconds(), rpo[n-1].Seconds()
	}
	s.check(len(rpo) > 0, "the RPO was measured at the other site", "%d samples, p50 %.3f s, p99 %.3f s, max %.3f s", len(rpo), s.result.RPOP50, s.result.RPOP99, s.result.RPOMax)
	s.result.Verified = true
	for _, c := range s.result.Checks {
		s.result.Verified = s.result.Verified && c.Held
	}
	s.result.Seconds = time.Since(s.begun).Seconds()
	s.result.Report, s.result.Plot = filepath.Join(s.o.Dir, "report.html"), filepath.Join(s.o.Dir, "rpo.svg")
}

// end stops what still runs.
func (s *story) end() error {
	var errs []error
	if s.disk != nil {
		errs = append(errs, s.disk.close())
	}
	for _, x := range []*daemon{s.a, s.b} {
		if x != nil {
			errs = append(errs, x.stop())
		}
	}
	if s.way != nil {
		errs = append(errs, s.way.Close(), <-s.wayEnded)
	}
	return errors.Join(errs...)
}
