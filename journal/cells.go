package journal

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/cockroachdb/pebble/v2"

	"github.com/novacron/afterimage/cbt"
)

// Sites fold each by themselves, so no two have the same runs; but what a record
// stored is the same bytes everywhere, sealed or not, wherever it lies: in a frame,
// in a run, cut into smaller nodes, packed once more. So sites give each other the
// stored bytes of a version, named by who wrote it and what it wrote:
//
//	asked for:  record (epoch, seq), volume, extent: whole cells, a piece, or the
//	            extent of a packed payload
//	given:      the stored bytes of just that extent, if they lie there as one;
//	            else its cells one after the other, unpacked where a fold packed them
//
// Who asks knows the checksums and takes whichever form of the answer has them.

// Cells names stored bytes of one version.
type Cells struct {
	Position
	Volume cbt.VolumeID
	Extent cbt.Extent
}

func (c Cells) String() string {
	return fmt.Sprintf("record %s, volume %s, %d bytes at %d", c.Position, cbt.ID(c.Volume).Short(), c.Extent.Length, c.Extent.Offset)
}

// MaxCellsBytes is the most that one question for cells may name.
const MaxCellsBytes = chunkBytes

// Check refuses an extent that no version stores as one.
func (c Cells) Check() error {
	e := c.Extent
	if e.Offset < 0 || e.Length <= 0 || e.Length > MaxCellsBytes || e.Offset%cbt.SectorBytes != 0 || e.Length%cbt.SectorBytes != 0 || e.Offset > 1<<62 {
		return fmt.Errorf("%d bytes at %d: %w", e.Length, e.Offset, ErrOutOfRange)
	}
	return nil
}

// FetchCells gives stored bytes as a peer has them. Nothing of what it returns is
// trusted.
type FetchCells func(ctx context.Context, c Cells) ([]byte, error)

// StoredCells is the stored bytes that c names, read and verified: what a peer repairs
// a run with. Errors: ErrNoPoint where the version is not held here, or is not kept,
// *DamageError.
func (j *Journal) StoredCells(ctx context.Context, c Cells) ([]byte, error) {
	if err := errors.Join(ctx.Err(), c.Check()); err != nil {
		return nil, fmt.Errorf("find stored bytes: %w", err)
	}
	j.reading.RLock()
	defer j.reading.RUnlock()
	b, err := j.storedCells(c)
	if err != nil {
		return nil, fmt.Errorf("find stored bytes of %s: %w", c, err)
	}
	return b, nil
}

func (j *Journal) storedCells(c Cells) ([]byte, error) {
	volume, ordinal := j.volumeOrdinal(c.Volume), j.ordinalOf(c.Epoch)
	if volume == 0 || ordinal == 0 {
		return nil, ErrNoPoint
	}
	var out []byte
	for at := c.Extent.Offset; at < c.Extent.End(); {
		n, p, err := j.versionAt(volume, at, ordinal, c.Seq)
		if err != nil {
			return nil, err
		}
		lies := p.lies(n)
		stored := make([]byte, p.storedBytes())
		if err := j.readAt(p.file, stored, p.offset); err != nil && missing(err) != nil {
			return nil, err
		} else if err != nil || !p.intact(stored) {
			return nil, &DamageError{Hop: "read", Volume: c.Volume, Epoch: c.Epoch, Seq: c.Seq, File: p.file.name(), Offset: p.offset, What: cellDiffers}
		}
		if lies == c.Extent {
			return stored, nil
		}
		if p.packed() {
			if p.sealed() { // it opens as a whole or not at all
				return nil, ErrNoPoint
			}
			plain := make([]byte, lies.Length)
			if err := unpack(p.of.codec, plain, stored); err != nil {
				return nil, err
			}
			stored = plain
		}
		end := min(lies.End(), c.Extent.End())
		out, at = append(out, stored[at-lies.Offset:end-lies.Offset]...), end
	}
	return out, nil
}

// lies is the extent of a volume of all bytes that are stored at p, the place of n.
func (p place) lies(n node) cbt.Extent {
	switch {
	case p.packed():
		return cbt.Extent{Offset: n.offset - p.of.before, Length: p.of.length}
	case p.piece():
		return cbt.Extent{Offset: n.offset&^(pageBytes-1) + int64(p.first)*cbt.SectorBytes, Length: int64(p.sectors) * cbt.SectorBytes}
	}
	return cbt.Extent{Offset: n.offset, Length: nodeBytes(n.level)}
}

// versionAt is the place of what one record stored at an offset of a volume.
func (j *Journal) versionAt(volume uint32, off int64, ordinal uint32, s Seq) (node, place, error) {
	var k []byte
	for l := range levelMegabyte + 1 {
		n := node{l, off &^ (nodeBytes(l) - 1)}
		k = indexKey(k, volume, n, ordinal, s)
		raw, closer, err := j.db.Get(k)
		if errors.Is(err, pebble.ErrNotFound) {
			continue
		}
		if err != nil {
			return n, place{}, fmt.Errorf("read index: %w", err)
		}
		p, err := decodePlace(append([]byte(nil), raw...), l)
		if err = errors.Join(err, closer.Close()); err != nil {
			return n, p, err
		}
		if p.format == valueZero {
			break
		}
		return n, p, nil
	}
	return node{}, place{}, ErrNoPoint
}

func (j *Journal) volumeOrdinal(id cbt.VolumeID) uint32 {
	j.mu.Lock()
	defer j.mu.Unlock()
	if v, ok := j.volumes[id]; ok {
		return v.Ordinal
	}
	for o, known := range j.names {
		if known == id {
			return o
		}
	}
	return 0
}

// fetchStored asks for the stored bytes of p, the place of e's node, and makes of the
// answer what lies there by its checksums; nil where it cannot be made of it.
func (j *Journal) fetchStored(ctx context.Context, fetch FetchCells, e indexEntry, p place) ([]byte, error) {
	if fetch == nil {
		return nil, errNobody
	}
	j.mu.Lock()
	if e.ordinal == 0 || int(e.ordinal) > len(j.branches) {
		j.mu.Unlock()
		return nil, ErrUnknownParent
	}
	c := Cells{Position: Position{j.branches[e.ordinal-1].ID, e.seq}, Extent: p.lies(e.node)}
	j.mu.Unlock()
	c.Volume = j.volumeOf(e.volume)
	b, err := fetch(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w", c, err)
	}
	if b = j.storedAs(p, c.Extent.Length, b); b == nil {
		return nil, fmt.Errorf("check fetched %s: %s", c, cellDiffers)
	}
	return b, nil
}

var errNobody = errors.New("nobody is there to ask")

// storedAs is the form of an answer that has the checksums of p, whose plain bytes
// are n; nil when none has.
func (j *Journal) storedAs(p place, n int64, b []byte) []byte {
	fits := func(b []byte) bool { return int64(len(b)) == p.storedBytes() && p.intact(b) }
	if fits(b) {
		return b
	}
	if p.sealed() {
		return nil
	}
	plain := b
	if int64(len(b)) != n {
		plain = make([]byte, n)
		if unpack(codecLZ4, plain, b) != nil {
			return nil
		}
	}
	if fits(plain) {
		return plain
	}
	if !p.packed() {
		return nil
	}
	if packed, err := j.packer.pack(plain, len(plain)/4*3); err == nil && fits(packed) {
		return packed
	}
	return nil
}

// readStored reads p's stored bytes; false where they are not what its checksums say.
func (j *Journal) readStored(p place) ([]byte, bool, error) {
	b := make([]byte, p.storedBytes())
	err := j.readAt(p.file, b, p.offset)
	if err != nil && (missing(err) == nil || errors.Is(err, os.ErrNotExist)) {
		return b, false, nil
	}
	return b, err == nil && p.intact(b), err
}
