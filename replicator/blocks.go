package replicator

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/zeebo/blake3"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
)

// Both ends of a packed stream remember the blocks of the frames that went over it, so
// that a block that comes again, at another place or in another volume of the group,
// is sent as a reference. The tables are of one size and forget alike: a block's hash
// names its slot, and the newest block in a slot stays. They need not agree: what the
// replica does not find it asks for. The source's knows hashes alone, the replica's
// where the block lies in its own journal, so that a reference reaches back as far as
// the table: 256 MiB of blocks, for 2 MiB of memory.
//
// A table is one group's, with one peer: nobody learns what another group holds.
const tableSlots = 1 << 16

// blockKey is as much of a hash as a table keeps. It finds a block; what names it is the whole hash.
type blockKey [16]byte

func (h blockHash) slot() uint32  { return binary.LittleEndian.Uint32(h[16:]) % tableSlots }
func (h blockHash) key() blockKey { return blockKey(h[:16]) }

// worthRemembering reports that a block at an offset of its frame may come again: the
// first block is the frame's own header, and zeros pack to nothing.
func worthRemembering(block []byte, at int64) bool {
	return at > 0 && !bytes.Equal(block, zeroBlock[:])
}

var zeroBlock [blockBytes]byte

// sentBlocks is the source's table: what the replica holds.
type sentBlocks struct {
	slots []sentBlock
	of    tableName
}

type sentBlock struct {
	key blockKey
	seq journal.Seq // of the last record of its frame; 0: empty
}

// tableName tells one table of a replica from every other.
type tableName struct {
	life  cbt.ID // of the peer's process
	table uint64
}

// begin makes the table that of a replica which holds the frames up to seq.
func (t *sentBlocks) begin(of tableName, seq journal.Seq) {
	if t.of != of {
		clear(t.slots)
		t.of = of
		return
	}
	for i := range t.slots {
		if t.slots[i].seq > seq {
			t.slots[i] = sentBlock{}
		}
	}
}

func (t *sentBlocks) has(h blockHash) bool {
	if t.slots == nil {
		return false
	}
	s := &t.slots[h.slot()]
	return s.seq != 0 && s.key == h.key()
}

func (t *sentBlocks) note(h blockHash, seq journal.Seq) {
	if t.slots == nil {
		t.slots = make([]sentBlock, tableSlots)
	}
	t.slots[h.slot()] = sentBlock{h.key(), seq}
}

// heldBlocks is the replica's table: where blocks lie in its journal.
type heldBlocks struct {
	number uint64 // of the table, in this process's life
	slots  []heldBlock
}

type heldBlock struct {
	key   blockKey
	frame journal.FramePlace
	at    uint32 // in the frame
}

func (t *heldBlocks) find(h blockHash) (heldBlock, bool) {
	if t.slots == nil {
		return heldBlock{}, false
	}
	b := t.slots[h.slot()]
	return b, b.key == h.key() && b.frame != journal.FramePlace{}
}

func (t *heldBlocks) note(h blockHash, frame journal.FramePlace, at uint32) {
	if t.slots == nil {
		t.slots = make([]heldBlock, tableSlots)
	}
	t.slots[h.slot()] = heldBlock{h.key(), frame, at}
}

// fill fills block with the one that h names, as the replica holds it, or returns
// errNotHeld.
func (t *heldBlocks) fill(from BlockReplica, h blockHash, block []byte, f *faults) error {
	b, ok := t.find(h)
	if !ok {
		return errNotHeld
	}
	if err := from.ReadFrame(b.frame, block, int64(b.at)); err != nil {
		return fmt.Errorf("%w: %w", errNotHeld, err)
	}
	if blockHash(blake3.Sum256(block)) != h && !f.staleBlocks {
		return errNotHeld
	}
	return nil
}

// forget empties the table; it is another one then.
func (t *heldBlocks) forget(number uint64) {
	clear(t.slots)
	t.number = number
}
