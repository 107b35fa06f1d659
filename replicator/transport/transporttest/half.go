package transporttest

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"
)

var (
	// errCancelled is what one end reads when the other gave a stream up.
	errCancelled = errors.New("the other end gave the stream up")
	// errEnded stands for what each end's conn says of its own end.
	errEnded = errors.New("connection ended")
)

// half is one direction of a stream: a bounded queue of bytes.
type half struct {
	limit int
	gone  chan struct{} // closed with err

	mu      sync.Mutex // guards all below
	changed *sync.Cond
	buf     []byte
	ended   bool  // closed by the writer
	err     error // given up, or the connection has ended
	read    moment
	write   moment
}

// moment is a deadline.
type moment struct {
	at    time.Time
	timer *time.Timer
}

func (m *moment) passed() bool { return !m.at.IsZero() && !time.Now().Before(m.at) }

func newHalf(limit int) *half {
	h := &half{limit: limit, gone: make(chan struct{})}
	h.changed = sync.NewCond(&h.mu)
	return h
}

func (h *half) Read(b []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case h.err != nil:
			return 0, h.err
		case len(b) == 0:
			return 0, nil
		case len(h.buf) > 0:
			n := copy(b, h.buf)
			h.buf = h.buf[n:]
			h.changed.Broadcast()
			return n, nil
		case h.ended:
			return 0, io.EOF
		case h.read.passed():
			return 0, os.ErrDeadlineExceeded
		}
		h.changed.Wait()
	}
}

func (h *half) Write(b []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 0
	for {
		switch {
		case h.err != nil:
			return n, h.err
		case h.ended:
			return n, io.ErrClosedPipe
		case n == len(b):
			return n, nil
		case h.write.passed():
			return n, os.ErrDeadlineExceeded
		}
		if room := min(h.limit-len(h.buf), len(b)-n); room > 0 {
			h.buf = append(h.buf, b[n:n+room]...)
			n += room
			h.changed.Broadcast()
			continue
		}
		h.changed.Wait()
	}
}

// end is the writer's: all is said.
func (h *half) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ended = true
	h.changed.Broadcast()
}

// fail ends it for both; the first reason counts.
func (h *half) fail(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err == nil {
		h.err = err
		close(h.gone)
	}
	h.changed.Broadcast()
}

// until sets a deadline, which is one of h's.
func (h *half) until(m *moment, at time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if m.timer != nil {
		m.timer.Stop()
		m.timer = nil
	}
	m.at = at
	if !at.IsZero() {
		m.timer = time.AfterFunc(time.Until(at), func() {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.changed.Broadcast()
		})
	}
	h.changed.Broadcast()
}

// stream is both directions at one end; lanes have one of them.
type stream struct {
	c       *conn
	in, out *half
}

func (s stream) Read(b []byte) (int, error) {
	n, err := s.in.Read(b)
	return n, s.why(err)
}

func (s stream) Write(b []byte) (int, error) {
	n, err := s.out.Write(b)
	return n, s.why(err)
}

func (s stream) why(err error) error {
	if err == errEnded {
		return s.c.reason()
	}
	return err
}

func (s stream) Close() error {
	s.out.end()
	return nil
}

func (s stream) Gone() <-chan struct{} { return s.out.gone }

func (s stream) Cancel() {
	for _, h := range []*half{s.in, s.out} {
		if h != nil {
			h.fail(errCancelled)
		}
	}
}

func (s stream) SetReadDeadline(t time.Time) error {
	s.in.until(&s.in.read, t)
	return nil
}

func (s stream) SetWriteDeadline(t time.Time) error {
	s.out.until(&s.out.write, t)
	return nil
}

func (s stream) SetDeadline(t time.Time) error {
	return errors.Join(s.SetReadDeadline(t), s.SetWriteDeadline(t))
}
