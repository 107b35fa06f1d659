package replicator

import (
	"encoding/binary"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/novacron/afterimage/journal"
)

// What an opening carries, frames or a delta, is one run of bytes. It is cut into
// pieces, which go over whichever lane of the session is free and are put in order
// again at the receiver (assembly.go). A lane is nothing but pieces, of all groups:
//
//	 0  "AIP1"
//	 4  version u8 | reserved u24
//	 8  open u64         the opening that it belongs to
//	16  position u64     of its first byte in what the opening carries
//	24  length u32       of its bytes, 1 to 128 KiB
//	28  reserved u32
//	32  tenant [16]
//	48  group  [16]
//	64  stream [16]
//	80  CRC32C u32 over 0..80
//	84  its bytes
//
// A piece that is sent again has the same position and length. Its bytes are guarded by
// TLS on the way, and by what they are part of.
const (
	pieceHeaderBytes = 84
	maxPieceBytes    = 128 << 10
)

type pieceHeader struct {
	open     uint64
	group    journal.Identity
	position int64
	bytes    int
}

// put writes the header into the first bytes of b.
func (h pieceHeader) put(b []byte) {
	b = b[:pieceHeaderBytes]
	clear(b)
	copy(b, "AIP1")
	b[4] = wireVersion
	binary.LittleEndian.PutUint64(b[8:], h.open)
	binary.LittleEndian.PutUint64(b[16:], uint64(h.position))
	binary.LittleEndian.PutUint32(b[24:], uint32(h.bytes))
	putIdentity(b[32:], h.group)
	seal(b)
}

// readPieceHeader reads one header into b, which has room for it; io.EOF says that the
// lane ended between pieces.
func readPieceHeader(r io.Reader, b []byte) (pieceHeader, error) {
	b = b[:pieceHeaderBytes]
	if _, err := io.ReadFull(r, b); err != nil {
		return pieceHeader{}, err
	}
	if err := checkHeader(b, "AIP1"); err != nil {
		return pieceHeader{}, fmt.Errorf("read piece: %w", err)
	}
	h := pieceHeader{open: binary.LittleEndian.Uint64(b[8:]), position: int64(binary.LittleEndian.Uint64(b[16:])), group: getIdentity(b[32:])}
	length := binary.LittleEndian.Uint32(b[24:])
	switch {
	case b[5]|b[6]|b[7] != 0 || binary.LittleEndian.Uint32(b[28:]) != 0:
		return h, fmt.Errorf("read piece: reserved bytes are set: %w", ErrProtocol)
	case length == 0 || length > maxPieceBytes:
		return h, fmt.Errorf("read piece: %d bytes, at most %d: %w", length, maxPieceBytes, ErrProtocol)
	case h.position < 0 || h.position > 1<<62:
		return h, fmt.Errorf("read piece: position %d: %w", uint64(h.position), ErrProtocol)
	}
	h.bytes = int(length)
	return h, nil
}

// maxPieces of one opening are on their way at most, and wait for their turn at most.
const maxPieces = 8192

// piece is one that waits to be sent, or to be known at the receiver.
type piece struct {
	buf      []byte // header, then bytes
	position int64
	sealed   bool  // the header is written: buf changes no more
	writers  int   // lanes that read buf now
	lane     *lane // that it went to last; nil: none yet
	twice    bool  // it was sent a second time because it was late
	sentAt   time.Time
	here     bool // the replica said that it has it
	queued   bool // to be sent once more
	repeats  int  // how often it was
}

// newPiece is an empty one that may grow to size.
func newPiece(position int64, size int) *piece {
	return &piece{buf: takeBuffer(pieceHeaderBytes + size)[:pieceHeaderBytes], position: position}
}

func (p *piece) bytes() int64 { return int64(len(p.buf) - pieceHeaderBytes) }
func (p *piece) end() int64   { return p.position + p.bytes() }

// buffers are those of whole pieces, of both ends.
var buffers = sync.Pool{New: func() any {
	b := make([]byte, pieceHeaderBytes+maxPieceBytes)
	return &b
}}

// takeBuffer is n bytes, whatever they hold.
func takeBuffer(n int) []byte {
	if n <= maxPieceBytes/4 { // few are worth keeping a whole one for
		return make([]byte, n)
	}
	return (*buffers.Get().(*[]byte))[:n]
}

// giveBuffer takes back what nobody uses any more.
func giveBuffer(b []byte) {
	if b = b[:cap(b)]; len(b) == pieceHeaderBytes+maxPieceBytes {
		buffers.Put(&b)
	}
}
