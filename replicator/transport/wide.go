package transport

import (
	"net"
	"sync"
)

// wideBytes hold four of TLS's largest records, as much as the kernel takes in one go.
const wideBytes = 66 << 10

// wide is the connection below TLS's records. Those of a lane go out, and come in, several
// at a time: a call for each of them costs as much as all that TLS does.
type wide struct {
	net.Conn

	in   []byte // was read and is yet to be taken; its reader's alone, as room is
	room []byte // that in lies in; nil: what is read is not gathered

	mu        sync.Mutex // guards all below
	out       []byte     // waits to be written
	gathering bool
}

// widen has reads gather from now on. The reader calls it, or whoever makes it one.
func (w *wide) widen() { w.room = make([]byte, wideBytes) }

func (w *wide) Read(p []byte) (int, error) {
	if len(w.in) == 0 {
		if len(p) >= len(w.room) {
			return w.Conn.Read(p)
		}
		n, err := w.Conn.Read(w.room)
		if n == 0 {
			return 0, err
		}
		w.in = w.room[:n] // what else was to be said is said again
	}
	n := copy(p, w.in)
	w.in = w.in[n:]
	return n, nil
}

// gather has what write writes wait until there is enough of it, or write is over.
func (w *wide) gather(write func() (int, error)) (int, error) {
	w.mu.Lock()
	w.gathering = true
	if w.out == nil {
		w.out = make([]byte, 0, wideBytes)
	}
	w.mu.Unlock()
	n, err := write()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.gathering = false
	if ferr := w.flushLocked(); err == nil {
		err = ferr
	}
	return n, err
}

func (w *wide) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.gathering {
		return w.Conn.Write(p)
	}
	if len(w.out)+len(p) > cap(w.out) {
		if err := w.flushLocked(); err != nil {
			return 0, err
		}
	}
	if len(p) > cap(w.out) {
		return w.Conn.Write(p)
	}
	w.out = append(w.out, p...)
	return len(p), nil
}

func (w *wide) flushLocked() error {
	p := w.out
	w.out = p[:0]
	if len(p) == 0 {
		return nil
	}
	_, err := w.Conn.Write(p)
	return err
}
