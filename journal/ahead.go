package journal

import (
	"bytes"
	"io"
)

// Small frames are streamed out of one read of many: a peer that is far behind a lone
// writer would otherwise cost several reads a frame. Large ones are read as they are
// sent, and the kernel is told some MiB before. Neither goes beyond the durable end:
// what lies there may be half written, and changes.
const (
	aheadBytes  = 256 << 10 // of small frames, in memory
	aheadFrame  = 64 << 10  // is small
	prefetched  = 4 << 20   // bytes that the kernel is to have at hand
	prefetchGap = 1 << 20   // left of them when it is asked for more
)

// ahead is what a Stream has read of a segment.
type ahead struct {
	at    spot   // of buf
	buf   []byte // durable frames
	mem   []byte // that buf lies in
	small bool   // the last frame was
	asked spot   // where what the kernel was asked for ends
}

// from is what was read from a place on; nil: nothing.
func (a *ahead) from(at spot) []byte {
	skip := at.offset - a.at.offset
	if at.segment != a.at.segment || skip < 0 || skip >= int64(len(a.buf)) {
		return nil
	}
	return a.buf[skip:]
}

// frame is header and records of the frame at s.at, and all of it where it was read;
// both are valid until the next call.
func (s *Stream) frame() (h frameHeader, meta, whole []byte, err error) {
	b := s.ahead.from(s.at)
	if len(b) < pageBytes && s.ahead.small {
		b = s.readAhead()
	}
	for range 2 {
		if len(b) < pageBytes {
			break
		}
		if h, err = decodeFrameHeader(b[:pageBytes]); err != nil || h.MetaBytes > len(b) || h.Bytes > aheadFrame {
			break
		}
		if h.Bytes <= int64(len(b)) {
			return h, b[:h.MetaBytes], b[:h.Bytes], checkMeta(h, b[:h.MetaBytes])
		}
		b = s.readAhead() // it began at the end of what was read
	}
	h, meta, err = s.j.segs.frameAt(s.at.segment, s.at.offset)
	if s.ahead.small = err == nil && h.Bytes <= aheadFrame; err == nil && !s.ahead.small {
		s.prefetch(h.Bytes)
	}
	return h, meta, nil, err
}

// durableHere is how many bytes from s.at on are durable in its segment, at most limit.
func (s *Stream) durableHere(limit int64) int64 {
	s.j.mu.Lock()
	defer s.j.mu.Unlock()
	switch d := s.j.durableLocked(); {
	case d.Segment > s.at.segment:
		return limit
	case d.Segment == s.at.segment:
		return min(max(d.Offset-s.at.offset, 0), limit)
	}
	return 0
}

// readAhead reads from s.at on; what cannot be read now is read, or missed, later.
func (s *Stream) readAhead() []byte {
	a := &s.ahead
	a.buf = nil
	n := s.durableHere(aheadBytes)
	f, err := s.j.segs.acquire(s.at.segment)
	if n < pageBytes || err != nil {
		if err == nil {
			s.j.segs.release(f)
		}
		return nil
	}
	defer s.j.segs.release(f)
	if a.mem == nil {
		a.mem = make([]byte, aheadBytes)
	}
	got, err := f.ReadAt(a.mem[:n], s.at.offset)
	if err != nil && err != io.EOF {
		return nil
	}
	a.at, a.buf = s.at, a.mem[:got]
	return a.buf
}

// prefetch has the kernel read what follows on a frame of n bytes at s.at.
func (s *Stream) prefetch(n int64) {
	from := s.at.offset
	if a := s.ahead.asked; a.segment == s.at.segment && a.offset > from {
		if from = a.offset; from > s.at.offset+n+prefetchGap {
			return
		}
	}
	end := s.at.offset + s.durableHere(n+prefetched)
	f, err := s.j.segs.acquire(s.at.segment)
	if end <= from || err != nil {
		if err == nil {
			s.j.segs.release(f)
		}
		return
	}
	defer s.j.segs.release(f)
	_ = f.Prefetch(from, end-from) // it is read without, too
	s.ahead.asked = spot{segment: s.at.segment, offset: end}
}

// reader is the bytes of the frame at at, which is whole if it was read ahead.
func (s *Stream) reader(at spot, h frameHeader, whole []byte) io.Reader {
	if whole != nil {
		return bytes.NewReader(whole)
	}
	return io.LimitReader(&sectionOf{s.j.segs, at.segment, at.offset}, h.Bytes)
}
