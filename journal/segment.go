package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// A segment is one append-only file of frames. Page 0 is its header, the page
// after the last frame its trailer once it is sealed.
//
//	header:  | "AiSg" | ver 2 | len 2 | 3 masks | crc 4 | number 8 |
//	   32    | tenant | group | stream | epoch id (16 each)
//	   96    | epoch number 8 | first seq 8 | chain 32 | created 8 | chain seq 8 | zeros …
//	trailer: | "AiTr" | ver 2 | len 2 | 3 masks | crc 4 | number 8 |
//	   32    | tenant | group | stream | epoch id (16 each)
//	   96    | epoch number 8 | last seq 8 | chain 32 | sealed 8 | chain seq 8 | zeros …
//
// Both are CRC32C over the page with the crc zero. Chain is, as in a frame, the
// value after the frame that ends at chain seq, which may lag. A segment that is recycled
// gets a new header first: frames whose epoch and seq do not follow on from it
// are of its former life.
const (
	segmentMagic = "AiSg"
	trailerMagic = "AiTr"
)

// segmentPage is a header or a trailer.
type segmentPage struct {
	Magic    string
	Features features
	Number   uint64
	Identity Identity
	Epoch    EpochID
	EpochNum uint64
	Seq      Seq // header: of the first frame; trailer: the last of the last frame
	ChainSeq Seq
	Chain    Chain
	Time     time.Time
}

func (s *segmentPage) encode() []byte {
	b := make([]byte, pageBytes)
	le := binary.LittleEndian
	copy(b, s.Magic)
	le.PutUint16(b[4:], formatVersion)
	le.PutUint16(b[6:], pageBytes)
	le.PutUint32(b[8:], s.Features.Incompat)
	le.PutUint32(b[12:], s.Features.ROCompat)
	le.PutUint32(b[16:], s.Features.Compat)
	le.PutUint64(b[24:], s.Number)
	copy(b[32:], s.Identity.Tenant[:])
	copy(b[48:], s.Identity.Group[:])
	copy(b[64:], s.Identity.Stream[:])
	copy(b[80:], s.Epoch[:])
	le.PutUint64(b[96:], s.EpochNum)
	le.PutUint64(b[104:], uint64(s.Seq))
	copy(b[112:], s.Chain[:])
	le.PutUint64(b[144:], uint64(s.Time.UnixNano()))
	le.PutUint64(b[152:], uint64(s.ChainSeq))
	le.PutUint32(b[20:], crc32.Checksum(b, castagnoli))
	return b
}

func decodeSegmentPage(b []byte, magic string) (segmentPage, error) {
	var s segmentPage
	if len(b) < pageBytes || string(b[:4]) != magic {
		return s, errNoFrame
	}
	le := binary.LittleEndian
	page := append([]byte(nil), b[:pageBytes]...)
	le.PutUint32(page[20:], 0)
	if crc32.Checksum(page, castagnoli) != le.Uint32(b[20:]) {
		return s, badFrame("checksum of segment page differs")
	}
	if v := le.Uint16(b[4:]); v != formatVersion { // not before the checksum: a flipped byte is damage
		return s, fmt.Errorf("segment version %d: %w", v, ErrIncompatible)
	}
	s = segmentPage{
		Magic: magic, Features: features{le.Uint32(b[8:]), le.Uint32(b[12:]), le.Uint32(b[16:])},
		Number: le.Uint64(b[24:]), EpochNum: le.Uint64(b[96:]), Seq: Seq(le.Uint64(b[104:])),
		Time: time.Unix(0, int64(le.Uint64(b[144:]))), ChainSeq: Seq(le.Uint64(b[152:])),
	}
	copy(s.Identity.Tenant[:], b[32:])
	copy(s.Identity.Group[:], b[48:])
	copy(s.Identity.Stream[:], b[64:])
	copy(s.Epoch[:], b[80:])
	copy(s.Chain[:], b[112:])
	return s, s.Features.check()
}

const segmentSuffix = ".seg"

func segmentName(n uint64) string { return fmt.Sprintf("%016d%s", n, segmentSuffix) }

func parseSegmentName(name string) (uint64, bool) {
	base, ok := strings.CutSuffix(name, segmentSuffix)
	if !ok || len(base) != 16 {
		return 0, false
	}
	n, err := strconv.ParseUint(base, 10, 64)
	return n, err == nil && n > 0
}

// segments opens segment files, or those of runs, for reading and keeps the last few open. It is
// safe for concurrent use.
type segments struct {
	fs   vfs.FS
	dir  string
	name func(uint64) string // of file n

	mu    sync.Mutex // guards open and tick
	open  map[uint64]*openSegment
	tick  uint64
	shut  bool   // closed for good
	floor uint64 // files below were given back: their bytes may be another file's by now

	live atomic.Uint64 // the segment that is being written
}

func newSegments(fs vfs.FS, dir string, name func(uint64) string) *segments {
	return &segments{fs: fs, dir: dir, name: name, open: make(map[uint64]*openSegment)}
}

type openSegment struct {
	vfs.File
	direct directFile
	refs   int
	used   uint64
	gone   bool          // another file has its name now: its last reader closes it
	idle   chan struct{} // closed with it, for giveBack; nil: nobody waits
}

const maxOpenSegments = 128

func (s *segments) path(n uint64) string { return s.fs.PathJoin(s.dir, s.name(n)) }

// acquire returns segment n, to be given back with release.
func (s *segments) acquire(n uint64) (*openSegment, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shut {
		return nil, ErrClosed
	}
	if n < s.floor {
		return nil, fmt.Errorf("open %s: %w", s.name(n), ErrReclaimed)
	}
	f := s.open[n]
	if f == nil {
		file, err := s.fs.Open(s.path(n))
		if err != nil {
			return nil, fmt.Errorf("open segment: %w", err)
		}
		f = &openSegment{File: file}
		s.open[n] = f
		s.evictLocked()
	}
	s.tick++
	f.refs, f.used = f.refs+1, s.tick
	return f, nil
}

func (s *segments) release(f *openSegment) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.refs--; (s.shut || f.gone) && f.refs == 0 {
		_ = f.Close() // opened for reading only
		if f.idle != nil {
			close(f.idle)
		}
	}
}

// drop lets go of segment n, whose file was moved or replaced. Reads under way end
// with the old file.
func (s *segments) drop(n uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.open[n]
	if f == nil {
		return
	}
	delete(s.open, n)
	if f.gone = true; f.refs == 0 {
		_ = f.Close() // opened for reading only
	}
}

// forget drops all files.
func (s *segments) forget() {
	s.mu.Lock()
	var ns []uint64
	for n := range s.open {
		ns = append(ns, n)
	}
	s.mu.Unlock()
	for _, n := range ns {
		s.drop(n)
	}
}

// size is the length of segment n's file.
func (s *segments) size(n uint64) (int64, error) {
	st, err := s.fs.Stat(s.path(n))
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// giveBack has nobody begin to read a file below n any more, and returns when those
// who had begun are done.
func (s *segments) giveBack(n uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.floor = max(s.floor, n)
	for k, f := range s.open {
		if k >= n {
			continue
		}
		delete(s.open, k)
		if f.refs == 0 {
			_ = f.Close() // opened for reading only
			continue
		}
		f.gone, f.idle = true, make(chan struct{})
		s.mu.Unlock()
		<-f.idle
		s.mu.Lock()
	}
}

func (s *segments) evictLocked() {
	for len(s.open) > maxOpenSegments {
		var oldest uint64
		for n, f := range s.open {
			if f.refs == 0 && f.used > 0 && (oldest == 0 || f.used < s.open[oldest].used) {
				oldest = n
			}
		}
		if oldest == 0 {
			return
		}
		_ = s.open[oldest].Close() // opened for reading only
		delete(s.open, oldest)
	}
}

func (s *segments) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shut = true
	for n, f := range s.open {
		if f.refs == 0 { // else its reader's release closes it
			_ = f.Close() // opened for reading only
		}
		delete(s.open, n)
	}
}

// readAt fills p from segment n. A file that ends early is io.ErrUnexpectedEOF.
func (s *segments) readAt(n uint64, p []byte, off int64) error {
	f, err := s.acquire(n)
	if err != nil {
		return err
	}
	defer s.release(f)
	got, err := f.ReadAt(p, off)
	if got == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// frameAt reads and checks header and records of the frame at off in segment n.
// errNoFrame means that there is none: zeros, the end of the file, or a trailer.
func (s *segments) frameAt(n uint64, off int64) (frameHeader, []byte, error) {
	first := make([]byte, pageBytes)
	if err := s.readAt(n, first, off); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, os.ErrNotExist) {
			err = fmt.Errorf("%w: %w", errNoFrame, err)
		}
		return frameHeader{}, nil, err
	}
	h, err := decodeFrameHeader(first)
	if err != nil {
		return h, nil, err
	}
	meta := first
	if h.MetaBytes > pageBytes {
		meta = make([]byte, h.MetaBytes)
		copy(meta, first)
		if err := s.readAt(n, meta[pageBytes:], off+pageBytes); err != nil {
			if errors.Is(err, io.ErrUnexpectedEOF) {
				err = badFrame("records cut short")
			}
			return h, nil, err
		}
	}
	meta = meta[:h.MetaBytes]
	return h, meta, checkMeta(h, meta)
}
