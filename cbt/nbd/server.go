package nbd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"
)

// ServerOptions say what a Server offers and how much a client may take.
type ServerOptions struct {
	// Lookup opens the export that a client named. It is called once for each
	// GO, INFO and EXPORT_NAME, never earlier. An error that wraps
	// ErrUnknownExport tells the client so; any other is refused as policy.
	Lookup func(ctx context.Context, name string) (*Export, error)
	// List names the exports for LIST; nil refuses it.
	List func() []string

	MaxConnections   int           // default 128; further ones are closed at once
	MaxOptions       int           // per connection; default 32
	HandshakeTimeout time.Duration // from accept to transmission; default 10 s
	MaxInFlight      int           // requests per connection; default 128
	MaxInFlightBytes int64         // payload bytes per connection; default and least 64 MiB
	Grace            time.Duration // in flight when Serve ends; default 500 ms
	Drain            time.Duration // after Grace, for cancelled ones; default 2 s
	// PeerUIDs, when not empty, are the users that may connect to a unix socket.
	PeerUIDs []uint32

	Log    *slog.Logger // nil: silent
	Events Events
}

func (o ServerOptions) withDefaults() ServerOptions {
	orInt := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	orTime := func(v *time.Duration, d time.Duration) {
		if *v <= 0 {
			*v = d
		}
	}
	orInt(&o.MaxConnections, 128)
	orInt(&o.MaxOptions, 32)
	orInt(&o.MaxInFlight, 128)
	o.MaxInFlightBytes = max(o.MaxInFlightBytes, 2*maxPayloadBytes)
	orTime(&o.HandshakeTimeout, 10*time.Second)
	orTime(&o.Grace, 500*time.Millisecond)
	orTime(&o.Drain, 2*time.Second)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// linger is how long a closing connection may take to hear the last replies.
func (o ServerOptions) linger() time.Duration { return min(o.Grace, 200*time.Millisecond) }

// Server answers clients. One Server may serve several listeners at once.
type Server struct {
	opts    ServerOptions
	buffers bufferPool

	mu    sync.Mutex // guards conns
	conns int
}

// NewServer prepares a server; Serve starts it.
func NewServer(o ServerOptions) *Server { return &Server{opts: o.withDefaults()} }

// Serve answers the clients of l until ctx ends, then closes l, drains every
// connection for at most Grace, Drain and a moment, and returns. It returns nil
// then, ErrStuck when a device still holds requests, or the listener's error.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	serving, cancel := context.WithCancel(ctx)
	defer cancel()
	// Closing a unix listener removes its file; that must not happen after Serve
	// has returned, when another may listen there.
	closed := make(chan struct{})
	context.AfterFunc(serving, func() {
		defer close(closed)
		l.Close()
	})
	var conns sync.WaitGroup
	var stuck sync.Once
	var stuckErr error
	err := s.accept(serving, l, func(c net.Conn) {
		conns.Go(func() {
			defer s.leave()
			if err := s.handle(serving, c); errors.Is(err, ErrStuck) {
				stuck.Do(func() { stuckErr = err })
			}
		})
	})
	cancel()
	<-closed
	conns.Wait()
	return errors.Join(err, stuckErr)
}

// accept hands connections to handle until the listener ends.
func (s *Server) accept(ctx context.Context, l net.Listener, handle func(net.Conn)) error {
	const longestPause = time.Second
	pause := 5 * time.Millisecond
	for {
		c, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				c.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept nbd connection: %w", err)
		case err != nil:
			// Out of descriptors, most likely: it passes when a client leaves.
			s.opts.Log.Warn("accept nbd connection", "error", err, "retry_in", pause)
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
			pause = min(2*pause, longestPause)
			continue
		}
		pause = 5 * time.Millisecond
		if !s.enter() {
			s.refused(c, errTooManyConnections)
			c.Close()
			continue
		}
		handle(c)
	}
}

func (s *Server) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns >= s.opts.MaxConnections {
		return false
	}
	s.conns++
	return true
}

func (s *Server) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns--
}

// handle is the root of a connection's goroutines.
func (s *Server) handle(ctx context.Context, c net.Conn) error {
	defer c.Close()
	if err := peerAllowed(c, s.opts.PeerUIDs); err != nil {
		s.refused(c, err)
		return err
	}
	in := newArrivals(c)
	r := bufio.NewReaderSize(in, readerBytes)
	n, err := s.handshake(ctx, c, r)
	if err != nil {
		s.refused(c, err)
		return err
	}
	remote, name := remoteName(c), n.export.Name
	s.opts.Log.Info("nbd export opened", "remote", remote, "export", name)
	if f := s.opts.Events.Opened; f != nil {
		f(remote, name)
	}
	ss := newSession(s, c, in, r, n)
	over, drained := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(drained)
		select {
		case <-ctx.Done():
			ss.drain(over)
		case <-over:
		}
	}()
	err = ss.run()
	close(over)
	<-drained
	switch {
	case err == nil:
	case ctx.Err() != nil:
		err = fmt.Errorf("%w: %w", ErrShutdown, err)
	default:
		err = fmt.Errorf("%w: %w", ErrDisconnected, err)
	}
	s.opts.Log.Info("nbd export closed", "remote", remote, "export", name, "reason", reason(err))
	if f := s.opts.Events.Closed; f != nil {
		f(remote, name, err)
	}
	return err
}

// handshake negotiates within the time limit and ends when ctx does.
func (s *Server) handshake(ctx context.Context, c net.Conn, r *bufio.Reader) (negotiated, error) {
	if err := c.SetDeadline(time.Now().Add(s.opts.HandshakeTimeout)); err != nil {
		return negotiated{}, err
	}
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	h := haggler{srv: s, ctx: ctx, w: c, r: r, peer: remoteName(c)}
	n, err := h.run()
	if !stop() && err == nil {
		err = ErrShutdown
	}
	if err != nil {
		n.close()
		return negotiated{}, err
	}
	return n, c.SetDeadline(time.Time{})
}

func (s *Server) refused(c net.Conn, err error) {
	if errors.Is(err, io.EOF) || errors.Is(err, errAborted) {
		s.opts.Log.Debug("nbd connection ended in negotiation", "remote", remoteName(c), "reason", err)
	} else {
		s.opts.Log.Warn("nbd connection refused", "remote", remoteName(c), "reason", err)
	}
	if f := s.opts.Events.Refused; f != nil {
		f(remoteName(c), err)
	}
}

func reason(err error) string {
	if err == nil {
		return "farewell"
	}
	return err.Error()
}

func remoteName(c net.Conn) string {
	if a := c.RemoteAddr(); a != nil && a.String() != "" && a.String() != "@" {
		return a.String()
	}
	return "local"
}
