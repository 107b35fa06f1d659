package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/testbed/link"
)

// losses are the conditions of the link, and how figures call them.
var losses = []struct {
	suffix string
	loss   float64
}{{"loss_0", 0}, {"loss_0_1", 0.001}, {"loss_1", 0.01}}

const (
	// slack is how much longer than it should a measurement may take on a busy machine.
	slack               = 5 * time.Second
	competingFigure     = "competing_tcp_keeps_loss_1"
	connectionsFigure   = "connections_loss_1"
	retransmittedFigure = "retransmitted_bytes_per_byte_loss_1"
	benchPort           = 7801
	barePort            = 7802
)

// goodputs measures how much of a link's rate is bytes of the volume that are durable
// at the other side, with TCP in turns. The source's journal was filled before; each
// round fills a new replica of it.
func (r *replicateRun) goodputs(ctx context.Context) (err error) {
	atOne := []string{competingFigure, connectionsFigure, retransmittedFigure}
	names := slices.Clone(atOne)
	for _, l := range losses {
		names = append(names, "goodput_vs_link_"+l.suffix, "tcp_goodput_vs_link_"+l.suffix)
	}
	if !r.wants(names...) {
		return nil
	}
	p, err := newPath(link.Config{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	what := newReplicated(256 << 20)
	a, err := r.newSite(ctx, "a", p.near.Start, what, EndOpen{Source: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.close()) }()
	r.o.Progress("fill the source", 0, 0)
	var filled int64
	need := int64(float64(r.o.LinkRate) * (r.o.warmUp() + r.o.Span + slack).Seconds())
	if err := a.call(ctx, "Fill", EndFill{Bytes: need, Kind: randomKind, Seed: r.o.Seed}, &filled); err != nil {
		return err
	}
	for i := range r.o.Rounds {
		for _, l := range losses {
			ours, theirs := "goodput_vs_link_"+l.suffix, "tcp_goodput_vs_link_"+l.suffix
			worst := l.suffix == "loss_1" && r.wants(atOne...)
			if !r.wants(ours, theirs) && !worst {
				continue
			}
			c := link.Config{RTT: r.o.RTT, Loss: l.loss, BytesPerSecond: r.o.LinkRate, QueueBytes: r.o.queueBytes(), Seed: r.o.Seed}
			if err := p.tunnel.Set(c); err != nil {
				return err
			}
			r.o.Progress("goodput, "+l.suffix, i+1, r.o.Rounds)
			if err := r.goodput(ctx, p, a, what, ours, theirs, worst); err != nil {
				return fmt.Errorf("goodput at %s: %w", l.suffix, err)
			}
		}
	}
	return nil
}

// goodput is one round at one loss: ours, TCP, and at the worst loss both together.
func (r *replicateRun) goodput(ctx context.Context, p *path, a *site, what replicated, ours, theirs string, worst bool) error {
	share := func(x round) float64 { return x.perSecond() / float64(r.o.LinkRate) }
	got, _, err := r.overLink(ctx, p, a, what, true, false)
	if err != nil {
		return err
	}
	mine := got.round
	_, alone, err := r.overLink(ctx, p, a, what, false, true)
	if err != nil {
		return err
	}
	r.note(ours, share(mine))
	r.note(theirs, share(alone))
	r.beside(ours, mine, alone)
	if !worst {
		return nil
	}
	r.note(connectionsFigure, float64(got.connections))
	r.note(retransmittedFigure, ratio(float64(got.lost), float64(mine.bytes)))
	if !r.wants(competingFigure) {
		return nil
	}
	both, beside, err := r.overLink(ctx, p, a, what, true, true)
	if err != nil {
		return err
	}
	mine = both.round
	r.note(competingFigure, ratio(beside.perSecond(), alone.perSecond()))
	r.beside(competingFigure, mine, beside)
	return nil
}

// sent is a round of ours, with what its sessions say of it.
type sent struct {
	round
	connections int
	lost        uint64 // bytes
}

// overLink runs ours, TCP + TLS 1.3 of the standard library, or both over the link for
// the warm-up, which begins with the first record that arrived, and measures what
// arrives in the span after it.
func (r *replicateRun) overLink(ctx context.Context, p *path, a *site, what replicated, ours, tcp bool) (mine sent, theirs round, err error) {
	var b, sink, flood *child
	if tcp {
		if flood, err = startChild(ctx, "tcp-a", r.o.End, p.near.Start); err != nil {
			return mine, theirs, err
		}
		defer func() { err = errors.Join(err, flood.close()) }()
		if sink, err = startChild(ctx, "tcp-b", r.o.End, p.far.Start); err != nil {
			return mine, theirs, err
		}
		defer func() { err = errors.Join(err, sink.close()) }()
		var address string
		if err = sink.call(ctx, "Sink", EndBare{bareTLS, p.address(barePort)}, &address); err != nil {
			return mine, theirs, err
		}
		if err = flood.call(ctx, "Flood", EndBare{bareTLS, address}, new(None)); err != nil {
			return mine, theirs, err
		}
	}
	if ours {
		s, err := r.replica(ctx, p.far.Start, p.address(benchPort), a, what, EndOpen{}, EndPeer{})
		if err != nil {
			return mine, theirs, err
		}
		defer func() { err = errors.Join(err, a.call(ctx, "Hangup", None{}, new(None)), s.close()) }()
		b = s.child
		source, err := a.state(ctx)
		if err == nil {
			err = b.call(ctx, "Await", source.Base+1, new(EndState))
		}
		if err != nil {
			return mine, theirs, err
		}
	}
	if err = wait(ctx, r.o.warmUp()); err != nil {
		return mine, theirs, err
	}
	began, err := states(ctx, b, sink, a.child)
	if err != nil {
		return mine, theirs, err
	}
	if err = wait(ctx, r.o.Span); err != nil {
		return mine, theirs, err
	}
	ended, err := states(ctx, b, sink, a.child)
	if err != nil {
		return mine, theirs, err
	}
	if ours {
		mine.connections, mine.lost = ended[2].Connections, ended[2].Lost-began[2].Lost
		if mine.round, err = r.arrived(ctx, a, b, began[0], ended[0]); err != nil {
			return mine, theirs, err
		}
	}
	if tcp {
		theirs = round{bytes: ended[1].Bare - began[1].Bare, took: ended[1].At.Sub(began[1].At)}
	}
	return mine, theirs, nil
}

// states are those of the ends that there are.
func states(ctx context.Context, of ...*child) ([]EndState, error) {
	out := make([]EndState, len(of))
	for i, c := range of {
		if c == nil {
			continue
		}
		var err error
		if out[i], err = c.state(ctx); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// arrived is what became durable at b between two moments, in bytes of the volume. It
// holds b to what a has, at the last of them.
func (r *replicateRun) arrived(ctx context.Context, a *site, b *child, began, ended EndState) (round, error) {
	source, err := a.state(ctx)
	if err != nil {
		return round{}, err
	}
	if ended.Durable == source.Head {
		return round{}, errors.New("all had arrived before the time was over: the load is too short")
	}
	if err := sameAt(ctx, a.child, b, ended.Durable, r.o.Seed); err != nil {
		return round{}, err
	}
	n := int64(ended.Durable - max(began.Durable, source.Base))
	unit := fillUnits[randomKind]
	return round{bytes: n * unit, payload: n * unit, ops: int(n), took: ended.At.Sub(began.At)}, nil
}

// sameAt compares cells of both ends as of a record.
func sameAt(ctx context.Context, a, b *child, seq journal.Seq, seed uint64) error {
	var sums [2]uint64
	for i, c := range []*child{a, b} {
		if err := c.call(ctx, "Probe", EndProbe{seq, seed}, &sums[i]); err != nil {
			return err
		}
	}
	if sums[0] != sums[1] {
		return fmt.Errorf("the ends hold different bytes as of record %s", seq)
	}
	return nil
}

// ratio is zero where there is nothing to compare with: a window can be too short.
func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
