package replicator

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/novacron/afterimage/replicator/transport"
)

// maxConnectionsPerPeer leaves room for the connections that a peer lost without
// our knowing; beyond it the oldest goes.
const maxConnectionsPerPeer = 4

// acceptLoop serves callers until ctx ends. Only pinned ones, and
// those with a token while there is one, come this far.
func (r *Replicator) acceptLoop(ctx context.Context, from transport.Transport) error {
	var serving sync.WaitGroup
	defer serving.Wait()
	joining := make(chan struct{}, maxJoining)
	var mu sync.Mutex // guards conns
	conns := map[*peer][]transport.Conn{}
	for {
		conn, err := from.Accept(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("accept connection: %w", err)
		}
		if conn.State().NegotiatedProtocol == alpnJoin {
			select {
			case joining <- struct{}{}:
				serving.Go(func() {
					r.receiveJoiner(ctx, conn)
					<-joining
				})
			default:
				conn.Close(uint16(CodeBusy), "")
			}
			continue
		}
		// The handshake has checked this; nothing hangs on its having been called.
		p := r.peerByPin(shownPin(conn.State()))
		if p == nil {
			conn.Close(uint16(CodeUnpinned), "")
			continue
		}
		mu.Lock()
		conns[p] = append(conns[p], conn)
		if len(conns[p]) > maxConnectionsPerPeer {
			closeLink(conns[p][0], ErrSuperseded)
			conns[p] = conns[p][1:]
		}
		mu.Unlock()
		serving.Go(func() {
			r.serve(ctx, p, conn)
			mu.Lock()
			defer mu.Unlock()
			if i := slices.Index(conns[p], conn); i >= 0 {
				conns[p] = slices.Delete(conns[p], i, i+1)
			}
		})
	}
}

// serve takes what p sends over conn until it ends.
func (r *Replicator) serve(ctx context.Context, p *peer, conn transport.Conn) {
	serving := ctx
	ctx, leave := until(ctx, p)
	defer leave()
	stop := context.AfterFunc(ctx, func() { closeLink(conn, context.Cause(ctx)) })
	defer stop()
	err := r.receive(ctx, p, conn)
	closeLink(conn, err)
	switch {
	case serving.Err() != nil:
		err = nil
	case p.ctx.Err() != nil:
		err = ErrRevoked
	}
	if err != nil {
		err = r.explain(p.Name, err)
		r.o.Log.Info("connection from peer ended", "peer", p.Name, "err", err)
	}
	r.o.Events.Disconnected(p.Name, false, err)
}

func (r *Replicator) receive(ctx context.Context, p *peer, conn transport.Conn) error {
	greeting, cancel := context.WithTimeout(ctx, r.o.HandshakeTimeout)
	defer cancel()
	control, err := conn.Control(greeting)
	if err != nil {
		return fmt.Errorf("accept control stream: %w", err)
	}
	l := newLink(r, p, conn, control)
	if err := l.greet(false); err != nil {
		return err
	}
	r.o.Events.Connected(p.Name, conn.RemoteAddr(), false)
	return newReceiver(l).run(ctx)
}
