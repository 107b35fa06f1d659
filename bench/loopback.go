package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/novacron/afterimage/testbed/link"
)

const (
	wirePrefix     = "wire_bytes_per_byte_"
	throttleFigure = "throttle_error_10s"
	gib            = 1 << 30
)

// loopbacks measures both ends on one machine without a link: ours from a filled
// journal to one that has nothing, beside the library's own copy into nothing, in turns.
func (r *replicateRun) loopbacks(ctx context.Context) (err error) {
	if !r.wants("quic_loopback_vs_bare_quic", "tls_loopback_vs_bare_tls", "cpu_seconds_per_gib", "cpu_seconds_per_gib_tls", "cpu_seconds_per_gib_bare_quic", "cpu_seconds_per_gib_bare_tls") {
		return nil
	}
	what := newReplicated(1 << 30)
	a, err := r.newSite(ctx, "a", nil, what, EndOpen{Source: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.close()) }()
	r.o.Progress("fill the source", 0, 0)
	var filled int64
	if err := a.call(ctx, "Fill", EndFill{Bytes: r.o.loopback(), Kind: randomKind, Seed: r.o.Seed}, &filled); err != nil {
		return err
	}
	for i := range r.o.Rounds {
		r.o.Progress("loopback", i+1, r.o.Rounds)
		for _, kind := range []string{bareQUIC, bareTLS} {
			if err := r.loopbackRound(ctx, a, what, kind); err != nil {
				return fmt.Errorf("loopback by %s: %w", kind, err)
			}
		}
	}
	return nil
}

// loopbackRound is one of ours and one of the bare library by one carrier.
func (r *replicateRun) loopbackRound(ctx context.Context, a *site, what replicated, kind string) error {
	name, cpu := kind+"_loopback_vs_bare_"+kind, "cpu_seconds_per_gib"
	if kind == bareTLS {
		cpu += "_tls"
	}
	if !r.wants(name, cpu, "cpu_seconds_per_gib_bare_"+kind) {
		return nil
	}
	ours, used, err := r.loopback(ctx, a, what, kind)
	if err != nil {
		return err
	}
	r.note(cpu, perGiB(used, ours.bytes))
	bare, used, err := r.bareLoopback(ctx, kind)
	if err != nil {
		return fmt.Errorf("bare: %w", err)
	}
	r.note("cpu_seconds_per_gib_bare_"+kind, perGiB(used, bare.bytes))
	r.note(name, ratio(ours.perSecond(), bare.perSecond()))
	r.beside(name, ours, bare)
	return nil
}

func perGiB(used time.Duration, bytes int64) float64 {
	return ratio(used.Seconds(), float64(bytes)/gib)
}

// loopback is one round of ours: from the dialling until all is durable. The replica's
// segments were written before, as in a journal whose history is full.
func (r *replicateRun) loopback(ctx context.Context, a *site, what replicated, carrier string) (got round, used time.Duration, err error) {
	b, to, err := r.listener(ctx, nil, "127.0.0.1:0", a, what, EndOpen{PoolBytes: r.o.loopback() * 5 / 4})
	if err != nil {
		return got, 0, err
	}
	defer func() { err = errors.Join(err, a.call(ctx, "Hangup", None{}, new(None)), b.close()) }()
	to.Carrier = carrier
	began, err := states(ctx, a.child, b.child)
	if err != nil {
		return got, 0, err
	}
	if err = a.call(ctx, "Dial", EndDial{Peers: []EndPeer{to}}, new(None)); err != nil {
		return got, 0, err
	}
	var whole EndState
	if err = b.call(ctx, "Await", began[0].Head, &whole); err != nil {
		return got, 0, err
	}
	ended, err := states(ctx, a.child, b.child)
	if err != nil {
		return got, 0, err
	}
	if err = sameAt(ctx, a.child, b.child, began[0].Head, r.o.Seed); err != nil {
		return got, 0, err
	}
	for i := range began {
		used += ended[i].Processor - began[i].Processor
	}
	n, unit := int64(began[0].Head-began[0].Base), fillUnits[randomKind]
	return round{bytes: n * unit, payload: n * unit, ops: int(n), took: whole.At.Sub(began[1].At)}, used, nil
}

// bareLoopback is one round of a library's own copy into nothing.
func (r *replicateRun) bareLoopback(ctx context.Context, kind string) (got round, used time.Duration, err error) {
	var ends [2]*child // source, sink
	for i, name := range []string{"bare-a", "bare-b"} {
		if ends[i], err = startChild(ctx, name, r.o.End, nil); err != nil {
			return got, 0, err
		}
		defer func() { err = errors.Join(err, ends[i].close()) }()
	}
	var address string
	if err = ends[1].call(ctx, "Sink", EndBare{kind, "127.0.0.1:0"}, &address); err != nil {
		return got, 0, err
	}
	if err = ends[0].call(ctx, "Flood", EndBare{kind, address}, new(None)); err != nil {
		return got, 0, err
	}
	if err = wait(ctx, r.o.Span/10); err != nil {
		return got, 0, err
	}
	began, err := states(ctx, ends[:]...)
	if err != nil {
		return got, 0, err
	}
	if err = wait(ctx, r.o.Span/2); err != nil {
		return got, 0, err
	}
	ended, err := states(ctx, ends[:]...)
	if err != nil {
		return got, 0, err
	}
	for i := range began {
		used += ended[i].Processor - began[i].Processor
	}
	return round{bytes: ended[1].Bare - began[1].Bare, took: ended[1].At.Sub(began[1].At)}, used, nil
}

// wires measures what goes over the wire for each byte that was written, by load, over
// a path that harms nothing.
func (r *replicateRun) wires(ctx context.Context) error {
	for _, kind := range []string{databaseKind, randomKind, zeroKind} {
		if !r.wants(wirePrefix + kind) {
			continue
		}
		r.o.Progress("wire bytes, "+kind, 1, 1)
		v, err := r.wire(ctx, kind)
		if err != nil {
			return fmt.Errorf("wire bytes of the %s load: %w", kind, err)
		}
		r.note(wirePrefix+kind, v)
	}
	return nil
}

func (r *replicateRun) wire(ctx context.Context, kind string) (v float64, err error) {
	p, err := newPath(link.Config{RTT: 2 * time.Millisecond, BytesPerSecond: 50 << 20})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	what := newReplicated(64 << 20)
	a, err := r.newSite(ctx, "a", p.near.Start, what, EndOpen{Source: true})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, a.close()) }()
	var filled int64
	if err := a.call(ctx, "Fill", EndFill{Bytes: r.o.loopback() / 8, Kind: kind, Seed: r.o.Seed}, &filled); err != nil {
		return 0, err
	}
	source, err := a.state(ctx)
	if err != nil {
		return 0, err
	}
	b, err := r.replica(ctx, p.far.Start, p.address(benchPort), a, what, EndOpen{}, EndPeer{})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	if err := b.call(ctx, "Await", source.Head, new(EndState)); err != nil {
		return 0, err
	}
	toward, _ := p.tunnel.Stats()
	if err := sameAt(ctx, a.child, b.child, source.Head, r.o.Seed); err != nil {
		return 0, err
	}
	return float64(toward.ReceivedBytes) / float64(filled), nil
}
