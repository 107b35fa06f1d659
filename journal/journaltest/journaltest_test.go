package journaltest

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// A State's image is the same whether it is replayed or stepped to, forks leave
// one another alone, and a volume that shrank brings nothing back.
func TestStatesAreWhatWasWritten(t *testing.T) {
	a := NewAuthor(rand.New(rand.NewPCG(1, 2)), Shape{Sizes: []int64{64 << 10, 96 << 10}, MaxWrite: 32 << 10, Ladders: 2})
	stepped := images(a.State())
	at := a.State()
	seen := map[Kind]int{}
	for _, op := range a.Script(2000) {
		seen[op.Kind]++
		if op.Kind == Fork {
			stepped = images(op.After)
		} else if op.After != at {
			op.After.Step(stepped)
		}
		at = op.After
		for v := range stepped {
			if d := at.Differs(v, stepped[v]); d >= 0 {
				t.Fatalf("after %v volume %d differs at %d", op, v, d)
			}
		}
	}
	for k := Write; k <= Look; k++ {
		if seen[k] == 0 {
			t.Errorf("no %v was drawn", k)
		}
	}
	s := Empty(2048).Then(Op{Kind: Write, Off: 512, Len: 512, Data: bytes.Repeat([]byte{1}, 512)})
	one := s.Then(Op{Kind: Resize, Size: 512}).Then(Op{Kind: Resize, Size: 2048})
	two := s.Then(Op{Kind: Zero, Off: 1024, Len: 1024})
	if one.Image(0)[512] != 0 || two.Image(0)[512] != 1 || len(one.Image(0)) != 2048 || s.Image(0)[512] != 1 {
		t.Error("a shrunk volume brought bytes back, or a fork changed another")
	}
	if two.Differs(0, one.Image(0)) != 512 || two.Differs(0, nil) != 0 {
		t.Error("differences are not told where they are")
	}
}
