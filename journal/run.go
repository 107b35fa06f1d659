package journal

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/zeebo/blake3"
)

// A run is a sorted file of what folded history still needs: of every version that
// some kept point sees the stored bytes, as they were in the frame, and that part of
// the index and the catalogue which is about the run's range of history. It is
// written once, from front to end, and never changed. All integers are
// little-endian; areas begin at multiples of 4096.
//
//	header    | page 0
//	body      | whole cells, each at a multiple of 4096 | pieces | block |
//	          | whole cells | pieces | block | …        by (volume, MiB of the volume)
//	tail      | directory: a block 16 | points: a kept one 64 | leaves: 32 a MiB | zeros
//	footer    | the last page
//
//	header:   | "AiRn" | ver 2 | len 2 | 3 masks | crc 4 | number 8 |
//	   32     | tenant | group | stream (16 each) | created 8 | zeros …
//	footer:   | "AiRf" | ver 2 | len 2 | 3 masks | crc 4 | number 8 |
//	   32     | tenant | group | stream (16 each) | created 8 |
//	   88     | body bytes 8 | blocks 8 | points 8 | leaves 8 | entries 8 | payload bytes 8 | root 32 | zeros …
//	block:    | "AiRb" | crc 4 | bytes 4 | entries 4 | kind 4 | zeros 12 | entries
//	entry:    | shared uvarint | rest uvarint | value uvarint | rest of key | value |
//	directory:| offset 8 | bytes 4 | kind 4 |
//	point:    | epoch ordinal 4 | zeros 4 | seq 8 | time 8 | chain 32 | bytes only it needs 8 |
//
// A block's entries are pairs of the index (index.go, catalog.go), a key sharing its
// first bytes with the one before it: of kind 1 versions, whose values name places
// in this run, in the order of their MiB; of kind 2 control records and epochs, by
// key. So a rebuilt index is the runs' blocks and the frames of the segments that
// are left. Within a MiB come the versions that the run's end sees, by offset, then
// those of older points: a read of one image goes forward through the file.
//
// Each cell and piece has its CRC32C in its entry, each block and page its own;
// leaves are BLAKE3 over each MiB of header and body, the root BLAKE3 over the
// tail; the site log holds the root (manifest.go). The crc of pages and blocks is
// CRC32C over them with the field itself zero.
const (
	runMagic       = "AiRn"
	runFooterMagic = "AiRf"
	runBlockMagic  = "AiRb"

	blockHeaderBytes = 32
	maxBlockBytes    = 8 << 20  // checked before any allocation
	targetBlock      = 64 << 10 // a block is written when its entries take this much
	targetPieces     = 256 << 10
	directoryBytes   = 16
	runPointBytes    = 64
	leafBytes        = 1 << 20
	maxTailBytes     = 1 << 32 // of a run of 100 TiB

	blockVersions  = 1
	blockCatalogue = 2
)

// runPage is a run's header or footer; a header has none of the fields after Created.
type runPage struct {
	Magic    string
	Number   uint64
	Identity Identity
	Created  time.Time
	Body     int64
	Blocks   int64
	Points   int64
	Leaves   int64
	Entries  int64 // versions
	Payload  int64 // stored bytes of the versions
	Root     Chain
}

func (p *runPage) encode() []byte {
	b := make([]byte, pageBytes)
	le := binary.LittleEndian
	copy(b, p.Magic)
	le.PutUint16(b[4:], formatVersion)
	le.PutUint16(b[6:], pageBytes)
	le.PutUint64(b[24:], p.Number)
	copy(b[32:], p.Identity.Tenant[:])
	copy(b[48:], p.Identity.Group[:])
	copy(b[64:], p.Identity.Stream[:])
	le.PutUint64(b[80:], uint64(p.Created.UnixNano()))
	for i, v := range []int64{p.Body, p.Blocks, p.Points, p.Leaves, p.Entries, p.Payload} {
		le.PutUint64(b[88+8*i:], uint64(v))
	}
	copy(b[136:], p.Root[:])
	le.PutUint32(b[20:], crc32.Checksum(b, castagnoli))
	return b
}

// tailBytes is the room of directory, points and leaves.
func (p *runPage) tailBytes() int64 {
	return p.Blocks*directoryBytes + p.Points*runPointBytes + p.Leaves*int64(len(Chain{}))
}

// fileBytes is the length of the file that a footer ends.
func (p *runPage) fileBytes() int64 { return p.Body + padPage(p.tailBytes()) + pageBytes }

func padPage(n int64) int64 { return (n + pageBytes - 1) &^ (pageBytes - 1) }

func decodeRunPage(b []byte, magic string) (runPage, error) {
	var p runPage
	if len(b) < pageBytes || string(b[:4]) != magic {
		return p, errNoFrame
	}
	le := binary.LittleEndian
	page := append([]byte(nil), b[:pageBytes]...)
	le.PutUint32(page[20:], 0)
	if crc32.Checksum(page, castagnoli) != le.Uint32(b[20:]) {
		return p, badFrame("checksum of a run's page differs")
	}
	if v := le.Uint16(b[4:]); v != formatVersion {
		return p, fmt.Errorf("run version %d: %w", v, ErrIncompatible)
	}
	f := features{le.Uint32(b[8:]), le.Uint32(b[12:]), le.Uint32(b[16:])}
	if f != (features{}) {
		return p, fmt.Errorf("run with feature bits %v: %w", f, ErrIncompatible)
	}
	p = runPage{Magic: magic, Number: le.Uint64(b[24:]), Created: time.Unix(0, int64(le.Uint64(b[80:])))}
	copy(p.Identity.Tenant[:], b[32:])
	copy(p.Identity.Group[:], b[48:])
	copy(p.Identity.Stream[:], b[64:])
	for i, v := range []*int64{&p.Body, &p.Blocks, &p.Points, &p.Leaves, &p.Entries, &p.Payload} {
		*v = int64(le.Uint64(b[88+8*i:]))
		if *v < 0 || *v > 1<<50 {
			return p, badFrame("a length of %d in a run's page", *v)
		}
	}
	copy(p.Root[:], b[136:])
	if magic == runMagic {
		return p, nil
	}
	if p.Body < pageBytes || p.Body%pageBytes != 0 || p.tailBytes() > maxTailBytes || p.Leaves != (p.Body+leafBytes-1)/leafBytes {
		return p, badFrame("a run of %d bytes with a tail of %d", p.Body, p.tailBytes())
	}
	return p, nil
}

// blockPlace is where a block lies.
type blockPlace struct {
	offset int64
	bytes  int // without the padding
	kind   uint32
}

func (d blockPlace) encode(b []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint64(b, uint64(d.offset))
	b = le.AppendUint32(b, uint32(d.bytes))
	return le.AppendUint32(b, d.kind)
}

// order is a record's place in the order in which records came to this site: the
// ordinal of its epoch, its seq. Segments and runs each hold a range of it.
type order struct {
	Ordinal uint32 `json:"ordinal"`
	Seq     Seq    `json:"seq"`
}

func (o order) after(p order) bool {
	return o.Ordinal > p.Ordinal || (o.Ordinal == p.Ordinal && o.Seq > p.Seq)
}

// runPoint is a kept point of a run. only is the stored bytes that no other point
// of the run sees: what dropping it frees.
type runPoint struct {
	order
	time  time.Time
	chain Chain // after the frame that held it
	only  int64
}

func (p runPoint) encode(b []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint32(b, p.Ordinal)
	b = le.AppendUint32(b, 0)
	b = le.AppendUint64(b, uint64(p.Seq))
	b = le.AppendUint64(b, uint64(p.time.UnixNano()))
	b = append(b, p.chain[:]...)
	return le.AppendUint64(b, uint64(p.only))
}

// decodeRunTail reads directory and points and checks the tail against its root.
func decodeRunTail(f runPage, b []byte) ([]blockPlace, []runPoint, error) {
	if int64(len(b)) != f.tailBytes() {
		return nil, nil, badFrame("tail of %d bytes, want %d", len(b), f.tailBytes())
	}
	if blake3.Sum256(b) != f.Root {
		return nil, nil, badFrame("the root of a run's tail differs")
	}
	le := binary.LittleEndian
	blocks := make([]blockPlace, f.Blocks)
	for i := range blocks {
		d := blockPlace{int64(le.Uint64(b)), int(le.Uint32(b[8:])), le.Uint32(b[12:])}
		if d.offset < pageBytes || d.offset%pageBytes != 0 || d.bytes < blockHeaderBytes || d.bytes > maxBlockBytes || d.offset > f.Body-int64(d.bytes) {
			return nil, nil, badFrame("block of %d bytes at %d of %d", d.bytes, d.offset, f.Body)
		}
		blocks[i], b = d, b[directoryBytes:]
	}
	points := make([]runPoint, f.Points)
	for i := range points {
		p := runPoint{order: order{le.Uint32(b), Seq(le.Uint64(b[8:]))}, time: time.Unix(0, int64(le.Uint64(b[16:]))), only: int64(le.Uint64(b[56:]))}
		copy(p.chain[:], b[24:])
		if p.Ordinal == 0 || p.Seq == 0 || p.only < 0 || (i > 0 && !p.after(points[i-1].order)) {
			return nil, nil, badFrame("point %d.%d of a run is out of order", p.Ordinal, p.Seq)
		}
		points[i], b = p, b[runPointBytes:]
	}
	return blocks, points, nil
}

// blockBuilder gathers the entries of a block.
type blockBuilder struct {
	b       []byte // after the header
	entries int
	last    []byte
}

func (d *blockBuilder) add(k, v []byte) {
	n := 0
	for n < len(k) && n < len(d.last) && k[n] == d.last[n] {
		n++
	}
	d.b = binary.AppendUvarint(d.b, uint64(n))
	d.b = binary.AppendUvarint(d.b, uint64(len(k)-n))
	d.b = binary.AppendUvarint(d.b, uint64(len(v)))
	d.b = append(append(d.b, k[n:]...), v...)
	d.last = append(d.last[:0], k...)
	d.entries++
}

// finish is the block; the builder is empty then.
func (d *blockBuilder) finish(kind uint32) []byte {
	le := binary.LittleEndian
	b := make([]byte, blockHeaderBytes, blockHeaderBytes+len(d.b))
	copy(b, runBlockMagic)
	b = append(b, d.b...)
	le.PutUint32(b[8:], uint32(len(b)))
	le.PutUint32(b[12:], uint32(d.entries))
	le.PutUint32(b[16:], kind)
	le.PutUint32(b[4:], crc32.Checksum(b, castagnoli))
	*d = blockBuilder{b: d.b[:0], last: d.last[:0]}
	return b
}

// decodeBlock checks a block and calls each for its entries; key and value are
// reused.
func decodeBlock(b []byte, kind uint32, each func(k, v []byte) error) error {
	le := binary.LittleEndian
	if len(b) < blockHeaderBytes || string(b[:4]) != runBlockMagic {
		return badFrame("no block of a run")
	}
	crc := crc32.Update(0, castagnoli, b[:4])
	crc = crc32.Update(crc, castagnoli, []byte{0, 0, 0, 0})
	if crc32.Update(crc, castagnoli, b[8:]) != le.Uint32(b[4:]) {
		return badFrame("checksum of a run's block differs")
	}
	if int(le.Uint32(b[8:])) != len(b) || le.Uint32(b[16:]) != kind || !allZero(b[20:blockHeaderBytes]) {
		return badFrame("block of %d bytes, kind %d", le.Uint32(b[8:]), le.Uint32(b[16:]))
	}
	var k []byte
	r := valueReader{b: b[blockHeaderBytes:]}
	for range le.Uint32(b[12:]) {
		shared, rest, value := r.uvarint(), r.uvarint(), r.uvarint()
		if r.bad || shared > uint64(len(k)) || rest > uint64(len(r.b)) || value > uint64(len(r.b))-rest {
			return badFrame("entry of a run's block")
		}
		k = append(k[:shared], r.bytes(int(rest))...)
		if err := each(k, r.bytes(int(value))); err != nil {
			return err
		}
	}
	if len(r.b) > 0 {
		return badFrame("bytes after the last entry of a run's block")
	}
	return nil
}
