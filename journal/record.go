package journal

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/novacron/afterimage/cbt"
)

// Kind is what a record says. The numbers are on disk and wire: append-only.
type Kind uint16

// Kinds of records. Key, Delta and Anchor have their place in the layout; this
// version passes them on and does not interpret them.
const (
	KindWrite   Kind = 1
	KindZero    Kind = 2
	KindTrim    Kind = 3
	KindFill    Kind = 4
	KindSynced  Kind = 5
	KindGap     Kind = 6
	KindMark    Kind = 7
	KindKey     Kind = 8
	KindEpoch   Kind = 9
	KindMachine Kind = 10
	KindVolume  Kind = 11
	KindDelta   Kind = 12
	KindAnchor  Kind = 13
	KindSame    Kind = 14 // a write of what was there (rewrite.go)
)

var kindNames = [...]string{"", "write", "zero", "trim", "fill", "synced", "gap", "mark", "key", "epoch", "machine", "volume", "delta", "anchor", "same"}

func (k Kind) String() string {
	if k > 0 && int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind-%d", uint16(k))
}

// MarshalText is String.
func (k Kind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// fills reports that r is of a resync, and not of what the guest asked for.
func (r *record) fills() bool {
	return r.kind == KindFill || (r.kind == KindZero && r.flags&flagFill != 0)
}

func (k Kind) hasPayload() bool { return k == KindWrite || k == KindFill }
func (k Kind) hasExtent() bool  { return k >= KindWrite && k <= KindFill }

// Flags of a record with a payload. A frame that holds one carries the same bit in
// its mask of incompatible features: who knows neither must not read it.
const (
	flagPacked = 1 << 0 // the stored bytes are a compressed payload, and one cell
	flagSealed = 1 << 1 // the stored cells are sealed (seal.go)
	knownFlags = flagPacked | flagSealed

	// flagFill is of a zero record: a fill's bytes, and not the guest's, were zeros.
	// Who does not know it loses nothing.
	flagFill = 1 << 2
)

var (
	errNoFrame  = errors.New("no frame here")
	errBadFrame = errors.New("bad frame")
)

func badFrame(format string, args ...any) error {
	return fmt.Errorf("%w: %w", errBadFrame, fmt.Errorf(format, args...))
}

// record is one decoded or to-be-encoded record.
type record struct {
	kind     Kind
	flags    uint16
	volume   uint32 // ordinal within the stream, from 1; 0 for none
	stored   uint32 // payload bytes as stored
	time     time.Time
	extent   cbt.Extent
	payload  int64    // offset in the frame; 0 without payload
	nonce    [12]byte // of the first cell, of a sealed record
	codec    uint8    // how it is packed
	key      uint16   // number of the data key within the epoch; 0: not sealed
	body     []byte   // control records: JSON
	cells    []uint32 // CRC32C a stored cell, of records with payload
	tags     []byte   // of a sealed record: sealedTagBytes a stored cell
	plain    []uint32 // CRC32C a cell as the guest wrote it, until it is written
	data     []byte   // to be stored, packed if it is to be; nil in a decoded record
	volumeID cbt.VolumeID
	undo     func() // takes back what recording it changed, when it is refused; under mu
}

// cellsOf is how many 4 KiB cells of the volume e touches.
func cellsOf(e cbt.Extent) int {
	if e.Length <= 0 {
		return 0
	}
	return int((e.End()-1)/pageBytes - e.Offset/pageBytes + 1)
}

// cellCRCs is the CRC32C of each cell of data, which starts at volume offset off.
func cellCRCs(off int64, data []byte) []uint32 {
	out := make([]uint32, 0, len(data)/pageBytes+2)
	for len(data) > 0 {
		n := min(int(pageBytes-off%pageBytes), len(data))
		out = append(out, crc32.Checksum(data[:n], castagnoli))
		data, off = data[n:], off+int64(n)
	}
	return out
}

func checksum(p []byte) uint32 { return crc32.Checksum(p, castagnoli) }

func pad8(n int) int { return (n + 7) &^ 7 }

func (r *record) packed() bool { return r.flags&flagPacked != 0 }
func (r *record) sealed() bool { return r.flags&flagSealed != 0 }

// entryBytes is the size of an entry of a cell table.
func entryBytes(sealed bool) int {
	if sealed {
		return cellEntryBytes + sealedTagBytes
	}
	return cellEntryBytes
}

// appendEntry appends cell i's entry of r's cell table.
func (r *record) appendEntry(b []byte, i int) []byte {
	b = binary.LittleEndian.AppendUint32(b, r.cells[i])
	if r.sealed() {
		b = append(b, r.tags[i*sealedTagBytes:][:sealedTagBytes]...)
	}
	return b
}

// storedCell is where stored cell i begins and ends in r's payload.
func (r *record) storedCell(i int) (from, to int64) {
	if r.packed() {
		return 0, int64(r.stored)
	}
	lead := r.extent.Offset % pageBytes
	return max(int64(i)*pageBytes-lead, 0), min(int64(i+1)*pageBytes-lead, r.extent.Length)
}

// encodedBytes is r's room in the record area.
func (r *record) encodedBytes() int {
	if r.kind.hasPayload() {
		return recordFixedBytes + pad8(len(r.cells)*entryBytes(r.sealed()))
	}
	return recordFixedBytes + pad8(len(r.body))
}

// encode appends r to b.
func (r *record) encode(b []byte) []byte {
	le := binary.LittleEndian
	at, n := len(b), r.encodedBytes()
	b = append(b, make([]byte, n)...)
	p := b[at:]
	le.PutUint16(p[0:], uint16(r.kind))
	le.PutUint16(p[2:], r.flags)
	le.PutUint32(p[4:], uint32(n))
	le.PutUint32(p[8:], r.volume)
	le.PutUint32(p[12:], r.stored)
	le.PutUint64(p[16:], uint64(r.time.UnixNano()))
	if r.kind.hasExtent() || r.kind == KindSame {
		le.PutUint64(p[24:], uint64(r.extent.Offset))
		le.PutUint64(p[32:], uint64(r.extent.Length))
	} else {
		le.PutUint64(p[32:], uint64(len(r.body)))
	}
	le.PutUint64(p[40:], uint64(r.payload))
	copy(p[48:60], r.nonce[:])
	p[60] = r.codec
	le.PutUint16(p[62:], r.key)
	if r.kind.hasPayload() {
		table := p[recordFixedBytes:recordFixedBytes]
		for i := range r.cells {
			table = r.appendEntry(table, i)
		}
	} else {
		copy(p[recordFixedBytes:], r.body)
	}
	return b
}

// decodeRecords reads the records of a frame whose meta has been checked. Unknown
// kinds come back with nothing but kind, time and length checked.
func decodeRecords(h frameHeader, meta []byte) ([]record, error) {
	out := make([]record, 0, h.Count)
	b := meta[frameHeaderBytes:]
	for range h.Count {
		r, n, err := decodeRecord(h, b)
		if err != nil {
			return nil, err
		}
		out, b = append(out, r), b[n:]
	}
	for _, z := range b {
		if z != 0 {
			return nil, badFrame("bytes after the last record")
		}
	}
	return out, nil
}

func decodeRecord(h frameHeader, b []byte) (record, int, error) {
	var r record
	if len(b) < recordFixedBytes {
		return r, 0, badFrame("record cut short")
	}
	le := binary.LittleEndian
	n := int(le.Uint32(b[4:]))
	if n < recordFixedBytes || n > len(b) || n%8 != 0 {
		return r, 0, badFrame("record of %d bytes", n)
	}
	r = record{
		kind: Kind(le.Uint16(b)), flags: le.Uint16(b[2:]), volume: le.Uint32(b[8:]), stored: le.Uint32(b[12:]),
		time: time.Unix(0, int64(le.Uint64(b[16:]))), payload: int64(le.Uint64(b[40:])), codec: b[60], key: le.Uint16(b[62:]),
	}
	copy(r.nonce[:], b[48:60])
	off, length := le.Uint64(b[24:]), le.Uint64(b[32:])
	body := b[recordFixedBytes:n]
	switch {
	case r.kind.hasExtent(), r.kind == KindSame:
		if off > uint64(maxExtentLength) || length == 0 || length > uint64(maxExtentLength) {
			return r, 0, badFrame("extent of %d bytes at %d", length, off)
		}
		r.extent = cbt.Extent{Offset: int64(off), Length: int64(length)}
		if b[61] != 0 {
			return r, 0, badFrame("reserved byte of a record set")
		}
		if !r.extent.Aligned() || r.volume == 0 {
			return r, 0, badFrame("extent %v of volume %d", r.extent, r.volume)
		}
		if err := r.decodePayload(h, body); err != nil {
			return r, 0, err
		}
	case r.kind <= KindAnchor:
		if length > uint64(len(body)) || length > maxBodyBytes {
			return r, 0, badFrame("body of %d bytes", length)
		}
		r.body = body[:length]
	}
	return r, n, nil
}

// decodePayload checks where a data record's payload lies and reads its cell table.
func (r *record) decodePayload(h frameHeader, table []byte) error {
	if !r.kind.hasPayload() {
		return nil
	}
	if err := r.checkForm(h); err != nil {
		return err
	}
	if r.payload < int64(h.MetaBytes) || r.payload > h.Bytes-int64(r.stored) || r.payload%r.alignment() != r.extent.Offset%r.alignment() {
		return badFrame("payload at %d for %v in a frame of %d", r.payload, r.extent, h.Bytes)
	}
	n, entry := 1, entryBytes(r.sealed())
	if !r.packed() {
		n = cellsOf(r.extent)
	}
	if len(table) < n*entry {
		return badFrame("cell table of %d bytes for %d cells", len(table), n)
	}
	r.cells = make([]uint32, n)
	for i := range r.cells {
		e := table[i*entry:]
		r.cells[i] = binary.LittleEndian.Uint32(e)
		if r.sealed() {
			r.tags = append(r.tags, e[cellEntryBytes:entry]...)
		}
	}
	return nil
}

// alignment is what a payload's offsets in file and volume agree in. One that must
// be unpacked as a whole has nothing to gain from it.
func (r *record) alignment() int64 {
	if r.packed() {
		return 8
	}
	return pageBytes
}

// checkForm checks how a payload is stored.
func (r *record) checkForm(h frameHeader) error {
	if r.flags&^knownFlags != 0 || r.codec > codecLZ4 {
		return fmt.Errorf("record flags %#x, codec %d: %w", r.flags, r.codec, ErrIncompatible)
	}
	switch {
	case uint32(r.flags)&^h.Features.Incompat != 0:
		return badFrame("record flags %#x in a frame of features %#x", r.flags, h.Features.Incompat)
	case r.packed() != (r.codec != codecNone):
		return badFrame("record flags %#x with codec %d", r.flags, r.codec)
	case r.sealed() != (r.key != 0) || (r.sealed() && h.KeyID.IsZero()) || (!r.sealed() && r.nonce != [12]byte{}):
		return badFrame("record flags %#x with key %d of %s", r.flags, r.key, h.KeyID.Short())
	case r.extent.Length > cbt.MaxWriteBytes || (!r.packed() && int64(r.stored) != r.extent.Length):
		return badFrame("payload of %d bytes for %v", r.stored, r.extent)
	case r.packed() && (r.stored == 0 || int64(r.stored) >= r.extent.Length || r.extent.Length > maxPackedBytes):
		return badFrame("packed payload of %d bytes for %v", r.stored, r.extent)
	}
	return nil
}

// Bodies of control records, as JSON: fields may be added, never changed.
type (
	gapBody struct {
		Cause  cbt.Cause `json:"cause"`
		Detail string    `json:"detail,omitempty"`
	}
	volumeBody struct {
		Ordinal uint32       `json:"ordinal"`
		ID      cbt.VolumeID `json:"id"`
		Name    string       `json:"name"`
		Size    int64        `json:"size"`
		// Joins: points do not wait for it until it was synced once. Left: it is no
		// part of the group from this record on, until it is added again.
		Joins bool `json:"joins,omitempty"`
		Left  bool `json:"left,omitempty"`
	}
	machineBody struct {
		Name       string `json:"name"`
		Definition []byte `json:"definition"`
	}
)

// Mark is a label on a point.
type Mark struct {
	Name   string `json:"name"`
	App    bool   `json:"app,omitempty"`    // application-consistent
	Tested bool   `json:"tested,omitempty"` // a drill ran from it
	Pin    bool   `json:"pin,omitempty"`    // retention must keep it
	Note   string `json:"note,omitempty"`
}

func encodeBody(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // our own structs of strings and numbers
	}
	return b
}
