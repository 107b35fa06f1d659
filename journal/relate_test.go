package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/novacron/afterimage/cbt"
)

func epochID(b byte) EpochID { return EpochID(cbt.ID{b}) }

// cursor is record s of epoch e, over bytes told apart by c.
func cursor(e byte, s Seq, c byte) Cursor {
	return Cursor{Position{epochID(e), s}, Chain{c, byte(s)}}
}

func branch(n uint64, id byte, parent Cursor, last Seq, c byte) Branch {
	l := cursor(id, last, c)
	if last <= parent.Seq {
		l = parent
	}
	return Branch{Epoch: Epoch{Number: n, ID: epochID(id), Parent: parent}, Last: l}
}

func TestRelate(t *testing.T) {
	root := Cursor{}
	a := func(last Seq) Branch { return branch(1, 'a', root, last, 1) }
	b := func(fork, last Seq) Branch { return branch(2, 'b', cursor('a', fork, 1), last, 1) }
	c := func(fork, last Seq) Branch { return branch(2, 'c', cursor('a', fork, 1), last, 1) }
	for _, x := range []struct {
		name         string
		ours, theirs []Branch
		want         RelationKind
		common       Position
		peer, our    bool // tails
	}{
		{"nothing anywhere", nil, nil, Same, Position{}, false, false},
		{"a new peer", []Branch{a(9)}, nil, PeerBehind, Position{}, false, false},
		{"we are new", nil, []Branch{a(9)}, PeerAhead, Position{}, false, false},
		{"the same record", []Branch{a(9)}, []Branch{a(9)}, Same, Position{epochID('a'), 9}, false, false},
		{"the peer lags", []Branch{a(9)}, []Branch{a(5)}, PeerBehind, Position{epochID('a'), 5}, false, false},
		{"the peer leads", []Branch{a(5)}, []Branch{a(9)}, PeerAhead, Position{epochID('a'), 5}, false, false},
		{"both wrote H+1", []Branch{a(9), b(9, 10)}, []Branch{a(9), c(9, 10)}, Diverged, Position{epochID('a'), 9}, false, false},
		{"both wrote H+1 under one name", []Branch{branch(1, 'a', root, 9, 1)}, []Branch{branch(1, 'a', root, 9, 2)}, Diverged, Position{epochID('a'), 9}, false, false},
		{"both wrote H+1, we under the old epoch", []Branch{a(10)}, []Branch{a(9), b(9, 10)}, Diverged, Position{epochID('a'), 9}, false, true},
		{"the peer has not the epoch yet", []Branch{a(9), b(9, 12)}, []Branch{a(9)}, PeerBehind, Position{epochID('a'), 9}, false, false},
		{"we have not the epoch yet", []Branch{a(9)}, []Branch{a(9), b(9, 12)}, PeerAhead, Position{epochID('a'), 9}, false, false},
		{"the peer is past our fork", []Branch{a(9), b(5, 12)}, []Branch{a(8)}, PeerBehind, Position{epochID('a'), 5}, true, false},
		{"the peer kept its tail and went on", []Branch{a(9), b(5, 12)}, []Branch{a(9), b(5, 8)}, PeerBehind, Position{epochID('b'), 8}, false, false},
		{"our epoch holds nothing yet, theirs does", []Branch{a(9), b(9, 9)}, []Branch{a(9), b(9, 12)}, PeerAhead, Position{epochID('a'), 9}, false, false},
		{"our epoch holds nothing yet and the peer is past the fork", []Branch{a(9), b(5, 5)}, []Branch{a(9)}, PeerBehind, Position{epochID('a'), 5}, true, false},
		{"both epochs hold nothing yet", []Branch{a(9), b(9, 9)}, []Branch{a(9), b(9, 9)}, Same, Position{epochID('a'), 9}, false, false},
		{"other groups", []Branch{a(9)}, []Branch{branch(1, 'x', root, 9, 1)}, Unrelated, Position{}, false, false},
		{"a rewind of a rewind", []Branch{a(9), b(5, 12), branch(3, 'd', cursor('b', 7, 1), 20, 1)}, []Branch{a(9), b(5, 7)}, PeerBehind, Position{epochID('b'), 7}, false, false},
		{"we went back to the branch before", []Branch{a(9), b(5, 12), branch(3, 'd', cursor('a', 9, 1), 20, 1)}, []Branch{a(9), b(5, 12)}, PeerBehind, Position{epochID('a'), 5}, true, false},
		{"the peer went back to the branch before", []Branch{a(9), b(5, 12)}, []Branch{a(9), b(5, 12), branch(3, 'd', cursor('a', 9, 1), 20, 1)}, Diverged, Position{epochID('a'), 5}, false, true},
		{"we went back, and the peer holds more of what we left", []Branch{a(9), b(5, 12), branch(3, 'd', cursor('a', 9, 1), 20, 1)}, []Branch{a(9), b(5, 13)}, Diverged, Position{epochID('a'), 5}, false, false},
		{"we went back, and the peer went on since", []Branch{a(9), b(5, 12), branch(3, 'd', cursor('a', 9, 1), 20, 1)}, []Branch{a(9), b(5, 12), branch(4, 'e', cursor('b', 12, 1), 14, 1)}, Diverged, Position{epochID('a'), 5}, false, false},
		{"a fork of a fork at its parent's end", []Branch{a(9), b(9, 9), branch(3, 'd', cursor('a', 9, 1), 11, 1)}, []Branch{a(9)}, PeerBehind, Position{epochID('a'), 9}, false, false},
	} {
		t.Run(x.name, func(t *testing.T) {
			r, err := Relate(x.ours, headOf(x.ours), x.theirs, headOf(x.theirs))
			if err != nil || r.Kind != x.want || r.PeerTail != x.peer || r.OurTail != x.our {
				t.Fatalf("%v, tails %v %v, %v", r.Kind, r.PeerTail, r.OurTail, err)
			}
			if r.Kind != Diverged && r.Kind != Unrelated && r.Common.Position != x.common {
				t.Fatalf("common %s, want %s", r.Common.Position, x.common)
			}
		})
	}
}

func headOf(bs []Branch) EpochID {
	if len(bs) == 0 {
		return EpochID{}
	}
	return bs[len(bs)-1].ID
}

func TestLineageRefusesWhatCannotBe(t *testing.T) {
	orphan := []Branch{branch(2, 'b', cursor('a', 5, 1), 9, 1)}
	if _, err := LineageOf(orphan, epochID('b')); !errors.Is(err, ErrUnknownParent) {
		t.Errorf("a branch without its parent: %v", err)
	}
	loop := []Branch{branch(2, 'b', cursor('a', 5, 1), 9, 1), branch(2, 'a', cursor('b', 4, 1), 9, 1)}
	if _, err := LineageOf(loop, epochID('b')); !errors.Is(err, ErrLowerEpoch) {
		t.Errorf("epochs that are each other's parents: %v", err)
	}
	if _, err := LineageOf(nil, epochID('b')); !errors.Is(err, ErrUnknownParent) {
		t.Errorf("an unknown head: %v", err)
	}
}

func TestLineageEdges(t *testing.T) {
	bs := []Branch{branch(1, 'a', Cursor{}, 9, 1), branch(2, 'b', cursor('a', 5, 1), 12, 1), branch(3, 'c', cursor('b', 7, 1), 7, 1)}
	l, err := LineageOf(bs, epochID('c'))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		p    Position
		want bool
	}{
		{Position{epochID('a'), 5}, true}, {Position{epochID('a'), 6}, false}, {Position{epochID('b'), 5}, false},
		{Position{epochID('b'), 6}, true}, {Position{epochID('b'), 7}, true}, {Position{epochID('b'), 8}, false},
		{Position{epochID('c'), 8}, false}, {Position{}, false},
	} {
		if l.Holds(c.p) != c.want {
			t.Errorf("holds %s: %v", c.p, !c.want)
		}
	}
	if u := l.Until(5); len(u) != 1 || lastOf(u) != (Position{epochID('a'), 5}) {
		t.Errorf("until 5: %v", u)
	}
	if w := l.written(); len(w) != 2 || lastOf(w) != (Position{epochID('b'), 7}) {
		t.Errorf("without the empty epoch: %v", w)
	}
}

// modelSite is a model of one installation: the records it has, by name and content.
type modelSite struct {
	branches []Branch
	history  []modelRecord // of the newest epoch's lineage

}

type modelRecord struct {
	Position
	content uint64
}

func chainOfHistory(h []modelRecord) Chain {
	var c Chain
	sum := uint64(14695981039346656037)
	for _, r := range h {
		sum = (sum ^ r.content) * 1099511628211
	}
	binary.LittleEndian.PutUint64(c[:], sum)
	return c
}

func (s *modelSite) end() Cursor {
	if len(s.history) == 0 {
		return Cursor{}
	}
	return Cursor{s.history[len(s.history)-1].Position, chainOfHistory(s.history)}
}

func (s *modelSite) add(r modelRecord) {
	s.history = append(s.history[:len(s.history):len(s.history)], r)
	s.branches[len(s.branches)-1].Last = s.end()

}

// begin forks at record n of the current history.
func (s *modelSite) begin(number uint64, id EpochID, n int) {
	h := s.history[:n]
	var parent Cursor
	if n > 0 {
		parent = Cursor{h[n-1].Position, chainOfHistory(h)}
	}
	s.branches = append(s.branches, Branch{Epoch: Epoch{Number: number, ID: id, Parent: parent}, Last: parent})
	s.history = h
}

// Property: whatever two sites did, they are told apart exactly when their bytes
// differ; "same" and "behind" are never said of histories that are not.
func TestRelateTellsTheTruth(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sites := [2]*modelSite{{}, {}}
		var content, number uint64
		for range rapid.IntRange(1, 25).Draw(t, "steps") {
			k := rapid.IntRange(0, 1).Draw(t, "site")
			s, peer := sites[k], sites[1-k]
			switch rapid.IntRange(0, 3).Draw(t, "step") {
			case 0: // a new epoch, at the head or before it
				if len(s.history) == 0 && number > 0 {
					continue // one group has one beginning
				}
				number++
				n := len(s.history)
				if n > 0 {
					n = rapid.IntRange(max(1, n-3), n).Draw(t, "fork")
				}
				s.begin(number, epochID(byte(number)), n)
				content++
				s.add(modelRecord{Position{epochID(byte(number)), Seq(n + 1)}, content})
			case 1, 2: // write in the newest epoch, but only where it began
				if len(s.branches) == 0 || s.branches[len(s.branches)-1].Site == "copy" {
					continue
				}
				content++
				s.add(modelRecord{Position{headOf(s.branches), s.end().Seq + 1}, content})
			case 3: // the peer takes some of what it lacks, if it is behind
				replicate(t, s, peer)
			}
		}
		ours, theirs := sites[0], sites[1]
		r, err := Relate(ours.branches, headOf(ours.branches), theirs.branches, headOf(theirs.branches))
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for n < len(ours.history) && n < len(theirs.history) && ours.history[n] == theirs.history[n] {
			n++
		}
		weEnd, theyEnd := n == len(ours.history), n == len(theirs.history)
		var want string
		switch {
		case weEnd && theyEnd:
			want = Same.String()
		case theyEnd:
			want = PeerBehind.String()
		case weEnd:
			want = PeerAhead.String()
		case n == 0:
			want = Unrelated.String()
		default:
			want = "apart"
		}
		got := r.Kind.String()
		if r.Kind == Diverged || r.Kind == PeerBehind && r.PeerTail {
			got = "apart"
		}
		if got != want {
			t.Fatalf("%v, want %s\nours   %v\ntheirs %v", r, want, ours.history, theirs.history)
		}
		if n > 0 && r.Common.Position != ours.history[n-1].Position {
			t.Fatalf("common %s, want %s", r.Common.Position, ours.history[n-1].Position)
		}
	})
}

// replicate brings dst some records nearer to src, as frames would.
func replicate(t *rapid.T, src, dst *modelSite) {
	n := 0
	for n < len(src.history) && n < len(dst.history) && src.history[n] == dst.history[n] {
		n++
	}
	if len(src.branches) == 0 || n == len(src.history) {
		return
	}
	next := src.history[n]
	if n < len(dst.history) { // dst is past a fork: only a newer epoch may cut its tail
		if find(dst.branches, next.Epoch).Number > 0 || numberOf(src, next.Epoch) <= dst.branches[len(dst.branches)-1].Number {
			return
		}
	}
	for _, r := range src.history[n : n+rapid.IntRange(1, len(src.history)-n).Draw(t, "records")] {
		if headOf(dst.branches) != r.Epoch {
			if numberOf(src, r.Epoch) <= newestNumber(dst) {
				return
			}
			b := find(src.branches, r.Epoch)
			dst.begin(b.Number, b.ID, int(b.Parent.Seq))
			dst.branches[len(dst.branches)-1].Site = "copy"
		}
		dst.add(r)
	}
}

func numberOf(s *modelSite, e EpochID) uint64 { return find(s.branches, e).Number }

func newestNumber(s *modelSite) uint64 {
	if len(s.branches) == 0 {
		return 0
	}
	return s.branches[len(s.branches)-1].Number
}

func ExampleRelationKind() {
	fmt.Println(Same, PeerBehind, PeerAhead, Diverged, Unrelated)
	// Output: same peer behind peer ahead diverged unrelated
}
