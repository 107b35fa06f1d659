package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
)

// This file is the oracle: it imports the standard library alone, and knows a
// disk only as something that takes bytes.

// target is what a recorder writes through.
type target struct {
	write func(p []byte, off int64) error
	clear func(off, n int64) error // afterwards the range reads as zeros
}

// note is one write. Began and ended are of the recorder's own clock, which
// ticks once for every beginning and every answer; ended 0 means not answered.
type note struct {
	volume       int
	off, length  int64
	data         []byte // nil: zeros
	began, ended uint64
}

func (n note) apply(images [][]byte) {
	p := images[n.volume][n.off : n.off+n.length]
	if n.data == nil {
		clear(p)
		return
	}
	copy(p, n.data)
}

// area is a part of a volume that one writer writes, one write after the other.
type area struct {
	volume      int
	off, length int64
}

// recorder logs what one or more writers write to volumes.
type recorder struct {
	sizes []int64

	mu    sync.Mutex // guards below
	clock uint64
	log   []*note // in the order in which they began
}

// now is the clock.
func (r *recorder) now() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.clock
}

func (r *recorder) begin(n *note) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clock++
	n.began = r.clock
	r.log = append(r.log, n)
}

func (r *recorder) answered(n *note) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clock++
	n.ended = r.clock
}

// issue notes n, sends it and notes the answer.
func (r *recorder) issue(to target, n *note) error {
	r.begin(n)
	var err error
	if n.data == nil {
		err = to.clear(n.off, n.length)
	} else {
		err = to.write(n.data, n.off)
	}
	if err != nil {
		return fmt.Errorf("write %d bytes at %d of volume %d: %w", n.length, n.off, n.volume, err)
	}
	r.answered(n)
	return nil
}

// draw is a random write of an area: whole and ragged extents, zeros now and then.
// One of zeros is of whole sectors.
func draw(rng *rand.Rand, a area) *note {
	n := &note{volume: a.volume}
	n.length = 1 + rng.Int64N(min(a.length, 1<<(9+rng.IntN(9))))
	n.off = rng.Int64N(a.length - n.length + 1)
	zeros := rng.IntN(10) == 0
	if zeros || rng.IntN(3) > 0 {
		n.off &^= 511
		n.length = min((n.length+511)&^511, a.length-n.off)
	}
	n.off += a.off
	if !zeros {
		n.data = make([]byte, n.length)
		for i := 0; i < len(n.data); i += 8 {
			x := rng.Uint64()
			for k := i; k < min(i+8, len(n.data)); k++ {
				n.data[k] = byte(x)
				x >>= 8
			}
		}
	}
	return n
}

// blank is the volumes before anything was written.
func (r *recorder) blank() [][]byte {
	images := make([][]byte, len(r.sizes))
	for i, n := range r.sizes {
		images[i] = make([]byte, n)
	}
	return images
}

// replay is the volumes after the writes of a log.
func (r *recorder) replay(log []*note) [][]byte {
	images := r.blank()
	for _, n := range log {
		n.apply(images)
	}
	return images
}

// of is the writes of one area, in order.
func of(log []*note, a area) []*note {
	var out []*note
	for _, n := range log {
		if n.volume == a.volume && n.off >= a.off && n.off+n.length <= a.off+a.length {
			out = append(out, n)
		}
	}
	return out
}

// prefixes tells after which numbers of writes, in [from, len(log)], the area of
// base looks as got does. base is the volumes after the first from writes.
func prefixes(base [][]byte, log []*note, from int, a area, got []byte) []int {
	images := make([][]byte, len(base))
	images[a.volume] = slices.Clone(base[a.volume])
	var out []int
	for k := from; ; k++ {
		if bytes.Equal(images[a.volume][a.off:a.off+a.length], got) {
			out = append(out, k)
		}
		if k == len(log) {
			return out
		}
		log[k].apply(images)
	}
}

// firstDifference is where a and b differ first, -1 if nowhere.
func firstDifference(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	if len(a) != len(b) {
		return min(len(a), len(b))
	}
	return -1
}
