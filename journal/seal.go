package journal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"sync"

	"github.com/novacron/afterimage/cbt"
)

// A sealed payload is sealed once, at the primary, and never again: AES-256-GCM a
// stored cell, with the data key that the frame names. A cell's nonce is the
// record's 96 random bits with the cell's ordinal in the record added to their last
// word; a data key lives in one process alone and seals at most maxKeyCells cells,
// so that no pair of key and nonce comes twice, whatever crashes, is copied or goes
// back in time. What is authenticated with each cell is the record's place in the
// history, never one in a file:
//
//	 0 | tenant | group | volume | epoch id (16 each)
//	64 | seq 8 | offset 8 | length 8 | kind 2 | flags 2 | codec 1 | zeros 3
//
// The CRC32C is over the sealed bytes, and is looked at first: a site without the
// key tells damage as well as one with it. All integers are little-endian, but for
// the nonce's.
const (
	dataKeyBytes = 32
	boundBytes   = 96
	maxKeyCells  = int64(1) << 32
	maxEpochKeys = 1<<16 - 1
)

// errUnsealed says that a cell of the right checksum does not open: it was moved,
// swapped, or sealed by somebody else.
var errUnsealed = errors.New("a cell is not what was sealed in its place")

// dataKey seals and opens the payloads of one epoch.
type dataKey struct {
	id     cbt.ID
	number uint16 // within the epoch
	aead   cipher.AEAD
	memory sync.Pool // of *sealing, for readers
}

func newDataKey(id cbt.ID, number uint16, key []byte) (*dataKey, error) {
	a, err := newAEAD(key)
	if err != nil {
		return nil, err
	}
	return &dataKey{id: id, number: number, aead: a}, nil
}

func newAEAD(key []byte) (cipher.AEAD, error) {
	if len(key) != dataKeyBytes {
		return nil, fmt.Errorf("key of %d bytes, want %d", len(key), dataKeyBytes)
	}
	b, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(b)
}

// bound is what a record's cells are sealed to.
func (r *record) bound(id Identity, volume cbt.VolumeID, e EpochID, s Seq) (b [boundBytes]byte) {
	le := binary.LittleEndian
	copy(b[0:], id.Tenant[:])
	copy(b[16:], id.Group[:])
	copy(b[32:], volume[:])
	copy(b[48:], e[:])
	le.PutUint64(b[64:], uint64(s))
	le.PutUint64(b[72:], uint64(r.extent.Offset))
	le.PutUint64(b[80:], uint64(r.extent.Length))
	le.PutUint16(b[88:], uint16(r.kind))
	le.PutUint16(b[90:], r.flags)
	b[92] = r.codec
	return b
}

// cellNonce is the nonce of a record's cell.
func cellNonce(n [12]byte, ordinal uint32) [12]byte {
	binary.BigEndian.PutUint32(n[8:], binary.BigEndian.Uint32(n[8:])+ordinal)
	return n
}

// willSeal marks r, before its size is reckoned, as one that will be sealed.
func (r *record) willSeal() {
	r.flags |= flagSealed
	_, _ = rand.Read(r.nonce[:]) // never fails
	r.tags = make([]byte, len(r.cells)*sealedTagBytes)
}

// sealing is the memory that sealing a cell takes, used again for the next.
type sealing struct {
	cell  []byte
	nonce [12]byte
	bound [boundBytes]byte
}

// seal writes r's payload, sealed, to its place in a frame and completes its table.
func (r *record) seal(frame []byte, k *dataKey, m *sealing) {
	for i := range r.cells {
		from, to := r.storedCell(i)
		m.nonce = cellNonce(r.nonce, uint32(i))
		cell := k.aead.Seal(m.cell[:0], m.nonce[:], r.data[from:to], m.bound[:])
		m.cell = cell
		n := copy(frame[r.payload+from:r.payload+to], cell)
		copy(r.tags[i*sealedTagBytes:], cell[n:])
		r.cells[i] = crc32.Checksum(cell[:n], castagnoli)
	}
}

// openCells opens the stored cells of r in buf, in place. buf begins with the first
// of them, whose entry in the record's table is first; tags are theirs, stride apart.
func (k *dataKey) openCells(r *record, buf []byte, first int, tag func(i int) []byte, bound [boundBytes]byte) error {
	m, ok := k.memory.Get().(*sealing)
	if !ok {
		m = new(sealing)
	}
	defer k.memory.Put(m)
	m.bound = bound
	for i := first; len(buf) > 0; i++ {
		from, to := r.storedCell(i)
		n := min(to-from, int64(len(buf)))
		m.nonce = cellNonce(r.nonce, uint32(i))
		m.cell = append(append(m.cell[:0], buf[:n]...), tag(i-first)...)
		if _, err := k.aead.Open(buf[:0], m.nonce[:], m.cell, m.bound[:]); err != nil {
			return errUnsealed
		}
		buf = buf[n:]
	}
	return nil
}
