package nbd

import (
	"encoding/binary"
	"fmt"
	"io"
)

// The layouts, all big-endian; the number above a field is its offset in bytes.
//
// Greeting, server to client, answered by four bytes of client flags:
//
//	0          8          16      18
//	"NBDMAGIC" "IHAVEOPT" flags16
//
// Option, client to server, and each reply to it:
//
//	0          8        12      16
//	"IHAVEOPT" option32 length32 data …
//
//	0               8        12     16       20
//	0003e889045565a9 option32 type32 length32 data …
//
// Request, client to server; data follows a WRITE only:
//
//	0        4       6      8        16       24       28
//	25609513 flags16 type16 cookie64 offset64 length32 data …
//
// Simple reply, server to client; data follows a good READ only:
//
//	0        4       8        16
//	67446698 error32 cookie64 data …
//
// Chunk of a structured reply, server to client; the last one has flag DONE:
//
//	0        4       6      8        16       20
//	668e33ef flags16 type16 cookie64 length32 payload …
//
//	OFFSET_DATA   offset64 data …
//	OFFSET_HOLE   offset64 length32
//	BLOCK_STATUS  context32 (length32 flags32) …
//	ERROR         error32 textlen16 text …
//	ERROR_OFFSET  error32 textlen16 text … offset64

const (
	magicGreeting   = 0x4e42444d41474943
	magicOption     = 0x49484156454F5054
	magicOldstyle   = 0x00420281861253
	magicOptReply   = 0x0003e889045565a9
	magicRequest    = 0x25609513
	magicSimple     = 0x67446698
	magicStructured = 0x668e33ef

	greetingBytes  = 18
	optionBytes    = 16
	optReplyBytes  = 20
	requestBytes   = 28
	simpleBytes    = 16
	chunkBytes     = 20
	exportPadBytes = 124 // zeros after EXPORT_NAME's answer without NO_ZEROES
)

// Handshake flags, the same bits both ways.
const (
	handshakeFixedNewstyle = 1 << 0
	handshakeNoZeroes      = 1 << 1
)

// Options and the types of their replies.
const (
	optExportName      = 1
	optAbort           = 2
	optList            = 3
	optStartTLS        = 5
	optInfo            = 6
	optGo              = 7
	optStructuredReply = 8
	optListMetaContext = 9
	optSetMetaContext  = 10

	repAck         = 1
	repServer      = 2
	repInfo        = 3
	repMetaContext = 4

	repErrBit     = 1 << 31
	repErrUnsup   = repErrBit | 1
	repErrPolicy  = repErrBit | 2
	repErrInvalid = repErrBit | 3
	repErrUnknown = repErrBit | 6
	repErrTooBig  = repErrBit | 9

	infoExport      = 0
	infoName        = 1
	infoDescription = 2
	infoBlockSize   = 3
)

// Transmission flags.
const (
	flagHasFlags        = 1 << 0
	flagReadOnly        = 1 << 1
	flagSendFlush       = 1 << 2
	flagSendFUA         = 1 << 3
	flagSendTrim        = 1 << 5
	flagSendWriteZeroes = 1 << 6
	flagSendDF          = 1 << 7
	flagCanMultiConn    = 1 << 8
)

// Commands and their flags.
const (
	cmdRead        = 0
	cmdWrite       = 1
	cmdDisconnect  = 2
	cmdFlush       = 3
	cmdTrim        = 4
	cmdWriteZeroes = 6
	cmdBlockStatus = 7

	cmdFlagFUA    = 1 << 0
	cmdFlagNoHole = 1 << 1
	cmdFlagDF     = 1 << 2
	cmdFlagReqOne = 1 << 3
)

// Chunks of structured replies.
const (
	chunkDone = 1 << 0

	chunkNone        = 0
	chunkOffsetData  = 1
	chunkOffsetHole  = 2
	chunkBlockStatus = 5
	chunkErrBit      = 1 << 15
	chunkError       = chunkErrBit | 1
	chunkErrorOffset = chunkErrBit | 2
)

// Sizes that both ends keep to (proto.md, "Size constraints").
const (
	minBlockBytes       = 1
	preferredBlockBytes = 4096
	maxPayloadBytes     = 32 << 20
	maxStringBytes      = 4096
)

// Bits of the meta contexts that Client.BlockStatus returns.
const (
	// ContextAllocation names the context that tells holes and zeros.
	ContextAllocation = "base:allocation"
	// StateHole and StateZero are the bits of base:allocation.
	StateHole = 1 << 0
	StateZero = 1 << 1
	// StateDirty is the bit of a qemu:dirty-bitmap context.
	StateDirty = 1 << 0
)

// ContextDirtyBitmap names the context of QEMU's dirty bitmap.
func ContextDirtyBitmap(bitmap string) string { return "qemu:dirty-bitmap:" + bitmap }

var be = binary.BigEndian

type request struct {
	flags, cmd uint16
	cookie     uint64
	offset     uint64
	length     uint32
}

func (q request) put(b *[requestBytes]byte) {
	be.PutUint32(b[0:], magicRequest)
	be.PutUint16(b[4:], q.flags)
	be.PutUint16(b[6:], q.cmd)
	be.PutUint64(b[8:], q.cookie)
	be.PutUint64(b[16:], q.offset)
	be.PutUint32(b[24:], q.length)
}

func parseRequest(b *[requestBytes]byte) (request, error) {
	if m := be.Uint32(b[0:]); m != magicRequest {
		return request{}, violation("request magic %#x", m)
	}
	return request{
		flags:  be.Uint16(b[4:]),
		cmd:    be.Uint16(b[6:]),
		cookie: be.Uint64(b[8:]),
		offset: be.Uint64(b[16:]),
		length: be.Uint32(b[24:]),
	}, nil
}

func putSimple(b []byte, errno Errno, cookie uint64) {
	be.PutUint32(b[0:], magicSimple)
	be.PutUint32(b[4:], uint32(errno))
	be.PutUint64(b[8:], cookie)
}

func putChunk(b []byte, flags, kind uint16, cookie uint64, length uint32) {
	be.PutUint32(b[0:], magicStructured)
	be.PutUint16(b[4:], flags)
	be.PutUint16(b[6:], kind)
	be.PutUint64(b[8:], cookie)
	be.PutUint32(b[16:], length)
}

// option is one option as read, its data bounded by the reader's limit.
type option struct {
	code uint32
	data []byte
}

// appendOption appends a whole option, as a client sends it.
func appendOption(b []byte, code uint32, data []byte) []byte {
	b = be.AppendUint64(b, magicOption)
	b = be.AppendUint32(b, code)
	b = be.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// appendOptReply appends a whole reply to an option, as a server sends it.
func appendOptReply(b []byte, code, kind uint32, data []byte) []byte {
	b = be.AppendUint64(b, magicOptReply)
	b = be.AppendUint32(b, code)
	b = be.AppendUint32(b, kind)
	b = be.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

func appendString(b []byte, s string) []byte {
	b = be.AppendUint32(b, uint32(len(s)))
	return append(b, s...)
}

// cutter takes an option's data apart; after a failure all it yields is zero
// and ok stays false.
type cutter struct {
	b  []byte
	ok bool
}

func cut(b []byte) *cutter { return &cutter{b: b, ok: true} }

func (c *cutter) take(n int) []byte {
	if !c.ok || n < 0 || n > len(c.b) {
		c.ok = false
		return nil
	}
	p := c.b[:n]
	c.b = c.b[n:]
	return p
}

func (c *cutter) u16() uint16 {
	if p := c.take(2); p != nil {
		return be.Uint16(p)
	}
	return 0
}

func (c *cutter) u32() uint32 {
	if p := c.take(4); p != nil {
		return be.Uint32(p)
	}
	return 0
}

func (c *cutter) u64() uint64 {
	if p := c.take(8); p != nil {
		return be.Uint64(p)
	}
	return 0
}

// str reads a string with its length in front.
func (c *cutter) str() string {
	n := c.u32()
	if n > maxStringBytes {
		c.ok = false
		return ""
	}
	return string(c.take(int(n)))
}

// done reports whether all was well-formed and nothing is left.
func (c *cutter) done() bool { return c.ok && len(c.b) == 0 }

// discard reads n bytes into nothing, in constant memory.
func discard(r io.Reader, n int64) error {
	if m, err := io.CopyN(io.Discard, r, n); err != nil {
		return fmt.Errorf("discard %d bytes after %d: %w", n, m, err)
	}
	return nil
}

func commandName(cmd uint16) string {
	switch cmd {
	case cmdRead:
		return "read"
	case cmdWrite:
		return "write"
	case cmdDisconnect:
		return "disconnect"
	case cmdFlush:
		return "flush"
	case cmdTrim:
		return "trim"
	case cmdWriteZeroes:
		return "zero"
	case cmdBlockStatus:
		return "status"
	}
	return fmt.Sprintf("command %d", cmd)
}
