package journal

import (
	"errors"
	"fmt"
	"hash/crc32"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pierrec/lz4/v4"
)

// What a payload costs is decided once, at the primary, before it is sealed: zeros
// are a record without payload; 8 to 64 KiB that LZ4 makes at least a page smaller
// are packed, if that holds up nobody. Fold packs what is not sealed once more, in
// runs that are a site's own. Lengths show through a seal: what a group's writes
// compress to is told to who sees its journal, unless Compress is off.

// Compression says when payloads are made smaller.
type Compression uint8

// Modes. CompressAuto packs while nothing waits to be written or to become durable,
// on at most one core less than there are and a quarter of the time (in SyncProcess,
// where no disk is waited for, a thirty-second), and leaves off
// for a while when it gains nothing: a lone writer's bytes shrink in the shadow of the
// disk, a crowd's do not wait for LZ4. CompressOff keeps zeros as they come, too.
const (
	CompressAuto Compression = iota
	CompressOff
	CompressAlways
)

// Codecs of packed payloads. The numbers are on disk and wire: append-only.
const (
	codecNone = 0
	codecLZ4  = 1
)

const (
	minPackedBytes = 2 * pageBytes // less cannot get a page smaller
	packTries      = 4             // that gained nothing, one after the other, end in
	packPause      = 256           // payloads that are not tried
	packRest       = 3             // times as long as a try took, nothing is tried
	promptRest     = 31            // and that where a guest waits for the try, not for the disk
)

var errNoGain = errors.New("packing gains nothing")

// packer packs payloads of one journal. It is safe for concurrent use.
type packer struct {
	mode  Compression
	rest  time.Duration // times as long as a try took, nothing is tried
	room  atomic.Int32  // how many may pack at once still
	vain  atomic.Int32  // tries since the last gain
	pause atomic.Int32  // payloads to pass over
	began time.Time
	rests atomic.Int64 // until so long after began nothing is tried
	pool  sync.Pool    // of *lz4.Compressor
}

func newPacker(mode Compression, answers SyncMode) *packer {
	p := &packer{mode: mode, rest: packRest, began: time.Now(), pool: sync.Pool{New: func() any { return new(lz4.Compressor) }}}
	p.room.Store(int32(runtime.GOMAXPROCS(0) - 1))
	if answers == SyncProcess {
		p.rest = promptRest
	}
	return p
}

// begin reports that a payload of n bytes is to be tried; end follows then, with the
// time since p.began that it returns.
func (p *packer) begin(n int, backlog func() bool) (time.Duration, bool) {
	if p.mode == CompressOff || n < minPackedBytes || n > maxPackedBytes {
		return 0, false
	}
	if p.mode == CompressAlways {
		return 0, true
	}
	if p.pause.Load() > 0 {
		p.pause.Add(-1)
		return 0, false
	}
	at := time.Since(p.began)
	if at < time.Duration(p.rests.Load()) {
		return 0, false
	}
	if p.room.Add(-1) < 0 || backlog() {
		p.room.Add(1)
		return 0, false
	}
	return at, true
}

func (p *packer) end(at time.Duration, gained bool) {
	if p.mode == CompressAlways {
		return
	}
	p.room.Add(1)
	now := time.Since(p.began)
	p.rests.Store(int64(now + p.rest*(now-at)))
	if gained {
		p.vain.Store(0)
	} else if p.vain.Add(1) >= packTries {
		p.vain.Store(0)
		p.pause.Store(packPause)
	}
}

// pack is data in at most limit bytes, or errNoGain.
func (p *packer) pack(data []byte, limit int) ([]byte, error) {
	c := p.pool.Get().(*lz4.Compressor)
	defer p.pool.Put(c)
	out := make([]byte, limit)
	n, err := c.CompressBlock(data, out)
	if err != nil || n == 0 || n > limit { // it does not fit
		return nil, errNoGain
	}
	return out[:n:n], nil
}

// shrink makes r cost less where it may.
func (j *Journal) shrink(r *record) {
	if j.packer.mode == CompressOff {
		return
	}
	if allZero(r.data) {
		if r.kind == KindFill {
			r.flags |= flagFill
		}
		r.kind, r.data, r.cells = KindZero, nil, nil
		return
	}
	at, ok := j.packer.begin(len(r.data), j.backlog)
	if !ok {
		return
	}
	packed, err := j.packer.pack(r.data, len(r.data)-pageBytes)
	j.packer.end(at, err == nil)
	if err != nil {
		return
	}
	r.flags |= flagPacked
	r.codec, r.data, r.cells = codecLZ4, packed, []uint32{crc32.Checksum(packed, castagnoli)}
}

// backlog reports that something waits to be written, or an answer for the disk.
func (j *Journal) backlog() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.pending > 0 || len(j.awaiting) > 0
}

// unpack fills dst, whose length is the payload's, from its packed bytes.
func unpack(codec uint8, dst, packed []byte) error {
	if codec != codecLZ4 {
		return fmt.Errorf("payload of codec %d: %w", codec, ErrIncompatible)
	}
	n, err := lz4.UncompressBlock(packed, dst)
	if err != nil {
		return fmt.Errorf("unpack payload: %w", err)
	}
	if n != len(dst) {
		return fmt.Errorf("unpack payload: %d bytes, want %d", n, len(dst))
	}
	return nil
}
