package journal

import (
	"encoding/binary"
	"fmt"

	"github.com/novacron/afterimage/cbt"
)

// The index says where the newest version of a block lies, as of any point of any
// lineage. It is a tree of 16-ary nodes over a volume: a sector, a 4 KiB cell of 8
// sectors, then nodes of 64 KiB, 1 MiB, 16 MiB and on. A record is cut into the
// largest aligned nodes that it covers (payloads into nodes of at most 1 MiB), each
// one key in Pebble:
//
//	'i' | volume 4 | level 1 | node 8 | ^epoch ordinal 4 | ^seq 8      (big-endian)
//
// A cell is looked up once a level in use: seek to (node, epoch, seq) of the view
// and take the first version. Ordinals rise along every lineage, so a version that
// lies outside the view's is passed by one seek, to the end of the epoch's interval
// in the lineage or to the next lower epoch in it: a read costs levels and forks,
// never versions. Of the levels' finds the highest seq wins.
//
//	value of a zero or trim:   | format 1 = 0 |
//	value of whole cells:      | format 1 = 1 | file uvarint | file offset uvarint | CRC32C 4 × cells |
//	value of a sector:         | format 1 = 2 | file uvarint | file offset of piece uvarint |
//	                           | first sector of piece in its cell 1 | sectors of piece 1 | CRC32C 4 |
//
//	value of sealed cells:     | format 1 = 3 | file | file offset | record | (CRC32C 4, tag 16) × cells |
//	value of a sealed sector:  | format 1 = 4 | file | file offset | first 1 | sectors 1 | record | CRC32C 4 | tag 16 |
//	value of a packed node:    | format 1 = 5 | file | file offset of payload | stored uvarint | record | CRC32C 4 |
//	value of both:             | format 1 = 6 | file | file offset of payload | stored uvarint | record | CRC32C 4 | tag 16 |
//	record:  | node's distance from its begin uvarint | length × 2, +1 of a fill, uvarint | (both in sectors)
//	         | codec 1 | and, of a sealed one, | number of the data key uvarint | nonce 12 |
//
// The file is a segment's number twice, or a run's twice and one (fileid.go).
// A piece is the part of a cell that one record wrote; its checksum covers it
// whole. With epoch and seq of the key, "record" is all that the seal is bound to
// and where in the payload the node lies: a 4 KiB read needs no second look for
// its checksum, tag, nonce and key. The index holds no plaintext of guests.
const (
	levelSector   = 0
	levelCell     = 1
	levelMegabyte = 3  // the largest node of a payload
	maxLevel      = 13 // of 1 EiB; a node of level 14 would overflow an int64

	valueZero  = 0
	valueCells = 1
	valuePiece = 2

	valueSealedCells  = 3
	valueSealedPiece  = 4
	valuePacked       = 5
	valueSealedPacked = 6
)

// sealedFormat is what a format is called where the cells are sealed.
var sealedFormat = [...]byte{valueCells: valueSealedCells, valuePiece: valueSealedPiece, valuePacked: valueSealedPacked}

// nodeBytes is the size of a node of level l.
func nodeBytes(l int) int64 {
	if l == levelSector {
		return cbt.SectorBytes
	}
	return cbt.CellBytes << (4 * (l - 1))
}

// node is one aligned part of an extent.
type node struct {
	level  int
	offset int64
}

// cut yields the nodes of e, at most of level top, ascending.
func cut(e cbt.Extent, top int, yield func(node)) {
	at := e.Offset
	for at < e.End() {
		l := levelSector
		for l < top {
			n := nodeBytes(l + 1)
			if n <= 0 || at%n != 0 || e.End()-at < n {
				break
			}
			l++
		}
		yield(node{l, at})
		at += nodeBytes(l)
	}
}

const (
	prefixIndex  = 'i'
	prefixState  = 's' // synced or gap of a volume
	prefixHappen = 'h' // control records by kind
	prefixSample = 'p' // where frames lie
	prefixBranch = 'b' // epochs by ordinal
	prefixLevels = 'l' // levels in use by volume
	prefixTail   = 'c' // copies of runs' tails
	keyThrough   = "t" // how far the index has come
	keyFormat    = "v" // indexFormat of the index
	keySiteCopy  = "e" // the site log's values (sitecopy.go)

	indexKeyBytes = 1 + 4 + 1 + 8 + 4 + 8

	// indexFormat is how keys and values are laid out. An index of another format
	// is built anew from runs and segments, which are the truth.
	indexFormat = 3
)

func indexKey(b []byte, volume uint32, n node, ordinal uint32, s Seq) []byte {
	be := binary.BigEndian
	b = append(b[:0], prefixIndex)
	b = be.AppendUint32(b, volume)
	b = append(b, byte(n.level))
	b = be.AppendUint64(b, uint64(n.offset/nodeBytes(n.level)))
	b = be.AppendUint32(b, ^ordinal)
	return be.AppendUint64(b, ^uint64(s))
}

// indexEntry is a decoded key.
type indexEntry struct {
	volume  uint32
	node    node
	ordinal uint32
	seq     Seq
}

func decodeIndexKey(k []byte) (indexEntry, error) {
	if len(k) != indexKeyBytes || k[0] != prefixIndex || k[5] > maxLevel {
		return indexEntry{}, fmt.Errorf("index key %x is none", k)
	}
	be := binary.BigEndian
	l := int(k[5])
	return indexEntry{
		volume: be.Uint32(k[1:]), node: node{l, int64(be.Uint64(k[6:])) * nodeBytes(l)},
		ordinal: ^be.Uint32(k[14:]), seq: Seq(^be.Uint64(k[18:])),
	}, nil
}

// place is where a node's bytes lie.
type place struct {
	format  byte
	file    fileID
	offset  int64 // in the file: of the node, of the piece, or of the packed payload
	first   int   // piece: its first sector within the cell
	sectors int   // piece: how many
	stored  int64 // packed: bytes of the payload as stored
	of      *origin
	crcs    []byte // an entry for each stored cell: CRC32C and, where sealed, tag
}

// origin is what a sealed or packed node must know of its record.
type origin struct {
	before int64 // bytes of the record before the node
	length int64 // of the record's extent
	fill   bool
	codec  uint8
	key    uint16
	nonce  [12]byte
}

func (p place) sealed() bool {
	return p.format == valueSealedCells || p.format == valueSealedPiece || p.format == valueSealedPacked
}
func (p place) packed() bool { return p.format == valuePacked || p.format == valueSealedPacked }
func (p place) piece() bool  { return p.format == valuePiece || p.format == valueSealedPiece }

func (p place) encode(b []byte) []byte {
	b = append(b[:0], p.format)
	if p.format == valueZero {
		return b
	}
	b = binary.AppendUvarint(b, uint64(p.file))
	b = binary.AppendUvarint(b, uint64(p.offset))
	if p.piece() {
		b = append(b, byte(p.first), byte(p.sectors))
	}
	if p.packed() {
		b = binary.AppendUvarint(b, uint64(p.stored))
	}
	if p.of != nil {
		b = p.of.encode(b, p.sealed())
	}
	return append(b, p.crcs...)
}

func (o *origin) encode(b []byte, sealed bool) []byte {
	length := uint64(o.length/cbt.SectorBytes) << 1
	if o.fill {
		length |= 1
	}
	b = binary.AppendUvarint(b, uint64(o.before/cbt.SectorBytes))
	b = binary.AppendUvarint(b, length)
	b = append(b, o.codec)
	if sealed {
		b = binary.AppendUvarint(b, uint64(o.key))
		b = append(b, o.nonce[:]...)
	}
	return b
}

// valueReader takes an index value apart; bad is set where it ends too early.
type valueReader struct {
	b   []byte
	bad bool
}

func (r *valueReader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *valueReader) bytes(n int) []byte {
	if len(r.b) < n {
		r.bad, r.b = true, nil
		return make([]byte, n)
	}
	p := r.b[:n]
	r.b = r.b[n:]
	return p
}

// sectors reads a number of sectors, as bytes, of at most limit.
func (r *valueReader) sectors(v uint64, limit int64) int64 {
	if v > uint64(limit/cbt.SectorBytes) {
		r.bad = true
		return 0
	}
	return int64(v) * cbt.SectorBytes
}

func (r *valueReader) origin(sealed bool) *origin {
	o := &origin{before: r.sectors(r.uvarint(), cbt.MaxWriteBytes)}
	length := r.uvarint()
	o.fill, o.length = length&1 != 0, r.sectors(length>>1, cbt.MaxWriteBytes)
	o.codec = r.bytes(1)[0]
	if sealed {
		key := r.uvarint()
		r.bad = r.bad || key == 0 || key > maxEpochKeys
		o.key = uint16(key)
		copy(o.nonce[:], r.bytes(len(o.nonce)))
	}
	return o
}

// decodePlace reads a value; crcs aliases it.
func decodePlace(b []byte, level int) (place, error) {
	bad := func() error { return fmt.Errorf("index value %.20x of level %d is none", b, level) }
	if len(b) == 0 {
		return place{}, bad()
	}
	p := place{format: b[0]}
	if p.format == valueZero {
		return p, nil
	}
	if p.format > valueSealedPacked {
		return p, fmt.Errorf("index value of format %d: %w", p.format, ErrIncompatible)
	}
	r := valueReader{b: b[1:]}
	p.file, p.offset = fileID(r.uvarint()), int64(r.uvarint())
	if p.piece() {
		at := r.bytes(2)
		p.first, p.sectors = int(at[0]), int(at[1])
		r.bad = r.bad || at[0] > 7 || at[1] == 0 || at[0]+at[1] > 8
	}
	if p.packed() {
		stored := r.uvarint()
		r.bad = r.bad || stored == 0 || stored >= maxPackedBytes
		p.stored = int64(stored)
	}
	if p.packed() || p.sealed() {
		p.of = r.origin(p.sealed())
		r.bad = r.bad || p.of.before >= p.of.length || p.packed() != (p.of.codec != codecNone)
	}
	p.crcs = r.b
	if r.bad || !p.fits(level) || int64(len(p.crcs)) != p.cells(level)*int64(entryBytes(p.sealed())) {
		return p, bad()
	}
	return p, nil
}

// fits reports that a node of level may have a value of p's format.
func (p place) fits(level int) bool {
	switch {
	case p.packed():
		return level < levelMegabyte && p.of.before+nodeBytes(level) <= p.of.length && p.of.length <= maxPackedBytes
	case p.piece():
		return level == levelSector
	}
	return level >= levelCell && level <= levelMegabyte && (p.of == nil || p.of.before+nodeBytes(level) <= p.of.length)
}

// cells is how many stored cells p holds, of a node of level.
func (p place) cells(level int) int64 {
	if p.packed() || p.piece() {
		return 1
	}
	return nodeBytes(level) / pageBytes
}

// indexRecord yields the keys and values of one data record at a frame's place.
// Both slices are reused between calls of put.
func indexRecord(r *record, ordinal uint32, s Seq, segment uint64, frame int64, put func(k, v []byte) error) error {
	var e entryMaker
	return e.record(r, ordinal, s, segment, frame, put)
}

// entryMaker is memory for entries, that many records share.
type entryMaker struct {
	k, v, crcs []byte
}

// record is indexRecord.
func (m *entryMaker) record(r *record, ordinal uint32, s Seq, segment uint64, frame int64, put func(k, v []byte) error) error {
	var err error
	top := maxLevel
	if r.kind.hasPayload() {
		top = levelMegabyte
	}
	cut(r.extent, top, func(n node) {
		if err != nil {
			return
		}
		p := place{format: valueZero}
		if r.kind.hasPayload() {
			p, m.crcs = r.placeOf(n, segment, frame, m.crcs)
		}
		m.k, m.v = indexKey(m.k, r.volume, n, ordinal, s), p.encode(m.v)
		err = put(m.k, m.v)
	})
	return err
}

// placeOf is where node n of r lies, r's frame being at offset frame.
func (r *record) placeOf(n node, segment uint64, frame int64, crcs []byte) (place, []byte) {
	before := n.offset - r.extent.Offset
	p := place{format: valueCells, file: segmentID(segment), offset: frame + r.payload + before}
	cell, cells := int(n.offset/pageBytes-r.extent.Offset/pageBytes), int(nodeBytes(n.level)/pageBytes)
	switch {
	case r.packed():
		p.format, p.offset, p.stored = valuePacked, frame+r.payload, int64(r.stored)
		cell, cells = 0, 1
	case n.level == levelSector:
		piece := pieceOf(r.extent, n.offset)
		p.format, p.offset = valuePiece, frame+r.payload+piece.Offset-r.extent.Offset
		p.first, p.sectors = int(piece.Offset%pageBytes/cbt.SectorBytes), int(piece.Length/cbt.SectorBytes)
		cells = 1
	}
	if r.sealed() {
		p.format = sealedFormat[p.format]
	}
	if r.sealed() || r.packed() {
		p.of = &origin{before: before, length: r.extent.Length, fill: r.kind == KindFill, codec: r.codec, key: r.key, nonce: r.nonce}
	}
	crcs = crcs[:0]
	for i := range cells {
		crcs = r.appendEntry(crcs, cell+i)
	}
	p.crcs = crcs
	return p, crcs
}

// pieceOf is the part of e that lies in the cell of off.
func pieceOf(e cbt.Extent, off int64) cbt.Extent {
	cell := off &^ (pageBytes - 1)
	first, end := max(e.Offset, cell), min(e.End(), cell+pageBytes)
	return cbt.Extent{Offset: first, Length: end - first}
}
