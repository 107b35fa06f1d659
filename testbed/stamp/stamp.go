package stamp

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// Size is the length of a stamp, in bytes.
const Size = 4096

// The block, little-endian:
//
//	0     8  magic "AISTAMP1"
//	8     8  number
//	16    4  volume
//	20    4  zero
//	24    8  writer
//	32    8  time, Unix nanoseconds
//	40  4024 filler drawn from all of the above, so that no two stamps share a sector
//	4064 32  SHA-256 of bytes 0..4063
const (
	magic      = "AISTAMP1"
	fillerFrom = 40
	sumFrom    = Size - sha256.Size
)

// Errors of Decode.
var (
	ErrEmpty = errors.New("no stamp: the block is all zeros")
	ErrTorn  = errors.New("no whole stamp: the block's checksum is wrong")
)

// Stamp is what one block says.
type Stamp struct {
	Number uint64    // from 1
	Volume uint32    // which volume of the group it was written to
	Writer uint64    // which run of a load wrote it; random
	Time   time.Time // by the writer's clock, just before the write
}

// Encode writes s into the first Size bytes of p.
func (s Stamp) Encode(p []byte) {
	p = p[:Size]
	copy(p, magic)
	binary.LittleEndian.PutUint64(p[8:], s.Number)
	binary.LittleEndian.PutUint32(p[16:], s.Volume)
	binary.LittleEndian.PutUint32(p[20:], 0)
	binary.LittleEndian.PutUint64(p[24:], s.Writer)
	binary.LittleEndian.PutUint64(p[32:], uint64(s.Time.UnixNano()))
	seed := sha256.Sum256(p[:fillerFrom])
	x := binary.LittleEndian.Uint64(seed[:]) | 1
	for i := fillerFrom; i < sumFrom; i += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		binary.LittleEndian.PutUint64(p[i:], x)
	}
	sum := sha256.Sum256(p[:sumFrom])
	copy(p[sumFrom:], sum[:])
}

// Block is s as a block of its own.
func (s Stamp) Block() []byte {
	p := make([]byte, Size)
	s.Encode(p)
	return p
}

// Decode reads a block. It returns ErrEmpty for zeros and ErrTorn for anything
// that is not exactly what Encode wrote, an overwritten block included.
func Decode(p []byte) (Stamp, error) {
	if len(p) != Size {
		return Stamp{}, fmt.Errorf("decode stamp: %d bytes, want %d", len(p), Size)
	}
	if sum := sha256.Sum256(p[:sumFrom]); !bytes.Equal(sum[:], p[sumFrom:]) || string(p[:8]) != magic {
		if allZero(p) {
			return Stamp{}, ErrEmpty
		}
		return Stamp{}, ErrTorn
	}
	return Stamp{
		Number: binary.LittleEndian.Uint64(p[8:]),
		Volume: binary.LittleEndian.Uint32(p[16:]),
		Writer: binary.LittleEndian.Uint64(p[24:]),
		Time:   time.Unix(0, int64(binary.LittleEndian.Uint64(p[32:]))),
	}, nil
}

// Offset is where stamp number lies on a volume of slots slots, in bytes.
func Offset(number, slots uint64) int64 { return int64(number%slots) * Size }

func allZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}
