package replicator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/novacron/afterimage/replicator/transport"
)

// dialLoop keeps a connection to p while there are groups for it.
func (r *Replicator) dialLoop(ctx context.Context, by transport.Transport, p *peer) error {
	wait := backoff{first: r.o.RetryFirst, limit: r.o.RetryLimit}
	for {
		refreshed := r.refreshSignal()
		if len(r.groupsFor(p.Name)) == 0 {
			select {
			case <-refreshed:
				continue
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		greeted, err := r.dial(ctx, by, p)
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
		if err := sleepUnless(ctx, wait.next(), refreshed); err != nil {
			return err
		}
	}
}

// dial connects once and replicates until the connection ends. greeted says
// whether the peer was reached and spoke.
func (r *Replicator) dial(ctx context.Context, by transport.Transport, p *peer) (greeted bool, err error) {
	defer func() {
		if err != nil {
			err = r.explain(p.Name, err)
		}
	}()
	conn, err := by.Dial(ctx, p.Address, dialTLS(r.cert, p.Name, p.pins()))
	if err != nil {
		return false, fmt.Errorf("dial peer %s at %s: %w", p.Name, p.Address, err)
	}
	defer func() { closeLink(conn, err) }()
	stop := context.AfterFunc(ctx, func() { closeLink(conn, context.Cause(ctx)) })
	defer stop()
	control, err := conn.Control(ctx)
	if err != nil {
		return false, fmt.Errorf("open control stream to %s: %w", p.Name, err)
	}
	l := newLink(r, p, conn, control)
	if err := l.greet(true); err != nil {
		return false, err
	}
	r.o.Events.Connected(p.Name, conn.RemoteAddr(), true)
	return true, newSender(l).run(ctx)
}
