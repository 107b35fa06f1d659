package stormtest

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"
)

// errCancelled is what one end reads when the other gave a stream up.
var errCancelled = errors.New("the other end gave the stream up")

// pieceBytes is the most that travels together.
const pieceBytes = 16 << 10

// piece is a part of a stream that is on its way, or waits for one before it.
type piece struct {
	b       []byte
	end     bool
	arrived bool
}

// stream is one end of a stream. All below number is guarded by the network's mu.
type stream struct {
	c      *conn
	other  *stream
	number uint64
	limit  int
	queue  chan *stream // where it is announced; nil once it is

	changed *sync.Cond
	err     error // given up
	over    bool
	gone    chan struct{} // closed when it is over

	writes  bool
	posted  uint64
	unread  int // bytes that were written and not read at the other end
	ended   bool
	reads   bool
	pieces  []*piece // to come, in order
	buf     []byte   // that can be read
	eof     bool
	readBy  moment
	writeBy moment
}

// moment is a deadline.
type moment struct {
	at    time.Time
	timer *time.Timer
}

func (m *moment) passed() bool { return !m.at.IsZero() && !time.Now().Before(m.at) }

func newStreams(c *conn, number uint64, kind, limit int) (ours, theirs *stream) {
	make1 := func(c *conn) *stream {
		s := &stream{c: c, number: number, limit: limit, gone: make(chan struct{})}
		s.changed = sync.NewCond(&c.at.n.mu)
		c.halves = append(c.halves, s)
		return s
	}
	ours, theirs = make1(c), make1(c.other)
	ours.other, theirs.other = theirs, ours
	ours.writes, theirs.reads = true, true
	ours.reads, theirs.writes = kind != aLane, kind != aLane
	return ours, theirs
}

func (s *stream) wakeLocked() {
	s.changed.Broadcast()
	if s.whyLocked() != nil && !s.over {
		s.over = true
		close(s.gone)
	}
}

func (s *stream) Gone() <-chan struct{} { return s.gone }

// whyLocked is why nothing can be done with s any more.
func (s *stream) whyLocked() error {
	if s.c.err != nil {
		return s.c.err
	}
	return s.err
}

// sendLocked has something happen at the other end, where it announces the stream.
func (s *stream) sendLocked(arrive func()) {
	s.posted++
	s.c.postLocked(func() {
		o := s.other
		if o.c.err != nil {
			return
		}
		if o.queue != nil {
			select {
			case o.queue <- o:
			default:
			}
			o.queue = nil
		}
		arrive()
		o.wakeLocked()
	}, s.number, s.posted)
}

// pieceLocked sends p, which is read once all before it have arrived.
func (s *stream) pieceLocked(p *piece) {
	o := s.other
	o.pieces = append(o.pieces, p)
	s.sendLocked(func() {
		p.arrived = true
		for len(o.pieces) > 0 && o.pieces[0].arrived {
			o.buf = append(o.buf, o.pieces[0].b...)
			o.eof = o.eof || o.pieces[0].end
			o.pieces = o.pieces[1:]
		}
	})
}

func (s *stream) Write(b []byte) (int, error) {
	n := s.c.at.n
	n.mu.Lock()
	defer n.mu.Unlock()
	done := 0
	for {
		err := s.whyLocked()
		switch {
		case err != nil:
			return done, err
		case s.ended:
			return done, io.ErrClosedPipe
		case done == len(b):
			return done, nil
		case s.writeBy.passed():
			return done, os.ErrDeadlineExceeded
		}
		if room := min(s.limit-s.unread, len(b)-done, pieceBytes); room > 0 {
			s.pieceLocked(&piece{b: append([]byte(nil), b[done:done+room]...)})
			done += room
			s.unread += room
			continue
		}
		s.changed.Wait()
	}
}

func (s *stream) Read(b []byte) (int, error) {
	n := s.c.at.n
	n.mu.Lock()
	defer n.mu.Unlock()
	for {
		err := s.whyLocked()
		switch {
		case err != nil:
			return 0, err
		case len(b) == 0:
			return 0, nil
		case len(s.buf) > 0:
			k := copy(b, s.buf)
			s.buf = s.buf[k:]
			s.readLocked(k)
			return k, nil
		case s.eof:
			return 0, io.EOF
		case s.readBy.passed():
			return 0, os.ErrDeadlineExceeded
		}
		s.changed.Wait()
	}
}

// readLocked tells the writer that there is room for k more bytes. It hears of it at
// once: a real one grants more than it has heard of, too.
func (s *stream) readLocked(k int) {
	s.other.unread -= k
	s.other.wakeLocked()
}

func (s *stream) Close() error {
	s.c.at.n.mu.Lock()
	defer s.c.at.n.mu.Unlock()
	if s.whyLocked() == nil && !s.ended {
		s.ended = true
		s.pieceLocked(&piece{end: true})
	}
	return nil
}

func (s *stream) Cancel() {
	s.c.at.n.mu.Lock()
	defer s.c.at.n.mu.Unlock()
	if s.whyLocked() != nil {
		return
	}
	s.err = errCancelled
	s.wakeLocked()
	if s.c.err == nil {
		s.sendLocked(func() {
			if s.other.err == nil && !(s.other.reads && !s.other.writes && s.other.eof && len(s.other.buf) == 0) {
				s.other.err = errCancelled
			}
		})
	}
}

// until sets a deadline.
func (s *stream) until(m *moment, at time.Time) {
	n := s.c.at.n
	n.mu.Lock()
	defer n.mu.Unlock()
	m.timer, m.at = stop(m.timer), at
	if !at.IsZero() {
		m.timer = time.AfterFunc(time.Until(at), func() {
			n.mu.Lock()
			defer n.mu.Unlock()
			s.wakeLocked()
		})
	}
	s.wakeLocked()
}

func (s *stream) SetReadDeadline(t time.Time) error {
	s.until(&s.readBy, t)
	return nil
}

func (s *stream) SetWriteDeadline(t time.Time) error {
	s.until(&s.writeBy, t)
	return nil
}

func (s *stream) SetDeadline(t time.Time) error {
	s.until(&s.readBy, t)
	s.until(&s.writeBy, t)
	return nil
}
