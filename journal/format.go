package journal

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/novacron/afterimage/cbt"
)

// A frame is one group commit. It is written once, at the primary, and is the
// same bytes at every site; frames follow one another in a segment at multiples
// of 4096. All integers are little-endian.
//
//	       0        4     6     8             20         24       28       32
//	  0    | "AiFr" | ver | len | 3 masks     | meta len | count  | crc    |
//	  32   | frame len       | first seq      | last seq          | 1st time |
//	  64   | durable seq     | chain seq      | chain (32)                   |
//	  112  | tenant | group | stream | epoch id (16 each)                    |
//	  176  | epoch number    | incarnation (16) | key id (16) | reserved (40) |
//	  256  | record | record | …                              to meta len     |
//	       | payloads, each at file offset ≡ volume offset (mod 4096)        |
//	       | zeros to a multiple of 4096                                     |
//
//	record: | kind 2 | flags 2 | len 4 | volume 4 | stored 4 | time 8 |
//	        | offset 8 | length 8 | payload offset in frame 8 | nonce 12 |
//	        | codec 1 | zero 1 | number of the data key in its epoch 2 |
//	        | body: a cell table, or the JSON of a control record, padded to 8 |
//	cell table: one entry a 4 KiB cell of the volume that the extent touches, in
//	        order: | CRC32C 4 | and, in a sealed record, | tag 16 |
//	flags:  bit 0 packed: the payload, of at most 64 KiB, is compressed by codec (1:
//	        LZ4 block); its stored bytes are one cell, at a multiple of 8 in the
//	        frame. Bit 1 sealed: see seal.go
//
// The crc is CRC32C over [0, meta len) with the field itself zero; it guards the
// header, every record and thereby every cell's checksum. A cell's CRC32C is over
// its stored bytes. Seqs are dense: record i has seq first+i. A 4 KiB read finds
// its file offset, CRC32C and, where sealed, tag, nonce and key id in the index
// entry (index.go), so it costs one disk read.
//
// "durable seq" is the last seq of this epoch known to survive power loss when
// the frame was built: a valid frame that names a seq which is not there proves a
// loss, where an invalid frame alone is a torn tail. "chain" is the chain value
// after the frame that ends at "chain seq"; it lags, for it is computed off the
// reply path. Frames of a recycled segment's former life are told by their epoch
// and seq, which do not follow on.
//
// A frame with a packed record sets bit 0 of the first mask, one with a sealed
// record bit 1 and names the data key; one without either sets none.
//
// Magic, version, meta len and crc keep their places in every version. A frame of
// another version is not read (ErrIncompatible). One with an unknown bit in the first mask is not read (ErrIncompatible),
// in the second not written after (ErrReadOnly), in the third ignored. Records of
// an unknown kind are skipped by their length.
const (
	frameMagic       = "AiFr"
	formatVersion    = 1
	frameHeaderBytes = 256
	recordFixedBytes = 64
	pageBytes        = 4096
	cellEntryBytes   = 4
	sealedTagBytes   = 16

	maxMetaBytes    = 8 << 20        // one 32 MiB record has a 32 KiB table; sealed, 160 KiB
	targetMeta      = 1 << 20        // a frame closes when its records take this much
	maxFrameBytes   = 64 << 20       // checked before any allocation
	maxPackedBytes  = 64 << 10       // a payload that must be unpacked as a whole
	maxBodyBytes    = 1 << 20        // JSON of a control record (a machine's definition)
	maxDetailBytes  = 4 << 10        // a gap's detail is cut to it
	maxFrameRecords = 1 << 16        // bounded by maxMetaBytes anyway
	targetFrame     = 4 << 20        // a frame closes when it holds this much
	recordRoom      = 1 << 10        // a record's memory beside its payload, amply
	maxPending      = 64 << 20       // bytes under way, to the chain, before Record blocks
	knownIncompat   = knownFlags     // packed and sealed records
	knownROCompat   = 0              // no read-only compatible feature is known yet
	maxExtentLength = int64(1) << 62 // sanity bound of a zero or trim
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// features are the three masks that every frame and segment carries.
type features struct {
	Incompat, ROCompat, Compat uint32
}

func (f features) check() error {
	if bad := f.Incompat &^ knownIncompat; bad != 0 {
		return fmt.Errorf("feature bits %#x: %w", bad, ErrIncompatible)
	}
	return nil
}

func (f features) readOnly() bool { return f.ROCompat&^knownROCompat != 0 }

// frameHeader is the fixed part of a frame.
type frameHeader struct {
	foreign     uint16 // the version, if it is not ours: then only MetaBytes is set
	Features    features
	MetaBytes   int
	Count       int
	Bytes       int64
	First, Last Seq
	Time        time.Time // of the first record
	Durable     Seq
	ChainSeq    Seq
	Chain       Chain
	Identity    Identity
	Epoch       EpochID
	Number      uint64
	Incarnation cbt.Incarnation
	KeyID       cbt.ID
}

// encode writes h to b[:frameHeaderBytes]; seal adds the checksum later.
func (h *frameHeader) encode(b []byte) {
	clear(b[:frameHeaderBytes])
	le := binary.LittleEndian
	copy(b, frameMagic)
	le.PutUint16(b[4:], formatVersion)
	le.PutUint16(b[6:], frameHeaderBytes)
	le.PutUint32(b[8:], h.Features.Incompat)
	le.PutUint32(b[12:], h.Features.ROCompat)
	le.PutUint32(b[16:], h.Features.Compat)
	le.PutUint32(b[20:], uint32(h.MetaBytes))
	le.PutUint32(b[24:], uint32(h.Count))
	le.PutUint64(b[32:], uint64(h.Bytes))
	le.PutUint64(b[40:], uint64(h.First))
	le.PutUint64(b[48:], uint64(h.Last))
	le.PutUint64(b[56:], uint64(h.Time.UnixNano()))
	le.PutUint64(b[64:], uint64(h.Durable))
	le.PutUint64(b[72:], uint64(h.ChainSeq))
	copy(b[80:], h.Chain[:])
	copy(b[112:], h.Identity.Tenant[:])
	copy(b[128:], h.Identity.Group[:])
	copy(b[144:], h.Identity.Stream[:])
	copy(b[160:], h.Epoch[:])
	le.PutUint64(b[176:], h.Number)
	copy(b[184:], h.Incarnation[:])
	copy(b[200:], h.KeyID[:])
}

// sealMeta puts the checksum over header and records into meta.
func sealMeta(meta []byte) {
	binary.LittleEndian.PutUint32(meta[28:], 0)
	binary.LittleEndian.PutUint32(meta[28:], crc32.Checksum(meta, castagnoli))
}

// decodeFrameHeader reads b[:frameHeaderBytes] and checks every length in it; the
// checksum, and after it the features, need the whole meta (checkMeta).
func decodeFrameHeader(b []byte) (frameHeader, error) {
	var h frameHeader
	if len(b) < frameHeaderBytes || string(b[:4]) != frameMagic {
		return h, errNoFrame
	}
	le := binary.LittleEndian
	if v := le.Uint16(b[4:]); v != formatVersion {
		// checkMeta tells a newer version from a flipped byte.
		meta := le.Uint32(b[20:])
		if meta < frameHeaderBytes || meta > maxMetaBytes {
			return h, badFrame("%d bytes of records", meta)
		}
		return frameHeader{foreign: v, MetaBytes: int(meta)}, nil
	}
	if n := le.Uint16(b[6:]); n != frameHeaderBytes {
		return h, badFrame("header of %d bytes", n)
	}
	h.Features = features{le.Uint32(b[8:]), le.Uint32(b[12:]), le.Uint32(b[16:])}
	meta, count, size := le.Uint32(b[20:]), le.Uint32(b[24:]), le.Uint64(b[32:])
	h.First, h.Last = Seq(le.Uint64(b[40:])), Seq(le.Uint64(b[48:]))
	switch {
	case meta < frameHeaderBytes+recordFixedBytes || meta > maxMetaBytes || meta%8 != 0:
		return h, badFrame("%d bytes of records", meta)
	case size > maxFrameBytes || size < uint64(meta) || size%pageBytes != 0:
		return h, badFrame("frame of %d bytes", size)
	case count == 0 || count > maxFrameRecords || uint64(count)*recordFixedBytes > uint64(meta-frameHeaderBytes):
		return h, badFrame("%d records in %d bytes", count, meta)
	case h.First == 0 || h.Last < h.First || uint64(h.Last-h.First)+1 != uint64(count):
		return h, badFrame("seqs %d to %d for %d records", h.First, h.Last, count)
	}
	for _, z := range b[216:frameHeaderBytes] {
		if z != 0 {
			return h, badFrame("reserved bytes set")
		}
	}
	h.MetaBytes, h.Count, h.Bytes = int(meta), int(count), int64(size)
	h.Time = time.Unix(0, int64(le.Uint64(b[56:])))
	h.Durable, h.ChainSeq = Seq(le.Uint64(b[64:])), Seq(le.Uint64(b[72:]))
	copy(h.Chain[:], b[80:])
	copy(h.Identity.Tenant[:], b[112:])
	copy(h.Identity.Group[:], b[128:])
	copy(h.Identity.Stream[:], b[144:])
	copy(h.Epoch[:], b[160:])
	h.Number = le.Uint64(b[176:])
	copy(h.Incarnation[:], b[184:])
	copy(h.KeyID[:], b[200:])
	return h, nil
}

// checkMeta verifies the checksum over meta, which is header and records, and then
// that its version and features are known: a flipped bit is taken for neither.
func checkMeta(h frameHeader, meta []byte) error {
	want := binary.LittleEndian.Uint32(meta[28:])
	crc := crc32.Update(0, castagnoli, meta[:28])
	crc = crc32.Update(crc, castagnoli, []byte{0, 0, 0, 0})
	if crc = crc32.Update(crc, castagnoli, meta[32:]); crc != want {
		return badFrame("checksum of header and records is %08x, stored %08x", crc, want)
	}
	if h.foreign != 0 {
		return fmt.Errorf("frame version %d: %w", h.foreign, ErrIncompatible)
	}
	return h.Features.check()
}
