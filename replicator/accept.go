package replicator

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/quic-go/quic-go"
)

// maxConnectionsPerPeer leaves room for the connections that a peer lost without
// our knowing; beyond it the oldest goes.
const maxConnectionsPerPeer = 4

// acceptLoop serves callers until ctx ends. Only pinned ones, and
// those with a token while there is one, come this far.
func (r *Replicator) acceptLoop(ctx context.Context, listener *quic.Listener) error {
	var serving sync.WaitGroup
	defer serving.Wait()
	joining := make(chan struct{}, maxJoining)
	var mu sync.Mutex // guards conns
	conns := map[*peer][]*quic.Conn{}
	for {
		conn, err := listener.Accept(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("accept connection: %w", err)
		}
		if conn.ConnectionState().TLS.NegotiatedProtocol == alpnJoin {
			select {
			case joining <- struct{}{}:
				serving.Go(func() {
					r.receiveJoiner(ctx, conn)
					<-joining
				})
			default:
				_ = conn.CloseWithError(quic.ApplicationErrorCode(CodeBusy), "")
			}
			continue
		}
		// The handshake has checked this; nothing hangs on its having been called.
		p := r.peerByPin(shownPin(conn.ConnectionState().TLS))
		if p == nil {
			_ = conn.CloseWithError(quic.ApplicationErrorCode(CodeUnpinned), "")
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
func (r *Replicator) serve(ctx context.Context, p *peer, conn *quic.Conn) {
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

func (r *Replicator) receive(ctx context.Context, p *peer, conn *quic.Conn) error {
	greeting, cancel := context.WithTimeout(ctx, r.o.HandshakeTimeout)
	defer cancel()
	control, err := conn.AcceptStream(greeting)
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
