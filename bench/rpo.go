package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/testbed/stamp"
)

// RPOOptions describe a run. The zero value is 30 s of 2,000 writes of 5 KiB a
// second over 50 ms, 0.1 % loss and 400 Mbit/s, without a cut.
type RPOOptions struct {
	For        time.Duration // of what is measured before a cut
	Writes     int           // a second
	WriteBytes int64         // each; its first 4 KiB are the stamp
	RTT        time.Duration
	Loss       float64       // probability that a packet is lost; negative: none
	LinkRate   int64         // bytes a second; negative: no limit
	Cut        time.Duration // of the link, after For; then the load goes on until all is caught up
	Every      time.Duration // between samples; 10 ms
	Seed       uint64        // of load and link; 0: drawn
	Dir        string        // for the two journals; empty: a temporary one
	// End begins this program once more with EndChild as its whole work.
	End func(ctx context.Context) *exec.Cmd
	// Sampled, which may be nil, is called with every sample.
	Sampled func(RPOSample)
}

// RPOSample is what the reader found at one moment.
type RPOSample struct {
	At       time.Duration // since the load began
	RPO      time.Duration // age of the newest stamp at the peer
	Written  uint64        // answered stamps
	Stamp    uint64        // the newest at the peer
	Loss     time.Duration // age of the oldest answered write that is missing there; 0 if none is
	Reported time.Duration // by the source's replicator, for the same moment
	Known    bool          // Reported is
	Cut      bool
}

const (
	stampBytes = stamp.Size
	slots      = 4096
	// mostCatchUp is how long a run waits for the peer after a cut, in cuts.
	mostCatchUp = 2
)

func (o RPOOptions) withDefaults() RPOOptions {
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	set(&o.For, 30*time.Second)
	set(&o.RTT, 50*time.Millisecond)
	set(&o.Every, 10*time.Millisecond)
	if o.Writes == 0 {
		o.Writes = 2000
	}
	if o.WriteBytes == 0 {
		o.WriteBytes = 5 << 10
	}
	if o.Loss == 0 {
		o.Loss = 0.001
	}
	if o.LinkRate == 0 {
		o.LinkRate = 400_000_000 / 8
	}
	o.Loss, o.LinkRate = max(o.Loss, 0), max(o.LinkRate, 0)
	if o.Seed == 0 {
		o.Seed = uint64(time.Now().UnixNano())
	}
	return o
}

func (o RPOOptions) validate() error {
	switch {
	case o.End == nil:
		return errors.New("no program for the ends")
	case o.Writes < 1 || o.Writes > 100_000:
		return fmt.Errorf("%d writes a second: want 1 to 100000", o.Writes)
	case o.WriteBytes < stampBytes || o.WriteBytes%cbt.SectorBytes != 0 || o.WriteBytes > cbt.MaxWriteBytes:
		return fmt.Errorf("writes of %d bytes: want a multiple of 512 from 4096 to 32 MiB", o.WriteBytes)
	case o.Loss >= 1:
		return fmt.Errorf("loss of %g: want a probability below 1", o.Loss)
	case o.For < time.Second || o.Cut < 0:
		return errors.New("a run takes at least 1 s, and a cut does not end before it begins")
	}
	return nil
}

// RPO runs the benchmark.
func RPO(ctx context.Context, o RPOOptions) (_ RPOResult, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("bench rpo: %w", err)
		}
	}()
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return RPOResult{}, err
	}
	if o.Dir == "" {
		dir, err := os.MkdirTemp("", "afterimage-bench-")
		if err != nil {
			return RPOResult{}, err
		}
		defer func() { _ = os.RemoveAll(dir) }() // a temporary directory
		o.Dir = dir
	}
	r, err := newRig(ctx, o)
	if err != nil {
		return RPOResult{}, err
	}
	res, err := r.run(ctx)
	return res, errors.Join(err, r.close())
}

// run loads, samples and sums up.
func (r *rig) run(ctx context.Context) (RPOResult, error) {
	o := r.o
	if err := r.a.call(ctx, "Load", EndLoad{o.Writes, o.WriteBytes, o.Seed}, new(None)); err != nil {
		return RPOResult{}, err
	}
	m := &measure{rig: r, start: time.Now()}
	if err := m.begin(ctx); err != nil {
		return RPOResult{}, err
	}
	if err := m.during(ctx, func(ctx context.Context) error { return wait(ctx, o.For) }); err != nil {
		return RPOResult{}, err
	}
	res := calm(m.samples)
	if o.Cut > 0 {
		if err := m.through(ctx, &res); err != nil {
			return RPOResult{}, err
		}
	}
	if err := r.a.call(ctx, "Unload", None{}, new(None)); err != nil {
		return RPOResult{}, err
	}
	res.honest(m.samples)
	res.Writes, res.WriteBytes, res.Seconds = m.samples[len(m.samples)-1].Written, o.WriteBytes, time.Since(m.start).Seconds()
	res.Between, res.RTT, res.Loss, res.LinkRate, res.Seed = r.between(), o.RTT.Seconds(), o.Loss, o.LinkRate, o.Seed
	res.judge()
	return res, nil
}

// measure takes samples of a rig.
type measure struct {
	*rig
	start   time.Time
	samples []RPOSample
}

// begin waits for the first sample in which the source knows of its RPO, and drops it.
func (m *measure) begin(ctx context.Context) error {
	for len(m.samples) == 0 || !m.samples[len(m.samples)-1].Known {
		if err := errors.Join(wait(ctx, m.o.Every), m.sample(ctx)); err != nil {
			return err
		}
	}
	m.samples = nil
	return nil
}

// during takes samples while f runs, and one at least.
func (m *measure) during(ctx context.Context, f func(context.Context) error) error {
	sampling, stop := context.WithCancel(ctx)
	defer stop()
	var g errgroup.Group
	g.Go(func() error {
		defer stop()
		return f(ctx)
	})
	tick := time.NewTicker(m.o.Every)
	defer tick.Stop()
	var err error
	for n := len(m.samples); err == nil && (sampling.Err() == nil || len(m.samples) == n); {
		err = m.sample(ctx)
		select {
		case <-sampling.Done():
		case <-tick.C:
		}
	}
	return errors.Join(err, g.Wait())
}

// sample notes what b holds now. What a claims is asked before: what the reader then
// finds can only be newer.
func (m *measure) sample(ctx context.Context) error {
	cut := m.cut.Load()
	var c EndClaim
	var s EndStamp
	if err := m.a.call(ctx, "Claim", None{}, &c); err != nil {
		return err
	}
	if err := m.b.call(ctx, "Newest", m.o.WriteBytes, &s); err != nil || s.Number == 0 {
		return err
	}
	one := RPOSample{At: s.At.Sub(m.start), RPO: s.At.Sub(s.Time), Written: c.Answered, Stamp: s.Number, Cut: cut && m.cut.Load()}
	if err := m.a.call(ctx, "Missing", EndMissing{s.Number, s.At}, &one.Loss); err != nil {
		return err
	}
	if rpo, ok := c.RPO["b"]; ok {
		one.Reported, one.Known = rpo+s.At.Sub(c.At), true
	}
	m.samples = append(m.samples, one)
	if m.o.Sampled != nil {
		m.o.Sampled(one)
	}
	return nil
}

// through cuts the path, and follows until the peer has caught up and the RPO shown is
// what it was before.
func (m *measure) through(ctx context.Context, res *RPOResult) error {
	normal := time.Duration(res.P99 * float64(time.Second))
	reportedNormal := time.Duration(res.reportedP99 * float64(time.Second))
	from := len(m.samples)
	m.setCut(true)
	err := m.during(ctx, func(ctx context.Context) error { return wait(ctx, m.o.Cut) })
	if err == nil {
		err = m.sample(ctx)
	}
	m.setCut(false)
	if err != nil {
		return err
	}
	healed, before := time.Since(m.start), m.samples[len(m.samples)-1].Stamp
	deadline := time.Now().Add(mostCatchUp*m.o.Cut + time.Minute)
	var moved, back, shown time.Duration // since the load began; 0: not yet
	var last uint64
	for (back == 0 || shown == 0) && time.Now().Before(deadline) {
		n := len(m.samples)
		if err := errors.Join(wait(ctx, m.o.Every), m.sample(ctx)); err != nil {
			return err
		}
		if len(m.samples) == n {
			continue
		}
		s := m.samples[n]
		if moved == 0 && s.Stamp > before {
			moved, before = s.At, s.Stamp
		}
		if back == 0 {
			last = s.Stamp
		}
		if back == 0 && moved > 0 && s.RPO <= normal {
			back = s.At
		}
		if shown == 0 && back > 0 && s.Known && s.Reported <= reportedNormal {
			shown = s.At
		}
	}
	caught, end := back > 0 && shown > 0, time.Since(m.start)
	if moved == 0 {
		moved = end
	}
	if back == 0 {
		back = end
	}
	if shown == 0 {
		shown = end
	}
	res.CaughtUp = &caught
	res.through(m.samples[from:], m.o, cutMoments{healed, moved, back, shown, last - before})
	return nil
}
