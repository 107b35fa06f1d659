package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/testbed/link"
	"github.com/novacron/afterimage/testbed/tunnel"
)

const (
	besideFigure = "rpo_p99_beside_slow_peer_vs_alone"
	// What the slow peer may get in a second, a fifth of the load.
	slowRate      = 1 << 20
	besideWrites  = 1000
	besideBytes   = 5 << 10
	besideSamples = 5 * time.Millisecond
)

// besides measures the RPO of a peer while another one of the same source, behind a
// path of its own, is given slowRate, beside the RPO without that one, in turns.
func (r *replicateRun) besides(ctx context.Context) error {
	if !r.wants(besideFigure) {
		return nil
	}
	for i := range r.o.Rounds {
		r.o.Progress("a slow peer beside", i+1, r.o.Rounds)
		var p99 [2]float64 // alone, beside
		for k, beside := range []bool{false, true} {
			v, err := r.fanned(ctx, beside)
			if err != nil {
				return fmt.Errorf("RPO beside a slow peer: %w", err)
			}
			p99[k] = v
		}
		r.note(besideFigure, ratio(p99[1], p99[0]))
		of := func(v float64) round {
			return round{took: r.o.Span, laps: []time.Duration{time.Duration(v * float64(time.Second))}}
		}
		r.beside(besideFigure, of(p99[1]), of(p99[0]))
	}
	return nil
}

// fanned is the p99 of the RPO at b, in seconds, with or without a slow peer.
func (r *replicateRun) fanned(ctx context.Context, beside bool) (p99 float64, err error) {
	c := link.Config{RTT: r.o.RTT, BytesPerSecond: max(r.o.LinkRate, 4*slowRate), QueueBytes: r.o.queueBytes(), Seed: r.o.Seed}
	p, err := newPath(c)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	what := newReplicated(slots * besideBytes)
	a, err := r.newSite(ctx, "a", p.near.Start, what, EndOpen{Source: true, SyncProcess: true})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, a.close()) }()
	b, to, err := r.listener(ctx, p.far.Start, p.address(benchPort), a, what, EndOpen{SyncProcess: true})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	peers := []EndPeer{to}
	if beside {
		slow, err := newBranch(p.near, c)
		if err != nil {
			return 0, err
		}
		defer func() { err = errors.Join(err, slow.close()) }()
		s, at, err := r.listener(ctx, slow.far.Start, slow.address(benchPort), a, what, EndOpen{SyncProcess: true})
		if err != nil {
			return 0, err
		}
		defer func() { err = errors.Join(err, s.close()) }()
		at.Name, at.BytesPerSecond = "slow", slowRate
		peers = append(peers, at)
	}
	if err := a.call(ctx, "Dial", EndDial{Peers: peers}, new(None)); err != nil {
		return 0, err
	}
	if err := a.call(ctx, "Load", EndLoad{besideWrites, besideBytes, r.o.Seed}, new(None)); err != nil {
		return 0, err
	}
	return r.p99At(ctx, b)
}

// p99At samples the RPO at b, from the warm-up's end on.
func (r *replicateRun) p99At(ctx context.Context, b *site) (float64, error) {
	if err := b.call(ctx, "Await", journal.Seq(1), new(EndState)); err != nil {
		return 0, err
	}
	if err := wait(ctx, r.o.warmUp()); err != nil {
		return 0, err
	}
	var rpo []time.Duration
	for end := time.Now().Add(r.o.Span); time.Now().Before(end) || len(rpo) == 0; {
		var s EndStamp
		if err := errors.Join(wait(ctx, besideSamples), b.call(ctx, "Newest", int64(besideBytes), &s)); err != nil {
			return 0, err
		}
		if s.Number > 0 {
			rpo = append(rpo, s.At.Sub(s.Time))
		}
	}
	slices.Sort(rpo)
	return sorted(rpo, 0.99).Seconds(), nil
}

// newBranch lays another path from a space that there is.
func newBranch(near *tunnel.Space, c link.Config) (*path, error) {
	p := &path{}
	var err error
	if p.far, err = tunnel.NewSpace(); err != nil {
		return nil, err
	}
	if p.tunnel, err = tunnel.Lay(near, p.far, 2, c); err != nil {
		return nil, errors.Join(err, p.close())
	}
	p.run()
	return p, nil
}
