package nbd_test

import (
	"bytes"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"
)

// scripted is a connection whose other end says what a script holds, then ends.
// Bytes from gate on are withheld until the near end has written heads messages.
type scripted struct {
	mu     sync.Mutex // guards all below
	change *sync.Cond
	in     []byte
	at     int
	gate   int
	heads  int
	out    bytes.Buffer
	closed bool
}

func script(in []byte) *scripted {
	s := &scripted{in: in, gate: len(in)}
	s.change = sync.NewCond(&s.mu)
	return s
}

func (s *scripted) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.at >= s.gate && s.heads > 0 && !s.closed {
		s.change.Wait()
	}
	if s.closed || s.at == len(s.in) {
		return 0, io.EOF
	}
	end := len(s.in)
	if s.heads > 0 {
		end = s.gate
	}
	n := copy(p, s.in[s.at:end])
	s.at += n
	return n, nil
}

func (s *scripted) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0, net.ErrClosed
	}
	// A request's head is the only thing of 28 bytes that begins like this.
	if len(p) == 28 && bytes.HasPrefix(p, []byte{0x25, 0x60, 0x95, 0x13}) {
		s.heads--
		s.change.Broadcast()
	}
	return s.out.Write(p)
}

func (s *scripted) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.change.Broadcast()
	return nil
}

func (*scripted) LocalAddr() net.Addr              { return &net.UnixAddr{} }
func (*scripted) RemoteAddr() net.Addr             { return &net.UnixAddr{} }
func (*scripted) SetDeadline(time.Time) error      { return nil }
func (*scripted) SetReadDeadline(time.Time) error  { return nil }
func (*scripted) SetWriteDeadline(time.Time) error { return nil }

// handed is a listener that hands out one connection.
type handed struct {
	conns chan net.Conn
	once  sync.Once
}

func hand1(c net.Conn) *handed {
	h := &handed{conns: make(chan net.Conn, 1)}
	h.conns <- c
	return h
}

func (h *handed) Accept() (net.Conn, error) {
	c, ok := <-h.conns
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}
func (h *handed) Close() error { h.once.Do(func() { close(h.conns) }); return nil }
func (*handed) Addr() net.Addr { return &net.UnixAddr{} }

// bounded runs f and fails when it takes more memory than limit.
func bounded(t *testing.T, limit uint64, f func()) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > limit {
		t.Errorf("%d bytes of memory were taken, more than %d", got, limit)
	}
}

// seeds counts what a fuzz target starts from.
type seeds struct {
	f *testing.F
	n int
}

func (s *seeds) add(b []byte) {
	s.f.Add(b)
	s.n++
}

func (s *seeds) enough() {
	s.f.Helper()
	s.f.Logf("%d seeds", s.n)
	if s.n < 50 {
		s.f.Fatalf("%d seeds, want 50", s.n)
	}
}

// mangle adds b, its truncations and its single-byte changes, spread evenly.
func (s *seeds) mangle(b []byte, n int) {
	s.add(b)
	for i := range n {
		at := i * len(b) / n
		s.add(b[:at])
		c := bytes.Clone(b)
		c[at] ^= 1 << (i % 8)
		s.add(c)
	}
}
