package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"time"

	"github.com/novacron/afterimage/cbt/nbd"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/testbed/stamp"
)

// remote is an export as an io.ReaderAt, for stamp.Scan.
type remote struct {
	ctx context.Context
	*nbd.Client
}

func (r remote) ReadAt(p []byte, off int64) (int, error) {
	if err := r.Client.ReadAt(r.ctx, p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

// dialExport connects to nbd+unix:///EXPORT?socket=PATH.
func dialExport(ctx context.Context, uri string) (*nbd.Client, error) {
	u, err := url.Parse(uri)
	if err != nil {
		return nil, fmt.Errorf("export %q: %w", uri, err)
	}
	return nbd.Dial(ctx, "unix", u.Query().Get("socket"), nbd.DialOptions{Export: u.Path[1:]})
}

// seen is what a reader found in a moment.
type seen struct {
	stamp.Report
	point  control.Point
	opened time.Time // when the view was there: nothing newer can be in it
}

// inspect serves a moment at d and scans the stamps of its disk.
func (d *daemon) inspect(ctx context.Context, at string) (s seen, err error) {
	err = d.withView(ctx, at, func(v control.View, c *nbd.Client) (err error) {
		s.point, s.opened = v.Point, time.Now()
		s.Report, err = stamp.Scan(remote{ctx, c}, 0, slots)
		return err
	})
	return s, err
}

// withView serves a moment at d for as long as f runs.
func (d *daemon) withView(ctx context.Context, at string, f func(control.View, *nbd.Client) error) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	views := make(chan control.View, 1)
	served := make(chan error, 1)
	go func() {
		served <- d.api.Serve(ctx, control.ServeRequest{Group: "demo", At: at, Lease: true}, func(v control.View) { views <- v })
	}()
	var v control.View
	select {
	case v = <-views:
	case err := <-served:
		return fmt.Errorf("serve %s at site %s: %w", at, d.name, err)
	}
	c, err := dialExport(ctx, v.Exports[0].URI)
	if err == nil {
		err = errors.Join(f(v, c), c.Close())
	}
	stop()
	if serr := <-served; err == nil && serr != nil && !errors.Is(serr, context.Canceled) {
		err = serr
	}
	if err != nil {
		return fmt.Errorf("view of %s at site %s: %w", at, d.name, err)
	}
	return nil
}

// watch prints a line a second and measures the RPO at b every 100 ms, until ctx ends.
func (s *story) watch(ctx context.Context) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	begun := time.Now()
	var rpo time.Duration
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		r, err := s.b.inspect(ctx, "latest")
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if r.Max > 0 {
			age := r.opened.Sub(r.Last.Time)
			rpo = age - s.disk.skew(age)
			s.samples = append(s.samples, Sample{r.opened.Sub(begun), rpo})
		}
		if n%10 == 0 {
			s.line(ctx, r.Max, rpo)
		}
	}
}

// line is one second for people.
func (s *story) line(ctx context.Context, arrived uint64, rpo time.Duration) {
	written := s.disk.written()
	behind := uint64(0)
	if written > arrived {
		behind = written - arrived
	}
	s.say("  written %6d   behind %4d writes   RPO %.3f s", written, behind, rpo.Seconds())
}

var _ io.ReaderAt = remote{}
