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
// The file is a segment's number twice, or a run's twice and one (fileid.go).
// A piece is the part of a cell that one record wrote; its checksum covers it
// whole. Formats 3 to 5 are kept for sealed cells, where after each CRC32C follow
// its tag 16, and the value begins with nonce 12, first ordinal 4 and key ordinal
// uvarint: a 4 KiB read needs no second look for its key. The index holds no
// plaintext.
const (
	levelSector   = 0
	levelCell     = 1
	levelMegabyte = 3  // the largest node of a payload
	maxLevel      = 13 // of 1 EiB; a node of level 14 would overflow an int64

	valueZero  = 0
	valueCells = 1
	valuePiece = 2
)

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
	keyThrough   = "t" // how far the index has come
	keyFormat    = "v" // indexFormat of the index

	indexKeyBytes = 1 + 4 + 1 + 8 + 4 + 8

	// indexFormat is how keys and values are laid out. An index of another format
	// is built anew from runs and segments, which are the truth.
	indexFormat = 2
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
	offset  int64 // in the file: of the node, or of the piece
	first   int   // piece: its first sector within the cell
	sectors int   // piece: how many
	crcs    []byte
}

func (p place) encode(b []byte) []byte {
	b = append(b[:0], p.format)
	if p.format == valueZero {
		return b
	}
	b = binary.AppendUvarint(b, uint64(p.file))
	b = binary.AppendUvarint(b, uint64(p.offset))
	if p.format == valuePiece {
		b = append(b, byte(p.first), byte(p.sectors))
	}
	return append(b, p.crcs...)
}

// decodePlace reads a value; crcs aliases it.
func decodePlace(b []byte, level int) (place, error) {
	bad := func() error { return fmt.Errorf("index value %.20x of level %d is none", b, level) }
	if len(b) == 0 {
		return place{}, bad()
	}
	p := place{format: b[0]}
	if b = b[1:]; p.format == valueZero {
		return p, nil
	}
	file, n := binary.Uvarint(b)
	if n <= 0 {
		return p, bad()
	}
	off, m := binary.Uvarint(b[n:])
	if m <= 0 {
		return p, bad()
	}
	p.file, p.offset, b = fileID(file), int64(off), b[n+m:]
	switch p.format {
	case valueCells:
		if level < levelCell || level > levelMegabyte || int64(len(b)) != nodeBytes(level)/pageBytes*cellEntryBytes {
			return p, bad()
		}
	case valuePiece:
		if level != levelSector || len(b) != 2+cellEntryBytes || b[0] > 7 || b[1] == 0 || b[0]+b[1] > 8 {
			return p, bad()
		}
		p.first, p.sectors, b = int(b[0]), int(b[1]), b[2:]
	default:
		return p, fmt.Errorf("index value of format %d: %w", p.format, ErrIncompatible)
	}
	p.crcs = b
	return p, nil
}

// indexRecord yields the keys and values of one data record at a frame's place.
// Both slices are reused between calls of put.
func indexRecord(r *record, ordinal uint32, s Seq, segment uint64, frame int64, put func(k, v []byte) error) error {
	var err error
	var k, v, crcs []byte
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
			p, crcs = r.placeOf(n, segment, frame, crcs)
		}
		k, v = indexKey(k, r.volume, n, ordinal, s), p.encode(v)
		err = put(k, v)
	})
	return err
}

// placeOf is where node n of r lies, r's frame being at offset frame.
func (r *record) placeOf(n node, segment uint64, frame int64, crcs []byte) (place, []byte) {
	file := func(off int64) int64 { return frame + r.payload + off - r.extent.Offset }
	cell := n.offset/pageBytes - r.extent.Offset/pageBytes // of n's first byte in the table
	crcs = crcs[:0]
	if n.level >= levelCell {
		for i := range nodeBytes(n.level) / pageBytes {
			crcs = binary.LittleEndian.AppendUint32(crcs, r.cells[cell+i])
		}
		return place{format: valueCells, file: segmentID(segment), offset: file(n.offset), crcs: crcs}, crcs
	}
	piece := pieceOf(r.extent, n.offset)
	crcs = binary.LittleEndian.AppendUint32(crcs, r.cells[cell])
	return place{
		format: valuePiece, file: segmentID(segment), offset: file(piece.Offset),
		first: int(piece.Offset % pageBytes / cbt.SectorBytes), sectors: int(piece.Length / cbt.SectorBytes), crcs: crcs,
	}, crcs
}

// pieceOf is the part of e that lies in the cell of off.
func pieceOf(e cbt.Extent, off int64) cbt.Extent {
	cell := off &^ (pageBytes - 1)
	first, end := max(e.Offset, cell), min(e.End(), cell+pageBytes)
	return cbt.Extent{Offset: first, Length: end - first}
}
