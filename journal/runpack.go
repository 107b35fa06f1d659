package journal

import (
	"encoding/binary"
	"hash/crc32"
)

// packForRun is the place and the bytes under which a run stores what a version of n
// stored as p: the same, unless it is a cell or 64 KiB of them, neither sealed nor
// packed, and LZ4 saves a quarter. A run is this site's own: what it packs is nobody
// else's concern. What does not shrink stays in its pages, so that an image is read
// from them in order.
func (j *Journal) packForRun(p place, n node, stored []byte) (place, []byte) {
	if p.format != valueCells || n.level > levelCell+1 || j.packer.mode == CompressOff {
		return p, stored
	}
	packed, err := j.packer.pack(stored, len(stored)/4*3)
	if err != nil {
		return p, stored
	}
	p.format, p.stored = valuePacked, int64(len(packed))
	p.of = &origin{length: int64(len(stored)), codec: codecLZ4}
	p.crcs = binary.LittleEndian.AppendUint32(nil, crc32.Checksum(packed, castagnoli))
	return p, packed
}
