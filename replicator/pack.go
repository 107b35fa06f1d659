package replicator

import (
	"github.com/pierrec/lz4/v4"
	"github.com/zeebo/blake3"

	"github.com/novacron/afterimage/journal"
)

// framePacker makes the parts of the frames of one stream (packed.go), a chunk at a
// time: runs of blocks that the replica holds become references, the rest LZ4 where that
// gains a sixteenth. Bytes that do not shrink are found by trying: after each chunk that
// gained nothing, twice as many as before are not tried.
type framePacker struct {
	forms uint32
	sent  *sentBlocks
	lz    lz4.Compressor
	out   []byte
	trial []byte

	first      bool // the chunk under way begins the frame
	vain, skip int  // chunks that gained nothing in a row; chunks that are not tried

	hashes []blockHash // of the chunk under way
	held   []bool
	news   []blockHash // of the frame under way
}

const (
	lz4Gain = 16 // at least one part in so many
	maxSkip = 64
)

func newFramePacker(sent *sentBlocks) *framePacker {
	return &framePacker{sent: sent, out: make([]byte, 0, maxPartBytes+maxPartBlocks*partHeadBytes), trial: make([]byte, maxPartBytes)}
}

// begin starts a frame, for a replica that takes forms.
func (k *framePacker) begin(forms uint32) {
	k.forms, k.news = forms, k.news[:0]
}

// chunk is what crosses the wire for p, at most 64 KiB that lie at at in the frame, a
// multiple of 4096. It is valid until the next call.
func (k *framePacker) chunk(p []byte, at int64) []byte {
	k.out, k.first = k.out[:0], at == 0
	hashes, held := k.look(p, at)
	from := 0 // what lies before it is in out
	for i := 0; i < len(held); {
		run := i
		for run < len(held) && held[run] == held[i] {
			run++
		}
		if held[i] {
			k.data(p[from : i*blockBytes])
			k.references(hashes[i:run])
			from = run * blockBytes
		}
		i = run
	}
	k.data(p[from:])
	return k.out
}

// look finds out which blocks of p the replica holds, and notes all of them.
func (k *framePacker) look(p []byte, at int64) ([]blockHash, []bool) {
	k.hashes, k.held = k.hashes[:0], k.held[:0]
	if k.forms&takesHeld == 0 {
		return nil, nil
	}
	for i := 0; i+blockBytes <= len(p); i += blockBytes {
		block := p[i:][:blockBytes]
		var h blockHash
		known := false
		if worthRemembering(block, at+int64(i)) {
			h = blake3.Sum256(block)
			known = k.sent.has(h)
			k.news = append(k.news, h)
		}
		k.hashes, k.held = append(k.hashes, h), append(k.held, known)
	}
	return k.hashes, k.held
}

// references adds a part for blocks that the replica holds.
func (k *framePacker) references(hashes []blockHash) {
	k.out = part{partHeld, len(hashes) * blockBytes, len(hashes) * len(blockHash{})}.appendTo(k.out)
	for _, h := range hashes {
		k.out = append(k.out, h[:]...)
	}
}

// data adds a part for bytes that the replica does not hold.
func (k *framePacker) data(p []byte) {
	if len(p) == 0 {
		return
	}
	if k.forms&takesLZ4 != 0 && (k.first || k.tries()) {
		n, err := k.lz.CompressBlock(p, k.trial[:len(p)-max(len(p)/lz4Gain, 1)])
		if err == nil && n > 0 {
			if !k.first { // it tells nothing of the payloads
				k.vain = 0
			}
			k.out = part{partLZ4, len(p), n}.appendTo(k.out)
			k.out = append(k.out, k.trial[:n]...)
			return
		}
		if !k.first {
			k.vain++
			k.skip = min(1<<min(k.vain, 16), maxSkip) - 1
		}
	}
	k.out = part{partPlain, len(p), len(p)}.appendTo(k.out)
	k.out = append(k.out, p...)
}

func (k *framePacker) tries() bool {
	if k.skip > 0 {
		k.skip--
		return false
	}
	return true
}

// end makes the blocks of the frame, whose last record is seq, known as held.
func (k *framePacker) end(seq journal.Seq) {
	for _, h := range k.news {
		k.sent.note(h, seq)
	}
}
