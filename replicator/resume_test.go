package replicator

import (
	"testing"

	"github.com/novacron/afterimage/journal"
)

func pos(epoch byte, seq journal.Seq) journal.Position {
	return journal.Position{Epoch: journal.EpochID{epoch}, Seq: seq}
}

// A frame of epoch 1 reaches to seq 9, the source forked epoch 2 after seq 5.
func TestCursorsAreCutAtTheFork(t *testing.T) {
	head := journal.EpochID{2}
	l := journal.Lineage{{Epoch: journal.EpochID{1}, Number: 1, First: 1, Last: 5}, {Epoch: head, Number: 2, First: 6, Last: 7}}
	for _, c := range []struct{ in, want journal.Position }{
		{pos(1, 4), pos(1, 4)}, {pos(1, 5), pos(1, 5)}, {pos(1, 9), pos(1, 5)},
		{pos(2, 7), pos(2, 7)}, {pos(2, 8), pos(2, 8)}, // the head's epoch grows
		{pos(3, 20), pos(3, 20)}, // begun after the opening
	} {
		if got := clip(l, head, journal.Cursor{Position: c.in}).Position; got != c.want {
			t.Errorf("clip %v: %v, want %v", c.in, got, c.want)
		}
	}
	for _, c := range []struct {
		durable, p journal.Position
		want       bool
	}{
		{pos(2, 7), pos(2, 7), true}, {pos(2, 7), pos(2, 8), false},
		{pos(2, 7), pos(1, 9), true}, {pos(1, 5), pos(2, 6), false},
		{pos(3, 8), pos(1, 9), true}, {pos(2, 7), pos(3, 6), false}, {journal.Position{}, pos(9, 1), false},
	} {
		if got := covers(l, c.durable, c.p); got != c.want {
			t.Errorf("durable %v covers %v: %v, want %v", c.durable, c.p, got, c.want)
		}
	}
}

func TestVerdicts(t *testing.T) {
	branch := func(number uint64, id byte, parent, last journal.Position) journal.Branch {
		return journal.Branch{Epoch: journal.Epoch{Number: number, ID: journal.EpochID{id}, Parent: journal.Cursor{Position: parent}}, Last: journal.Cursor{Position: last}}
	}
	one := func(last journal.Seq) site {
		return site{[]journal.Branch{branch(1, 1, journal.Position{}, pos(1, last))}, journal.EpochID{1}}
	}
	two := func(held, fork, last journal.Seq, id byte) site {
		return site{[]journal.Branch{branch(1, 1, journal.Position{}, pos(1, held)), branch(2, id, pos(1, fork), pos(id, last))}, journal.EpochID{id}}
	}
	back := two(9, 5, 12, 2) // and from there to the end of what was left first
	back.branches, back.head = append(back.branches, branch(3, 3, pos(1, 9), pos(3, 14))), journal.EpochID{3}
	for _, c := range []struct {
		name            string
		source, replica site
		conflict, lost  bool
		common          journal.Seq
	}{
		{"nothing there", one(9), site{}, false, false, 0},
		{"same", one(9), one(9), false, false, 9},
		{"behind", one(9), one(5), false, false, 5},
		{"behind over an epoch", two(9, 9, 12, 2), one(5), false, false, 5},
		{"tail beyond the fork", two(9, 5, 12, 2), one(8), false, false, 5},
		{"went back and forth again", back, two(9, 5, 12, 2), false, false, 5},
		{"the source lost its end", one(5), one(9), true, true, 5},
		{"the replica reigns", one(5), two(5, 5, 8, 2), true, false, 5},
		{"both wrote on", one(9), two(5, 5, 8, 2), true, false, 5},
		{"two reigns", two(5, 5, 9, 2), two(5, 5, 9, 3), true, false, 5},
	} {
		s, err := sourceVerdict(c.source, c.replica)
		if err != nil {
			t.Fatal(err)
		}
		r, err := replicaVerdict(c.replica, c.source, false)
		if err != nil {
			t.Fatal(err)
		}
		for end, v := range map[string]verdict{"source": s, "replica": r} {
			if v.conflict != c.conflict || v.lost != c.lost || v.relation.Common.Seq != c.common {
				t.Errorf("%s, at the %s: conflict %v, lost %v, common %d (%v), want %v, %v, %d", c.name, end,
					v.conflict, v.lost, v.relation.Common.Seq, v.relation.Kind, c.conflict, c.lost, c.common)
			}
		}
		if p, err := replicaVerdict(c.replica, c.source, true); err == nil && p.conflict != (p.relation.Kind != journal.Same) {
			t.Errorf("%s: a primary takes %v", c.name, p.relation.Kind)
		}
	}
}
