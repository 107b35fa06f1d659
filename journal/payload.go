package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/novacron/afterimage/cbt"
)

// Stored bytes become a guest's in three steps, of which most payloads take the
// first alone: each stored cell's CRC32C is compared, the cells are opened with the
// data key, and what is packed is unpacked. Damage shows in the first step, with or
// without a key; what passes it and does not open was moved or forged, which is
// damage too. A key that is not to be had is a *KeyError and says nothing about the
// bytes.

const (
	cellDiffers   = "checksum of a cell differs"
	cellNotSealed = "a cell's checksum is right, but it is not what was sealed in its place"
)

// recordOf is what p, the place of n, tells of its record.
func (p place) recordOf(n node) record {
	r := record{kind: KindWrite, stored: uint32(p.stored)}
	if p.of == nil {
		return r
	}
	if p.of.fill {
		r.kind = KindFill
	}
	if p.packed() {
		r.flags |= flagPacked
	}
	if p.sealed() {
		r.flags |= flagSealed
	}
	r.extent = cbt.Extent{Offset: n.offset - p.of.before, Length: p.of.length}
	r.codec, r.key, r.nonce = p.of.codec, p.of.key, p.of.nonce
	return r
}

// lies is the volume extent of the bytes that f's place holds and are checked
// together with those of want: whole cells, a piece, or the record that is packed.
func (f *found) lies(want cbt.Extent) cbt.Extent {
	switch {
	case f.packed():
		return cbt.Extent{Offset: f.node.offset - f.of.before, Length: f.of.length}
	case f.piece():
		return cbt.Extent{Offset: f.node.offset&^(pageBytes-1) + int64(f.first)*cbt.SectorBytes, Length: int64(f.sectors) * cbt.SectorBytes}
	}
	first, end := want.Offset&^(pageBytes-1), (want.End()+pageBytes-1)&^(pageBytes-1)
	return cbt.Extent{Offset: first, Length: end - first}
}

// storedAt is where in f's file the stored bytes begin that a read of want needs,
// and how many they are.
func (f *found) storedAt(want cbt.Extent) (at, n int64) {
	if f.packed() {
		return f.offset, f.stored
	}
	e := f.lies(want)
	if f.piece() {
		return f.offset, e.Length
	}
	return f.offset + e.Offset - f.node.offset, e.Length
}

// openStored makes the guest's bytes of what storedAt named: buf, which it may
// change. It returns them, and the extent that they are of.
func (a *asOf) openStored(v volumeBody, f *found, want cbt.Extent, buf []byte) ([]byte, cbt.Extent, error) {
	at, _ := f.storedAt(want)
	e, entry := f.lies(want), entryBytes(f.sealed())
	table := f.crcs
	if !f.packed() && !f.piece() {
		table = table[(e.Offset-f.node.offset)/pageBytes*int64(entry):]
	}
	step := pageBytes
	if f.packed() {
		step = len(buf)
	}
	for c := 0; c < len(buf); c += step {
		sum := crc32.Checksum(buf[c:min(c+step, len(buf))], castagnoli)
		if sum != binary.LittleEndian.Uint32(table[c/step*entry:]) && !a.j.o.faults.headerOnlyCRC {
			return nil, e, a.damage(v, f, at+int64(c), cellDiffers)
		}
	}
	if f.of == nil {
		return buf, e, nil
	}
	r := f.recordOf(f.node)
	if f.sealed() {
		i, _ := a.lineage.Owner(f.seq)
		first := int(max(e.Offset, r.extent.Offset)/pageBytes - r.extent.Offset/pageBytes)
		tag := func(i int) []byte { return table[i*entry+cellEntryBytes:][:sealedTagBytes] }
		err := a.j.unseal(&r, v.ID, i.Epoch, f.seq, buf, first, tag)
		if errors.Is(err, errUnsealed) {
			return nil, e, a.damage(v, f, at, cellNotSealed)
		}
		if err != nil {
			return nil, e, err
		}
	}
	if !f.packed() {
		return buf, e, nil
	}
	plain := make([]byte, r.extent.Length)
	if err := unpack(r.codec, plain, buf); errors.Is(err, ErrIncompatible) {
		return nil, e, err
	} else if err != nil {
		return nil, e, a.damage(v, f, at, err.Error())
	}
	return plain, e, nil
}

// unseal opens stored cells of r, from entry first of its table on, in place.
func (j *Journal) unseal(r *record, volume cbt.VolumeID, e EpochID, s Seq, buf []byte, first int, tag func(int) []byte) error {
	k, err := j.keys.open(j.o.Keys, j.identity, e, r.key)
	if err != nil {
		return err
	}
	return k.openCells(r, buf, first, tag, r.bound(j.identity, volume, e, s))
}

// payloadOf reads a record's whole payload from its frame, as the guest wrote it.
// Damage is a plain error; the caller knows where it lies.
func (j *Journal) payloadOf(r *record, volume cbt.VolumeID, e EpochID, s Seq, read func(p []byte) error) ([]byte, error) {
	buf := make([]byte, r.stored)
	if err := read(buf); err != nil {
		return nil, err
	}
	for i, crc := range r.cells {
		from, to := r.storedCell(i)
		if crc32.Checksum(buf[from:to], castagnoli) != crc {
			return nil, badFrame(cellDiffers)
		}
	}
	if r.sealed() {
		tag := func(i int) []byte { return r.tags[i*sealedTagBytes:][:sealedTagBytes] }
		if err := j.unseal(r, volume, e, s, buf, 0, tag); errors.Is(err, errUnsealed) {
			return nil, badFrame(cellNotSealed)
		} else if err != nil {
			return nil, err
		}
	}
	if !r.packed() {
		return buf, nil
	}
	plain := make([]byte, r.extent.Length)
	if err := unpack(r.codec, plain, buf); err != nil {
		return nil, fmt.Errorf("%w: %w", errBadFrame, err)
	}
	return plain, nil
}
