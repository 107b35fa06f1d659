package replicator

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
)

// One control message, all integers little-endian:
//
//	 0  type u8 | flags u8 | reserved u16
//	 4  length of the body in bytes u32
//	 8  open u64         which opening of a group; 0: the whole connection
//	16  tenant [16]      the group; all zero: the whole connection
//	32  group  [16]
//	48  stream [16]
//	64  body
//	 +  CRC32C u32 over everything before it
//
// A receiver skips a type that it does not know by its length, unless flagMust
// is set: then it closes the connection with CodeFeatures. It ignores bytes
// after the body that it knows, so that later versions can append fields.
//
// What an opening carries, in pieces (piece.go), is frames, each a frame header and the
// journal's frame as stored, or in parts (packed.go), small ones also in bundles
// (bundle.go); or a delta (delta.go):
//
//	 0  "AIF1"
//	 4  version u8 | flags u8 | reserved u16
//	 8  length of the frame in bytes u64
//	16  first seq u64
//	24  last seq u64
//	32  epoch id [16]
//	48  chain [32]
//	80  reserved u32
//	84  CRC32C u32 over 0..84
//
// Reserved bytes and unknown flags are zero, and checked. CRC32C guards against
// our own mistakes; TLS guards against everybody else's.
const (
	messageHeaderBytes = 64
	maxBodyBytes       = 2 << 20
	frameHeaderBytes   = 88
	crcBytes           = 4

	// flagMust: a receiver that does not know the type must not go on.
	flagMust = 1 << 0

	wireVersion    = 1
	minWireVersion = 1
	// Features are negotiated in Hello. Every incompatible bit that a peer sets
	// must be known here; compatible ones are for information.
	knownIncompatible = featurePieces
	ourCompatible     = featureFetch | featureCells | featureDelta | featurePacked | featureRotate | featureConsult
)

// featurePieces: what openings carry comes in pieces over any lane.
const featurePieces = uint64(1) << 0

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// messageType is append-only.
type messageType uint8

const (
	typeHello     messageType = 1
	typeOpen      messageType = 2
	typeAccept    messageType = 3
	typeRefuse    messageType = 4
	typeHeartbeat messageType = 5
	typeAck       messageType = 6
	typePing      messageType = 7
	typePong      messageType = 8
	typeBye       messageType = 9
	typeOffer     messageType = 10
	typePlace     messageType = 11
	typeLanded    messageType = 12
	typeJoin      messageType = 13
	typeJoined    messageType = 14
	typeTaken     messageType = 15
	typeTakes     messageType = 16
	typeRotate    messageType = 17
	typeRotated   messageType = 18
)

// envelope says what a message is about.
type envelope struct {
	flags uint8
	open  uint64
	group journal.Identity
}

// body is one kind of message.
type body interface {
	kind() messageType
	pack(*packer)
	unpack(*parser)
}

type message struct {
	envelope
	body body // nil: of an unknown kind, to be skipped
}

// newBody is an empty body of kind t, nil when the kind is unknown.
func newBody(t messageType) body {
	switch t {
	case typeHello:
		return &hello{}
	case typeOpen:
		return &openGroup{}
	case typeAccept:
		return &accept{}
	case typeRefuse:
		return &refuse{}
	case typeHeartbeat:
		return &heartbeat{}
	case typeAck:
		return &ack{}
	case typePing:
		return &ping{}
	case typePong:
		return &pong{}
	case typeBye:
		return &bye{}
	case typeOffer:
		return &offer{}
	case typePlace:
		return &landingPlace{}
	case typeLanded:
		return &landedDelta{}
	case typeJoin:
		return &join{}
	case typeJoined:
		return &joined{}
	case typeTaken:
		return &taken{}
	case typeTakes:
		return &takes{}
	case typeRotate:
		return &rotate{}
	case typeRotated:
		return &rotated{}
	}
	return nil
}

// encodeMessage is m as sent.
func encodeMessage(m message) ([]byte, error) {
	p := &packer{b: make([]byte, messageHeaderBytes, messageHeaderBytes+256)}
	m.body.pack(p)
	if p.err != nil {
		return nil, fmt.Errorf("encode message %d: %w", m.body.kind(), p.err)
	}
	length := len(p.b) - messageHeaderBytes
	if length > maxBodyBytes {
		return nil, fmt.Errorf("encode message %d: body of %d bytes, at most %d", m.body.kind(), length, maxBodyBytes)
	}
	h := p.b[:messageHeaderBytes]
	h[0], h[1] = byte(m.body.kind()), m.flags
	binary.LittleEndian.PutUint32(h[4:], uint32(length))
	binary.LittleEndian.PutUint64(h[8:], m.open)
	putIdentity(h[16:], m.group)
	return binary.LittleEndian.AppendUint32(p.b, crc32.Checksum(p.b, castagnoli)), nil
}

// readMessage reads one message. Errors that wrap ErrProtocol are the peer's fault.
func readMessage(r io.Reader) (message, error) {
	var m message
	head := make([]byte, messageHeaderBytes)
	if _, err := io.ReadFull(r, head); err != nil {
		return m, err
	}
	length := binary.LittleEndian.Uint32(head[4:])
	switch {
	case binary.LittleEndian.Uint16(head[2:]) != 0:
		return m, fmt.Errorf("read message: reserved bytes are set: %w", ErrProtocol)
	case length > maxBodyBytes:
		return m, fmt.Errorf("read message: body of %d bytes, at most %d: %w", length, maxBodyBytes, ErrProtocol)
	}
	rest, err := readBounded(r, int(length)+crcBytes)
	if err != nil {
		return m, err
	}
	text, sum := rest[:length], binary.LittleEndian.Uint32(rest[length:])
	if got := crc32.Update(crc32.Checksum(head, castagnoli), castagnoli, text); got != sum {
		return m, fmt.Errorf("read message: checksum %08x, want %08x: %w", got, sum, ErrProtocol)
	}
	kind := messageType(head[0])
	m.flags, m.open, m.group = head[1], binary.LittleEndian.Uint64(head[8:]), getIdentity(head[16:])
	m.body = newBody(kind)
	if m.body == nil {
		if m.flags&flagMust != 0 {
			return m, fmt.Errorf("read message: kind %d must be understood and is not known: %w", kind, ErrProtocol)
		}
		return m, nil
	}
	p := &parser{b: text}
	m.body.unpack(p)
	if p.err != nil {
		return m, fmt.Errorf("read message %d: %w: %w", kind, p.err, ErrProtocol)
	}
	return m, nil
}

// readBounded reads n bytes without trusting n: memory grows with what arrives.
func readBounded(r io.Reader, n int) ([]byte, error) {
	const step = 64 << 10
	buf := make([]byte, 0, min(n, step))
	for len(buf) < n {
		at := len(buf)
		buf = append(buf, make([]byte, min(n-at, step))...)
		if _, err := io.ReadFull(r, buf[at:]); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
	return buf, nil
}

// frameHeader announces one frame.
type frameHeader struct {
	bytes       int64
	first, last journal.Seq
	epoch       journal.EpochID
	chain       journal.Chain
	packed      bool // it comes in parts
}

func (f frameHeader) encode() []byte {
	b := make([]byte, frameHeaderBytes)
	copy(b, "AIF1")
	b[4] = wireVersion
	if f.packed {
		b[5] = flagPacked
	}
	binary.LittleEndian.PutUint64(b[8:], uint64(f.bytes))
	binary.LittleEndian.PutUint64(b[16:], uint64(f.first))
	binary.LittleEndian.PutUint64(b[24:], uint64(f.last))
	copy(b[32:], f.epoch[:])
	copy(b[48:], f.chain[:])
	return seal(b)
}

// readFrameHeader reads one frame header; io.EOF says that the stream ended
// between frames.
func readFrameHeader(r io.Reader, maxFrameBytes int64) (frameHeader, error) {
	b := make([]byte, frameHeaderBytes)
	if _, err := io.ReadFull(r, b); err != nil {
		return frameHeader{}, err
	}
	if err := checkHeader(b, "AIF1"); err != nil {
		return frameHeader{}, fmt.Errorf("read frame header: %w", err)
	}
	f := frameHeader{
		first: journal.Seq(binary.LittleEndian.Uint64(b[16:])),
		last:  journal.Seq(binary.LittleEndian.Uint64(b[24:])),
		epoch: journal.EpochID(b[32:48]),
		chain: journal.Chain(b[48:80]), packed: b[5] == flagPacked,
	}
	length := binary.LittleEndian.Uint64(b[8:])
	switch {
	case b[5]&^flagPacked|b[6]|b[7] != 0 || binary.LittleEndian.Uint32(b[80:]) != 0:
		return f, fmt.Errorf("read frame header: reserved bytes are set: %w", ErrProtocol)
	case length == 0 || length > uint64(maxFrameBytes):
		return f, fmt.Errorf("read frame header: frame of %d bytes, at most %d: %w", length, maxFrameBytes, ErrProtocol)
	case f.first == 0 || f.last < f.first:
		return f, fmt.Errorf("read frame header: seqs %d..%d: %w", f.first, f.last, ErrProtocol)
	}
	f.bytes = int64(length)
	return f, nil
}

// seal puts the checksum into the last bytes of a header.
func seal(b []byte) []byte {
	binary.LittleEndian.PutUint32(b[len(b)-crcBytes:], crc32.Checksum(b[:len(b)-crcBytes], castagnoli))
	return b
}

func checkHeader(b []byte, magic string) error {
	if string(b[:4]) != magic {
		return fmt.Errorf("magic %q, want %q: %w", b[:4], magic, ErrProtocol)
	}
	got, want := crc32.Checksum(b[:len(b)-crcBytes], castagnoli), binary.LittleEndian.Uint32(b[len(b)-crcBytes:])
	if got != want {
		return fmt.Errorf("checksum %08x, want %08x: %w", got, want, ErrProtocol)
	}
	if b[4] != wireVersion {
		return fmt.Errorf("version %d, want %d: %w", b[4], wireVersion, ErrProtocol)
	}
	return nil
}

func putIdentity(b []byte, id journal.Identity) {
	copy(b, id.Tenant[:])
	copy(b[16:], id.Group[:])
	copy(b[32:], id.Stream[:])
}

func getIdentity(b []byte) journal.Identity {
	return journal.Identity{Tenant: cbt.ID(b[:16]), Group: cbt.ID(b[16:32]), Stream: cbt.ID(b[32:48])}
}
