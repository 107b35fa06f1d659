package transport

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// tlsStream is one connection of a session. Its end in one direction is TLS's own
// (close_notify), so that a cut is never taken for one.
type tlsStream struct {
	*tls.Conn
	c     *tlsConn
	raw   net.Conn
	ahead []byte        // was read before anybody asked
	below *wide         // what is written to a lane is gathered there; nil: it is none
	gone  chan struct{} // closed when a lane has ended; nil: it is none

	mu           sync.Mutex // guards all below
	read, closed bool       // to the end; our direction
}

func (s *tlsStream) Read(b []byte) (int, error) {
	if len(s.ahead) > 0 {
		n := copy(b, s.ahead)
		s.ahead = s.ahead[n:]
		return n, nil
	}
	n, err := s.Conn.Read(b)
	if err == io.EOF {
		s.over(&s.read)
	}
	return n, s.why(err)
}

// peek waits for the first byte.
func (s *tlsStream) peek() error {
	b := make([]byte, 1)
	n, err := s.Conn.Read(b)
	s.ahead = b[:n]
	return err
}

func (s *tlsStream) Write(b []byte) (int, error) {
	if s.below == nil {
		n, err := s.Conn.Write(b)
		return n, s.why(err)
	}
	n, err := s.below.gather(func() (int, error) { return s.Conn.Write(b) })
	return n, s.why(err)
}

// Close ends this direction. The connection is let go of when the other end has closed
// too: what was written is there then.
func (s *tlsStream) Close() error {
	err := s.why(s.Conn.CloseWrite())
	s.over(&s.closed)
	return err
}

// over notes the end of one direction; after both the connection goes.
func (s *tlsStream) over(direction *bool) {
	s.mu.Lock()
	*direction = true
	both := s.read && s.closed
	s.mu.Unlock()
	if both {
		s.c.drop(s)
		_ = s.raw.Close() // nil or already closed
	}
}

// Cancel cuts the connection: the other end reads an error, not an end.
func (s *tlsStream) Cancel() {
	s.c.drop(s)
	abort(s.raw)
}

// watch waits for a lane's end. Nothing is ever said on the way back but that: a write
// alone would notice only the next time that there is something to write.
func (s *tlsStream) watch() {
	defer close(s.gone)
	_, err := s.Conn.Read(make([]byte, 1))
	switch {
	case s.c.reason() != nil: // the session lets go of it, once the other end has heard
	case err == io.EOF:
		s.over(&s.read)
	default:
		s.Cancel()
	}
}

func (s *tlsStream) Gone() <-chan struct{} { return s.gone }

// why is err, or why the session has ended.
func (s *tlsStream) why(err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	if ended := s.c.reason(); ended != nil {
		return ended
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return tlsError(err)
}

// abort closes a connection so that the other end reads an error.
func abort(raw net.Conn) {
	if t, ok := raw.(*net.TCPConn); ok {
		_ = t.SetLinger(0) // fails where it is closed already
	}
	_ = raw.Close()
}

// unsentBytes wait in the kernel for a lane at most: what waits there can go over no
// other lane.
const unsentBytes = 256 << 10

// tune makes a connection notice a dead path in o.IdleTimeout and take no more than it
// sends; where the kernel has BBR, loss does not slow it down.
func tune(raw net.Conn, o Options) {
	t, ok := raw.(*net.TCPConn)
	if !ok {
		return
	}
	_ = t.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: o.IdleTimeout / 3, Interval: o.IdleTimeout / 3, Count: 3}) // the kernel's own otherwise
	control(t, func(fd int) {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(max(o.IdleTimeout, time.Millisecond)/time.Millisecond)) // likewise
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsentBytes)                                               // likewise
		_ = unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, "bbr")                                                     // CUBIC otherwise
	})
}

// measure asks the kernel about a connection.
func measure(raw net.Conn) Stats {
	var s Stats
	if t, ok := raw.(*net.TCPConn); ok {
		control(t, func(fd int) {
			if i, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
				s = Stats{RTT: time.Duration(i.Rtt) * time.Microsecond, Sent: i.Bytes_sent, Lost: i.Bytes_retrans, Window: uint64(i.Snd_cwnd) * uint64(i.Snd_mss)}
				if i.Min_rtt != ^uint32(0) { // none was measured
					s.MinRTT = time.Duration(i.Min_rtt) * time.Microsecond
				}
			}
		})
	}
	return s
}

func control(t *net.TCPConn, f func(fd int)) {
	raw, err := t.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) { f(int(fd)) }) // fails where it is closed
}
