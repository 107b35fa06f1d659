package bench

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/novacron/afterimage/testbed/link"
)

const (
	throttleRate   = 5 << 20 // bytes a second
	throttleWindow = 10 * time.Second
)

// throttled holds what leaves the near side, as the path counts it, to a limit of
// throttleRate: the figure is how far the worst window of ten seconds is from it, either
// way. Packets' headers, heartbeats and whatever is sent twice count against us.
func (r *replicateRun) throttled(ctx context.Context) (err error) {
	if !r.wants(throttleFigure) {
		return nil
	}
	p, err := newPath(link.Config{RTT: r.o.RTT, BytesPerSecond: r.o.LinkRate, QueueBytes: r.o.queueBytes()})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	window, every := throttleWindow, 100*time.Millisecond
	if r.o.tiny {
		window = time.Second
	}
	span := 3 * window
	what := newReplicated(256 << 20)
	a, err := r.newSite(ctx, "a", p.near.Start, what, EndOpen{Source: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.close()) }()
	var filled int64
	if err := a.call(ctx, "Fill", EndFill{Bytes: int64(throttleRate * (span + window + slack).Seconds()), Kind: randomKind, Seed: r.o.Seed}, &filled); err != nil {
		return err
	}
	b, err := r.replica(ctx, p.far.Start, p.address(benchPort), a, what, EndOpen{}, EndPeer{BytesPerSecond: throttleRate})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	r.o.Progress("throttle", 1, 1)
	if err := wait(ctx, time.Second); err != nil { // past the handshake
		return err
	}
	var sent []moved
	tick := time.NewTicker(every)
	defer tick.Stop()
	for began := time.Now(); time.Since(began) < span; {
		toward, _ := p.tunnel.Stats()
		sent = append(sent, moved{time.Now(), int64(toward.ReceivedBytes)})
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	worst, ok := worstWindow(sent, window, throttleRate)
	if !ok {
		return fmt.Errorf("throttle: no window of %v in %d samples", window, len(sent))
	}
	r.note(throttleFigure, worst)
	return nil
}

// moved is how much had passed at a moment.
type moved struct {
	at    time.Time
	bytes int64
}

// worstWindow is how far, as a share of rate, the worst of all windows is from it.
func worstWindow(s []moved, window time.Duration, rate float64) (worst float64, ok bool) {
	for i, from := range s {
		for _, to := range s[i:] {
			d := to.at.Sub(from.at)
			if d < window {
				continue
			}
			worst, ok = max(worst, math.Abs(float64(to.bytes-from.bytes)/d.Seconds()/rate-1)), true
			break
		}
	}
	return worst, ok
}
