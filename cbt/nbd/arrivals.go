package nbd

import (
	"errors"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// errNothingYet says that reading would have to wait.
var errNothingYet = errors.New("nothing has arrived yet")

// arrivals is the reading side of a connection: one that can look for what is there
// without waiting for more. It is one goroutine's at a time.
type arrivals struct {
	conn net.Conn
	raw  syscall.RawConn // nil: it cannot look
	now  bool            // Read waits for nothing: errNothingYet

	look func(fd uintptr) bool // given to raw; what follows is its input and output
	p    []byte
	n    int
	err  error
}

func newArrivals(c net.Conn) *arrivals {
	a := &arrivals{conn: c}
	if u, ok := c.(*net.UnixConn); ok {
		if raw, err := u.SyscallConn(); err == nil {
			a.raw = raw
		}
	}
	a.look = func(fd uintptr) bool {
		a.n, a.err = unix.Read(int(fd), a.p) // the runtime's sockets never block
		return true
	}
	return a
}

// Read implements io.Reader.
func (a *arrivals) Read(p []byte) (int, error) {
	if !a.now {
		return a.conn.Read(p)
	}
	if a.raw == nil || len(p) == 0 {
		return 0, errNothingYet
	}
	a.p = p
	err := a.raw.Read(a.look)
	a.p = nil
	if err != nil || a.err != nil || a.n <= 0 {
		return 0, errNothingYet // an end or an error is met again by who waits
	}
	return a.n, nil
}
