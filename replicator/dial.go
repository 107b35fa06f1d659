package replicator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
)

// dialLoop keeps a connection to p while there are groups for it, or words. A session ends
// with its first connection, and the next one costs three round trips and a half: one for
// TLS, one for Hello, one for Open, half a one for the frames. That is less than a
// heartbeat on all but very long paths, and what had come by then counts (inbound.cutOff),
// so a session is not carried over from one first connection to another.
func (r *Replicator) dialLoop(ctx context.Context, by carriers, p *peer) error {
	h := &reach{carriers: by, p: p, c: dialTLS(r.self().cert, p.Name, p.pins)}
	defer h.drop()
	wait := r.backoff(p.Name)
	for {
		refreshed := r.refreshSignal()
		if len(r.groupsFor(p.Name)) == 0 && !r.o.Talks(p.Name) {
			select {
			case <-refreshed:
				continue
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		began := r.clock.now()
		greeted, err := r.dial(ctx, h)
		for _, g := range r.groupsFor(p.Name) {
			g.progress.enter(StateDisconnected, err)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			level := slog.LevelInfo
			if pin := (*PinError)(nil); errors.As(err, &pin) { // somebody else is there
				level = slog.LevelWarn
			}
			r.o.Log.Log(ctx, level, "peer not connected", "peer", p.Name, "address", p.Address, "err", err)
		}
		r.o.Events.Disconnected(p.Name, true, err)
		if greeted {
			wait.reset()
		}
		// A session that lived is begun anew at once: what waits meanwhile is the lag.
		if h.ready != nil || greeted && r.clock.now().Sub(began) >= r.o.IdleTimeout {
			continue
		}
		if err := sleepUnless(ctx, wait.next(), refreshed); err != nil {
			return err
		}
	}
}

// dial connects once and replicates until the connection ends. greeted says
// whether the peer was reached and spoke.
func (r *Replicator) dial(ctx context.Context, h *reach) (greeted bool, err error) {
	p := h.p
	defer func() {
		if err != nil {
			err = r.explain(p.Name, err)
		}
	}()
	way, err := h.dial(ctx)
	if err != nil {
		return false, fmt.Errorf("dial peer %s at %s: %w", p.Name, p.Address, err)
	}
	ctx, end := context.WithCancelCause(ctx)
	var retrying sync.WaitGroup
	defer retrying.Wait()
	defer end(nil)
	defer func() { closeLink(way, err) }()
	defer context.AfterFunc(ctx, func() { closeLink(way, context.Cause(ctx)) })()
	control, err := way.Control(ctx)
	if err != nil {
		return false, fmt.Errorf("open control stream to %s: %w", p.Name, err)
	}
	l := newLink(r, p, way.Conn, control)
	l.why = way.why
	if err := l.greet(true); err != nil {
		return false, err
	}
	r.o.Events.Connected(p.Name, way.RemoteAddr(), true)
	if way.why != nil {
		r.o.Log.Warn("peer is reached over TCP", "peer", p.Name, "err", way.why)
	}
	if way.retried {
		retrying.Go(func() { end(h.retry(ctx, r.o.UDPRetry)) })
	}
	return true, newSender(l).run(ctx)
}
