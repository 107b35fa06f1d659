package journaltest

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
)

// SectorBytes is what offsets and lengths are multiples of.
const SectorBytes = 512

// Shape says what an Author draws from.
type Shape struct {
	Sizes    []int64 // bytes of the volumes at first
	MaxWrite int64   // bytes of the largest write; default 1 MiB
	Ladders  int     // Maintain is drawn with a ladder below it; 0: no Maintain
	Only     []Kind  // when not empty: nothing else is drawn
}

// weights are how often each kind is drawn.
var weights = map[Kind]int{
	Write: 120, Fill: 10, Zero: 12, Trim: 12, Resize: 3, Break: 4, Mark: 4, Pin: 4,
	Flush: 12, Fork: 2, Reopen: 2, Hold: 4, Release: 4, Maintain: 8, Look: 8,
}

// Author draws operations.
type Author struct {
	rng    *rand.Rand
	shape  Shape
	bag    []Kind
	state  *State
	images [][]byte // of state
	pins   []Op     // whose names may be forked at
	named  int
	held   int
}

// NewAuthor begins with an empty group.
func NewAuthor(rng *rand.Rand, s Shape) *Author {
	if s.MaxWrite == 0 {
		s.MaxWrite = 1 << 20
	}
	a := &Author{rng: rng, shape: s, state: Empty(s.Sizes...)}
	for k := Write; k <= Look; k++ {
		n := weights[k]
		if k == Maintain && s.Ladders == 0 || len(s.Only) > 0 && !has(s.Only, k) {
			n = 0
		}
		for range n {
			a.bag = append(a.bag, k)
		}
	}
	a.images = images(a.state)
	return a
}

func has(ks []Kind, k Kind) bool {
	for _, x := range ks {
		if x == k {
			return true
		}
	}
	return false
}

func images(s *State) [][]byte {
	var out [][]byte
	for v := range s.sizes {
		out = append(out, s.Image(v))
	}
	return out
}

// State is the group after all that was drawn.
func (a *Author) State() *State { return a.state }

// Script is n operations.
func (a *Author) Script(n int) []Op {
	var out []Op
	for range n {
		out = append(out, a.Next())
	}
	return out
}

// Next draws an operation.
func (a *Author) Next() Op {
	for {
		op := Op{Kind: a.bag[a.rng.IntN(len(a.bag))], Volume: a.rng.IntN(len(a.shape.Sizes))}
		if a.fill(&op) {
			return a.did(op)
		}
	}
}

// did makes op part of the history.
func (a *Author) did(op Op) Op {
	switch op.Kind {
	case Fork:
		for _, p := range a.pins {
			if p.Name == op.Name {
				a.state = p.After
			}
		}
		a.images = images(a.state)
	case Write, Fill, Zero, Trim, Resize:
		a.state = a.state.Then(op)
		a.state.Step(a.images)
	case Hold:
		a.held++
	case Release:
		a.held--
	case Reopen:
		a.held = 0 // no view outlives its journal
	}
	op.After = a.state
	if op.Kind == Pin {
		a.pins = append(a.pins, op)
	}
	return op
}

// fill draws what an operation of its kind needs; false when it makes no sense now.
func (a *Author) fill(op *Op) bool {
	size := a.state.sizes[op.Volume]
	switch op.Kind {
	case Write, Fill, Zero, Trim:
		op.Off, op.Len = a.extent(size)
		if op.Kind == Write || op.Kind == Fill {
			op.Data = a.data(op)
		}
	case Resize:
		op.Size = a.shape.Sizes[op.Volume] / SectorBytes * (1 + a.rng.Int64N(8)) / 4 * SectorBytes
		return op.Size > 0 && op.Size != size
	case Mark, Pin:
		a.named++
		op.Name = fmt.Sprintf("%s-%d", op.Kind, a.named)
	case Fork:
		if len(a.pins) == 0 {
			return false
		}
		op.Name = a.pins[a.rng.IntN(len(a.pins))].Name
	case Release:
		return a.held > 0
	case Maintain:
		op.Ladder = a.rng.IntN(a.shape.Ladders)
	}
	return true
}

// extent draws the range of a write: any size from a sector on, now and then on
// the boundaries of cells and of larger powers of two.
func (a *Author) extent(size int64) (off, n int64) {
	most := min(a.shape.MaxWrite, size) / SectorBytes
	n = int64(1) << a.rng.IntN(12)
	if a.rng.IntN(3) == 0 {
		n = 1 + a.rng.Int64N(3*n)
	}
	n = min(n, most)
	off = a.rng.Int64N(size/SectorBytes - n + 1)
	switch a.rng.IntN(4) {
	case 0, 1:
		off = off / 8 * 8
	case 2:
		off = off / n * n
	}
	return off * SectorBytes, n * SectorBytes
}

// data draws the bytes of a write: most differ from sector to sector, some repeat,
// some are zeros, and some are what lies there already.
func (a *Author) data(op *Op) []byte {
	b := make([]byte, op.Len)
	switch a.rng.IntN(8) {
	case 0:
		copy(b, a.images[op.Volume][op.Off:])
	case 1:
		if a.rng.IntN(2) == 0 {
			for i := range b[:len(b)/2&^(SectorBytes-1)] {
				b[i] = byte(a.rng.IntN(4))
			}
		}
	case 2, 3: // a few bytes a sector: it can be compressed
		for i := 0; i < len(b); i += SectorBytes {
			binary.LittleEndian.PutUint64(b[i:], a.rng.Uint64())
		}
	default:
		for i := 0; i < len(b); i += 8 {
			binary.LittleEndian.PutUint64(b[i:], a.rng.Uint64())
		}
	}
	return b
}
