package replicator

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/pierrec/lz4/v4"
	"github.com/zeebo/blake3"
)

// A frame whose header has flagPacked set crosses the wire in parts, which stand for
// its bytes in order, up to the length that the header names:
//
//	part:  | kind u8 | reserved u24 | plain u32 | wire u32 | CRC32C u32 over 0..12 | wire bytes |
//	kind 1, plain:      the bytes themselves
//	kind 2, LZ4:        an LZ4 block, which unpacks to exactly plain bytes
//	kind 3, held:       BLAKE3-256 hashes, one a block of 4096 bytes, of blocks that the
//	                    replica holds in an earlier frame of the group
//
// A part begins at a multiple of 4096 in the frame and stands for at most 64 KiB; only
// the frame's last is not a whole number of blocks. Lengths are checked before they
// take memory, and an LZ4 block has room for what it claims and not a byte more. What
// comes out is the frame as it lies at the source: AppendFrame compares every byte of
// it with its checksums and the chain, whatever the parts were.
//
// A replica says which kinds it takes (takes), to sources that say in Hello that they
// pack (featurePacked). A reference that it cannot follow, because that frame was
// folded there or its disk gives other bytes, is never guessed at: it asks for the frame
// in full (fetch.go), and has the source begin a new table.
const (
	flagPacked = uint8(1) << 0 // of a frame header

	featurePacked = uint64(1) << 3 // packs frames, where the peer says that it takes them

	partHeadBytes = 16
	maxPartBytes  = 64 << 10
	blockBytes    = 4096
	maxPartBlocks = maxPartBytes / blockBytes

	partPlain = uint8(1)
	partLZ4   = uint8(2)
	partHeld  = uint8(3)

	// What a replica takes beside plain parts.
	takesLZ4  = uint32(1) << 0
	takesHeld = uint32(1) << 1
)

// blockHash names a block by all of its bytes.
type blockHash [32]byte

// takes tells a source which packed frames a replica takes. Another table than before
// holds nothing of what was sent before it was told of.
type takes struct {
	forms uint32
	table uint64
}

func (*takes) kind() messageType  { return typeTakes }
func (m *takes) pack(p *packer)   { p.u32(m.forms); p.u64(m.table) }
func (m *takes) unpack(p *parser) { m.forms, m.table = p.u32(), p.u64() }

// part is a part's head.
type part struct {
	kind        uint8
	plain, wire int
}

// appendTo adds the head to b.
func (p part) appendTo(b []byte) []byte {
	at := len(b)
	b = append(b, p.kind, 0, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(p.plain))
	b = binary.LittleEndian.AppendUint32(b, uint32(p.wire))
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[at:], castagnoli))
}

// readPartHead reads the head of a part of a frame that left bytes are missing of.
func readPartHead(r io.Reader, left int64) (part, error) {
	var b [partHeadBytes]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return part{}, noEnd(err)
	}
	if sum := crc32.Checksum(b[:12], castagnoli); sum != binary.LittleEndian.Uint32(b[12:]) {
		return part{}, fmt.Errorf("read part: checksum differs: %w", ErrProtocol)
	}
	plain, wire := binary.LittleEndian.Uint32(b[4:]), binary.LittleEndian.Uint32(b[8:])
	p := part{b[0], int(min(plain, maxPartBytes)), int(min(wire, maxPartBytes))}
	fits := false
	switch p.kind {
	case partPlain:
		fits = wire == plain
	case partLZ4:
		fits = 0 < wire && wire < plain
	case partHeld:
		fits = plain%blockBytes == 0 && wire == plain/blockBytes*uint32(len(blockHash{}))
	}
	switch {
	case b[1]|b[2]|b[3] != 0:
		return p, fmt.Errorf("read part: reserved bytes are set: %w", ErrProtocol)
	case plain == 0 || plain > maxPartBytes || int64(plain) > left || plain%blockBytes != 0 && int64(plain) != left:
		return p, fmt.Errorf("read part: %d bytes, of a frame that lacks %d: %w", plain, left, ErrProtocol)
	case !fits:
		return p, fmt.Errorf("read part: %d bytes of kind %d for %d: %w", wire, p.kind, plain, ErrProtocol)
	}
	return p, nil
}

// errNotHeld: a reference names a block that is not here, or no longer.
var errNotHeld = errors.New("block is not held")

// unpacker gives the bytes of a frame that comes in parts.
type unpacker struct {
	r    io.Reader
	size int64
	// held fills a block that a reference names, or returns errNotHeld; whole is the
	// frame in full then. Nil: nothing is held.
	held  func(h blockHash, block []byte) error
	whole func() ([]byte, error)
	seen  func(h blockHash, at int64) // of each block worth remembering, with its place in the frame; nil: nobody

	at    int64  // the frame's bytes that parts have stood for
	out   []byte // of those, what is yet to be read
	plain []byte
	wire  []byte
	full  []byte // the whole frame, once a reference could not be followed
}

func newUnpacker(r io.Reader, size int64) *unpacker {
	n := int(min(size, maxPartBytes))
	return &unpacker{r: r, size: size, plain: make([]byte, n), wire: make([]byte, n)}
}

// Read gives io.EOF where the frame is whole.
func (u *unpacker) Read(p []byte) (int, error) {
	if len(u.out) == 0 {
		if u.at == u.size {
			return 0, io.EOF
		}
		if err := u.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, u.out)
	u.out = u.out[n:]
	return n, nil
}

// next takes one part in.
func (u *unpacker) next() error {
	p, err := readPartHead(u.r, u.size-u.at)
	if err != nil {
		return err
	}
	wire, plain := u.wire[:p.wire], u.plain[:p.plain]
	if p.kind == partPlain {
		wire = plain
	}
	if _, err := io.ReadFull(u.r, wire); err != nil {
		return noEnd(err)
	}
	switch p.kind {
	case partLZ4:
		n, err := lz4.UncompressBlock(wire, plain)
		if err != nil || n != len(plain) {
			return fmt.Errorf("read part: it unpacks to %d bytes, not %d (%v): %w", n, len(plain), err, ErrProtocol)
		}
	case partHeld:
		if plain, err = u.follow(wire, plain); err != nil {
			return err
		}
	}
	if u.full != nil { // it was asked for, and counts more than what a part says
		plain = u.full[u.at:][:p.plain]
	}
	u.note(plain)
	u.at, u.out = u.at+int64(p.plain), plain
	return nil
}

// follow fills plain with the blocks that hashes name.
func (u *unpacker) follow(hashes, plain []byte) ([]byte, error) {
	for i := 0; len(hashes) > 0 && u.full == nil; i++ {
		err := errNotHeld
		if u.held != nil {
			err = u.held(blockHash(hashes[:32]), plain[i*blockBytes:][:blockBytes])
		}
		if errors.Is(err, errNotHeld) && u.whole != nil {
			err = u.ask()
		}
		if err != nil {
			return nil, err
		}
		hashes = hashes[32:]
	}
	return plain, nil
}

func (u *unpacker) ask() (err error) {
	if u.full, err = u.whole(); err != nil {
		return err
	}
	if int64(len(u.full)) != u.size {
		err = fmt.Errorf("read part: the frame in full is of %d bytes, announced were %d: %w", len(u.full), u.size, ErrProtocol)
		u.full = nil
	}
	return err
}

func (u *unpacker) note(plain []byte) {
	if u.seen == nil {
		return
	}
	for i := 0; i+blockBytes <= len(plain); i += blockBytes {
		if at := u.at + int64(i); worthRemembering(plain[i:][:blockBytes], at) {
			u.seen(blake3.Sum256(plain[i:][:blockBytes]), at)
		}
	}
}
