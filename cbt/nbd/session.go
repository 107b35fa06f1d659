package nbd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"
)

// session is the transmission phase of one connection.
type session struct {
	srv    *Server
	conn   net.Conn
	in     *arrivals
	r      *bufio.Reader // of in
	export *Export
	terms  terms

	ctx      context.Context // of every call of the device
	cancel   context.CancelCauseFunc
	inflight *inflight
	out      replies
	draining atomic.Bool
	stuck    chan struct{} // closed when the drain gave up on the device
	ended    chan error    // what reading ended with
	together
}

func newSession(srv *Server, conn net.Conn, in *arrivals, r *bufio.Reader, n negotiated) *session {
	s := &session{
		srv: srv, conn: conn, in: in, r: r, export: n.export, terms: n.terms(),
		inflight: newInflight(srv.opts.MaxInFlight, srv.opts.MaxInFlightBytes),
		stuck:    make(chan struct{}),
		ended:    make(chan error, 1),
	}
	s.prompt, _ = n.export.Device.(Prompt)
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	s.out = replies{conn: conn, fail: func(error) { conn.Close() }}
	return s
}

// run serves until the client leaves or the connection fails, and returns when
// every request has ended or the drain has given up on them. Release is called
// even then, when the last one ends.
func (s *session) run() error {
	err := s.reading()
	if err != nil {
		s.cancel(fmt.Errorf("%w: %w", ErrDisconnected, err))
	}
	idle := s.inflight.whenIdle()
	var release func()
	if s.export.Release != nil {
		release = s.export.Release
	} else {
		release = func() {}
	}
	select {
	case <-idle:
		release()
	case <-s.stuck:
		go func() {
			<-idle
			release()
		}()
		err = errors.Join(err, ErrStuck)
	}
	s.cancel(ErrDisconnected)
	s.conn.Close()
	return err
}

// reading returns what reading ended with, whoever did it last.
func (s *session) reading() error {
	if s.prompt == nil {
		s.read()
		return <-s.ended
	}
	stop := s.prompt.LetGo(s.takeOver)
	defer stop()
	go s.read()
	select {
	case err := <-s.ended:
		return err
	case <-s.stuck:
	}
	linger := time.NewTimer(2 * s.srv.opts.linger()) // for the last replies to be heard
	defer linger.Stop()
	select {
	case err := <-s.ended:
		return err
	case <-linger.C: // the one who reads is held up by the device
		return ErrStuck
	}
}

// read takes requests until the client says farewell (nil) or cannot be heard, and
// tells ended; or a stand-in takes over, who does.
func (s *session) read() {
	for {
		if !s.more() && !s.settle() {
			return
		}
		on, err := s.request()
		if on && err == nil {
			continue
		}
		if s.settle() {
			s.ended <- err
		}
		return
	}
}

// request takes one request; on is false after the last one.
func (s *session) request() (on bool, err error) {
	var head [requestBytes]byte
	if _, err := io.ReadFull(s.r, head[:]); err != nil {
		return false, fmt.Errorf("read request: %w", err)
	}
	q, err := parseRequest(&head)
	if err != nil || q.cmd == cmdDisconnect {
		return false, err
	}
	errno, text := s.terms.judge(q)
	if errno == 0 && s.draining.Load() {
		errno, text = ESHUTDOWN, ErrShutdown.Error()
	}
	if errno != 0 && q.cmd == cmdWrite {
		if err := discard(s.r, int64(q.length)); err != nil {
			return false, err
		}
	}
	if errno == 0 {
		if done, err := s.begin(q); done {
			return true, err
		}
	}
	t := s.inflight.begin(q, errno == 0)
	if t == nil {
		return false, net.ErrClosed
	}
	if errno != 0 {
		t.answered.Store(true)
		go s.answer(t, errorReply(q, s.terms.structured, errno, text), false)
		return true, nil
	}
	if q.cmd == cmdWrite {
		t.payload = s.srv.buffers.get(int(q.length))
		if _, err := io.ReadFull(s.r, t.payload.bytes); err != nil {
			if t.ended != nil {
				close(t.ended)
			}
			s.inflight.end(t, true)
			return false, fmt.Errorf("read payload of write: %w", err)
		}
	}
	go s.serve(t)
	return true, nil
}

// serve runs t against the device and answers it.
func (s *session) serve(t *task) {
	for _, ended := range t.before {
		<-ended
	}
	start := time.Now()
	r, err := s.call(t)
	if f := s.srv.opts.Events.Request; f != nil {
		f(RequestInfo{Export: s.export.Name, Command: commandName(t.cmd), Extent: t.extent(), Duration: time.Since(start), Err: err})
	}
	if err != nil {
		// Somebody behind the device may still hold a write's payload.
		t.payload = nil
		r = errorReply(t.request, s.terms.structured, errnoOf(s.ctx, err), err.Error())
	}
	if !t.answered.CompareAndSwap(false, true) {
		// The drain answered in our place; the device is let go of quietly.
		if t.ended != nil {
			close(t.ended)
		}
		s.inflight.end(t, true)
		return
	}
	s.answer(t, r, true)
}

// call is the device's part. Requests without length are done without it.
func (s *session) call(t *task) (*reply, error) {
	d, fua := s.export.Device, t.flags&cmdFlagFUA != 0
	var err error
	switch {
	case t.cmd == cmdFlush:
		err = d.Flush(s.ctx)
	case t.cmd == cmdRead:
		t.payload = s.srv.buffers.get(int(t.length))
		if t.length > 0 {
			err = d.ReadAt(s.ctx, t.payload.bytes, int64(t.offset))
		}
		if err == nil && s.terms.structured {
			return dataReply(t.request, t.payload.bytes), nil
		}
		if err == nil {
			return simpleReply(t.request, 0, t.payload.bytes), nil
		}
	case t.cmd == cmdBlockStatus:
		return statusReply(s.ctx, d, t.request)
	case t.length == 0:
	case t.cmd == cmdWrite:
		err = d.WriteAt(s.ctx, t.payload.bytes, int64(t.offset), fua)
	case t.cmd == cmdWriteZeroes:
		err = d.Zero(s.ctx, t.extent(), fua, t.flags&cmdFlagNoHole != 0)
	case t.cmd == cmdTrim:
		err = d.Trim(s.ctx, t.extent(), fua)
	}
	if err != nil {
		return nil, err
	}
	return simpleReply(t.request, 0, nil), nil
}

// answer queues r, lets the changes that waited for t go, and sends. Room is
// given back only when the reply has left, so a client that does not read
// cannot make replies pile up.
func (s *session) answer(t *task, r *reply, good bool) {
	r.sent = func() {
		s.srv.buffers.put(t.payload)
		s.inflight.end(t, good)
	}
	sender := s.out.add(r)
	if t.ended != nil {
		close(t.ended)
	}
	if sender {
		s.out.flush()
	}
}

// drain ends the session from the server's side: grace for what is in flight,
// then a cancelled context, then ESHUTDOWN in the device's place. over is
// closed when the session has ended by itself.
func (s *session) drain(over <-chan struct{}) {
	s.draining.Store(true)
	idle := s.inflight.whenIdle()
	wait := func(d time.Duration) bool {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-idle:
			return true
		case <-over:
			return true
		case <-t.C:
			return false
		}
	}
	if !wait(s.srv.opts.Grace) {
		s.cancel(ErrShutdown)
		if !wait(s.srv.opts.Drain) {
			s.abandon()
		}
	}
	s.inflight.close()
	// Half-close first: closing with unread requests in the socket would reset
	// the connection and take the last replies with it.
	if c, ok := s.conn.(interface{ CloseWrite() error }); ok && c.CloseWrite() == nil {
		s.conn.SetReadDeadline(time.Now().Add(s.srv.opts.linger()))
		return
	}
	s.conn.Close()
}

// abandon answers ESHUTDOWN for every request that its device still holds.
func (s *session) abandon() {
	s.conn.SetWriteDeadline(time.Now().Add(s.srv.opts.linger()))
	for _, t := range s.inflight.unanswered() {
		r := errorReply(t.request, s.terms.structured, ESHUTDOWN, "server closes and the device does not answer")
		r.sent = func() {}
		if s.out.add(r) {
			s.out.flush()
		}
	}
	close(s.stuck)
}
