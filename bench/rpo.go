package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/testbed/stamp"
)

// RPOOptions describe a run. The zero value is 20 s of 50 writes of 4 KiB a
// second over 50 ms, 0.1 % loss and 400 Mbit/s.
type RPOOptions struct {
	For        time.Duration
	Writes     int   // a second
	WriteBytes int64 // each; its first 4 KiB are the stamp
	RTT        time.Duration
	Loss       float64 // probability that a datagram is lost; negative: none
	LinkRate   int64   // bytes a second; negative: no limit
	Cut        time.Duration
	Every      time.Duration // between samples; 10 ms
	Seed       uint64        // of load and link; 0: drawn
	Dir        string        // for the two journals; empty: a temporary one
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

// RPOResult is what `bench rpo -o json` prints.
type RPOResult struct {
	P50           float64 `json:"rpo_p50_seconds"`
	P99           float64 `json:"rpo_p99_seconds"`
	Max           float64 `json:"rpo_max_seconds"`
	Samples       int     `json:"samples"`
	Writes        uint64  `json:"writes"`
	WriteBytes    int64   `json:"write_bytes"`
	Seconds       float64 `json:"seconds"`
	ReportedP50   float64 `json:"reported_rpo_p50_seconds"`
	ReportedBelow int     `json:"reported_below_measured"` // samples where the product claimed less than the age of a missing write
	CutMax        float64 `json:"cut_rpo_max_seconds,omitempty"`
	CatchUp       float64 `json:"catch_up_seconds,omitempty"` // after a cut, until the RPO was below the p99 of before
	RTT           float64 `json:"rtt_seconds"`
	Loss          float64 `json:"loss"`
	LinkRate      int64   `json:"link_bytes_per_second"`
	Seed          uint64  `json:"seed"`
}

func (o RPOOptions) withDefaults() RPOOptions {
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	set(&o.For, 20*time.Second)
	set(&o.RTT, 50*time.Millisecond)
	set(&o.Every, 10*time.Millisecond)
	if o.Writes == 0 {
		o.Writes = 50
	}
	if o.WriteBytes == 0 {
		o.WriteBytes = 4 << 10
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
	case o.Writes < 1 || o.Writes > 100_000:
		return fmt.Errorf("%d writes a second: want 1 to 100000", o.Writes)
	case o.WriteBytes < stampBytes || o.WriteBytes%cbt.SectorBytes != 0 || o.WriteBytes > cbt.MaxWriteBytes:
		return fmt.Errorf("writes of %d bytes: want a multiple of 512 from 4096 to 32 MiB", o.WriteBytes)
	case o.Loss >= 1:
		return fmt.Errorf("loss of %g: want a probability below 1", o.Loss)
	case o.For < time.Second || o.Cut < 0 || o.Cut > o.For/2:
		return errors.New("a run takes at least 1 s, and a cut at most half of it")
	}
	return nil
}

// RPO runs the benchmark.
func RPO(ctx context.Context, o RPOOptions) (RPOResult, error) {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return RPOResult{}, fmt.Errorf("bench rpo: %w", err)
	}
	if o.Dir == "" {
		dir, err := os.MkdirTemp("", "afterimage-bench-")
		if err != nil {
			return RPOResult{}, fmt.Errorf("bench rpo: %w", err)
		}
		defer func() { _ = os.RemoveAll(dir) }() // a temporary directory
		o.Dir = dir
	}
	r, err := newRig(ctx, o)
	if err != nil {
		return RPOResult{}, fmt.Errorf("bench rpo: %w", err)
	}
	res, err := r.run(ctx)
	if err = errors.Join(err, r.close()); err != nil {
		return res, fmt.Errorf("bench rpo: %w", err)
	}
	return res, nil
}

const (
	stampBytes = stamp.Size
	slots      = 4096
)

// run loads, samples and sums up.
func (r *rig) run(ctx context.Context) (RPOResult, error) {
	o := r.o
	start := time.Now()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	l := newLoad(r)
	g, ctx := errgroup.WithContext(ctx)
	loading, end := context.WithTimeout(ctx, o.For)
	defer end()
	g.Go(func() error { return l.run(loading) })
	if o.Cut > 0 { // in the middle of the run
		g.Go(func() error { return r.cutAfter(loading, (o.For-o.Cut)/2, o.Cut) })
	}
	samples, err := r.sample(loading, l, start)
	if err = errors.Join(err, g.Wait()); err != nil {
		return RPOResult{}, err
	}
	res := summarise(samples)
	res.Writes, res.WriteBytes, res.Seconds = l.answered.Load(), o.WriteBytes, o.For.Seconds()
	res.RTT, res.Loss, res.LinkRate, res.Seed = o.RTT.Seconds(), o.Loss, o.LinkRate, o.Seed
	if res.Samples == 0 {
		return res, errors.New("nothing reached the peer: there is no sample")
	}
	return res, nil
}

func (r *rig) cutAfter(ctx context.Context, after, length time.Duration) error {
	for _, step := range []struct {
		wait time.Duration
		then func()
	}{{after, func() { r.cut.Store(true); r.link.Cut() }}, {length, func() { r.link.Heal(); r.cut.Store(false) }}} {
		t := time.NewTimer(step.wait)
		defer t.Stop()
		select {
		case <-t.C:
			step.then()
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}

// sample reads the newest durable point at b until ctx ends. Samples begin with the
// first stamp that arrived there.
func (r *rig) sample(ctx context.Context, l *load, start time.Time) ([]RPOSample, error) {
	var out []RPOSample
	tick := time.NewTicker(r.o.Every)
	defer tick.Stop()
	reader := &reader{rig: r}
	for {
		select {
		case <-ctx.Done():
			return out, nil
		case <-tick.C:
		}
		written := l.answered.Load()
		claim := r.claim() // before the reader looks: what it then finds can only be newer
		s, at, err := reader.newest(ctx)
		if ctx.Err() != nil {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		if s.Number == 0 {
			continue
		}
		one := RPOSample{At: at.Sub(start), RPO: at.Sub(s.Time), Loss: l.missing(s.Number, at), Written: written, Stamp: s.Number, Cut: r.cut.Load()}
		if claim.known {
			one.Reported, one.Known = claim.rpo+at.Sub(claim.at), true
		}
		out = append(out, one)
		if r.o.Sampled != nil {
			r.o.Sampled(one)
		}
	}
}

// claim is what the product says of the RPO at a moment.
type claim struct {
	at    time.Time
	rpo   time.Duration
	known bool
}

func (r *rig) claim() claim {
	at := time.Now() // before the report is made: waiting for it is not held against it
	for _, lag := range r.sender.Lags() {
		return claim{at, lag.RPO, lag.Known}
	}
	return claim{}
}

// summarise is the figures of a run. Samples of a cut, and of the catching up after
// it, count apart.
func summarise(samples []RPOSample) RPOResult {
	var res RPOResult
	var calm, reported []time.Duration
	var healed time.Duration
	seenCut, caught := false, false
	for _, s := range samples {
		if s.Known {
			reported = append(reported, s.Reported)
		}
		if s.Known && s.Reported < s.Loss {
			res.ReportedBelow++
		}
		switch {
		case s.Cut:
			seenCut, healed = true, s.At
			res.CutMax = max(res.CutMax, s.RPO.Seconds())
		case seenCut && !caught:
			res.CutMax = max(res.CutMax, s.RPO.Seconds())
			if s.RPO <= quantile(calm, 0.99) {
				caught, res.CatchUp = true, (s.At - healed).Seconds()
			}
		default:
			calm = append(calm, s.RPO)
		}
	}
	res.Samples = len(calm)
	res.P50, res.P99, res.Max = quantile(calm, 0.5).Seconds(), quantile(calm, 0.99).Seconds(), quantile(calm, 1).Seconds()
	res.ReportedP50 = quantile(reported, 0.5).Seconds()
	return res
}

func quantile(d []time.Duration, q float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(d))
	return s[min(int(q*float64(len(s))), len(s)-1)]
}
