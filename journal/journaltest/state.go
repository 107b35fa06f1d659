package journaltest

import (
	"bytes"
	"hash/maphash"
	"sync"
)

// State is the group after an operation. What was never written is zeros.
type State struct {
	up    *State
	op    Op
	sizes []int64
	depth int

	mu   sync.Mutex       // guards sums
	sums map[int]imageSum // of the volumes that were compared: the same answer is asked for often
}

type imageSum struct {
	bytes int
	sum   uint64
}

var sumSeed = maphash.MakeSeed()

// Empty is a group of volumes of the given sizes to which nothing was written.
func Empty(sizes ...int64) *State { return &State{sizes: sizes} }

// Then is the group after op.
func (s *State) Then(op Op) *State {
	next := &State{up: s, op: op, sizes: s.sizes, depth: s.depth + 1}
	if op.Kind == Resize {
		next.sizes = append([]int64(nil), s.sizes...)
		next.sizes[op.Volume] = op.Size
	}
	return next
}

// Sizes is the bytes of each volume.
func (s *State) Sizes() []int64 { return s.sizes }

// Depth is how many operations lie behind s.
func (s *State) Depth() int { return s.depth }

// Image is the bytes of volume v: the operations behind s, replayed from the first.
func (s *State) Image(v int) []byte {
	chain := make([]*State, 0, s.depth)
	at := s
	for ; at.up != nil; at = at.up {
		chain = append(chain, at)
	}
	img := make([]byte, at.sizes[v])
	for i := len(chain) - 1; i >= 0; i-- {
		img = chain[i].op.apply(v, img)
	}
	return img
}

// Images are those of states near one another: each is made from the nearest before it.
type Images map[imageOf][]byte

type imageOf struct {
	s *State
	v int
}

// Of is the bytes of volume v in s, not to be changed.
func (m Images) Of(s *State, v int) []byte {
	var chain []*State
	at, img := s, []byte(nil)
	for ; img == nil; at = at.up {
		if img = m[imageOf{at, v}]; img != nil {
			break
		}
		if at.up == nil {
			img = make([]byte, at.sizes[v])
			break
		}
		chain = append(chain, at)
	}
	if len(chain) > 0 {
		img = bytes.Clone(img)
	}
	for i := len(chain) - 1; i >= 0; i-- {
		img = chain[i].op.apply(v, img)
	}
	m[imageOf{s, v}] = img
	return img
}

// Step brings the images of the State before s, which it may overwrite, to s.
func (s *State) Step(images [][]byte) {
	for v := range images {
		images[v] = s.op.apply(v, images[v])
	}
}

// apply is what op makes of the bytes of volume v.
func (op Op) apply(v int, img []byte) []byte {
	if op.Volume != v {
		return img
	}
	switch op.Kind {
	case Write, Fill:
		copy(img[op.Off:], op.Data)
	case Zero, Trim:
		clear(img[op.Off : op.Off+op.Len])
	case Resize: // what is cut off does not come back
		if op.Size <= int64(len(img)) {
			return img[:op.Size:op.Size]
		}
		return append(bytes.Clone(img), make([]byte, op.Size-int64(len(img)))...)
	}
	return img
}

// Differs is the first byte at which got is not what volume v holds in s, or -1.
// Another length counts as a difference at the shorter one's end.
func (s *State) Differs(v int, got []byte) int {
	is := imageSum{len(got), maphash.Bytes(sumSeed, got)}
	s.mu.Lock()
	want, known := s.sums[v]
	s.mu.Unlock()
	if known && want == is {
		return -1
	}
	at := difference(s.Image(v), got)
	if at < 0 {
		s.mu.Lock()
		if s.sums == nil {
			s.sums = make(map[int]imageSum)
		}
		s.sums[v] = is
		s.mu.Unlock()
	}
	return at
}

func difference(want, got []byte) int {
	if bytes.Equal(want, got) {
		return -1
	}
	n := min(len(want), len(got))
	for i := range n {
		if want[i] != got[i] {
			return i
		}
	}
	return n
}
