package recovery

import (
	"strings"
	"testing"
	"time"

	"github.com/novacron/afterimage/journal"
)

var (
	epochB = journal.EpochID{0xbb, 1}
	epochC = journal.EpochID{0xcc, 1}
)

func cursor(e journal.EpochID, seq journal.Seq) journal.Cursor {
	return journal.Cursor{Position: journal.Position{Epoch: e, Seq: seq}}
}

// line is a history of one epoch, and of forks from it at given records.
func line(last journal.Seq, forks ...journal.Branch) []journal.Branch {
	return append([]journal.Branch{{Epoch: journal.Epoch{ID: epochA, Number: 3}, Last: cursor(epochA, last)}}, forks...)
}

func fork(e journal.EpochID, number uint64, at, last journal.Seq) journal.Branch {
	return journal.Branch{Epoch: journal.Epoch{ID: e, Number: number, Parent: cursor(epochA, at)}, Last: cursor(e, last)}
}

func answer(peer string, branches []journal.Branch) Answer {
	end := branches[len(branches)-1]
	return Answer{Peer: peer, Head: end.Last, Epoch: end.ID, Branches: branches, Time: noon}
}

func TestWeigh(t *testing.T) {
	primary := answer("a", line(99))
	primary.Captures = true
	for name, c := range map[string]struct {
		answers []Answer
		wanted  string
		peer    string // whose tail; empty: none
		records uint64
		leaves  uint64
		apart   string
	}{
		"nobody answers":              {},
		"level and behind":            {answers: []Answer{answer("c", line(80)), answer("d", line(70))}},
		"one ahead":                   {answers: []Answer{answer("c", line(90)), answer("d", line(70))}, peer: "c", records: 10},
		"the furthest of two":         {answers: []Answer{answer("c", line(90)), answer("d", line(95))}, peer: "d", records: 15},
		"either way round":            {answers: []Answer{answer("d", line(95)), answer("c", line(90))}, peer: "d", records: 15},
		"a later epoch":               {answers: []Answer{answer("c", line(85, fork(epochB, 4, 85, 90)))}, peer: "c", records: 10},
		"a reigning one is not asked": {answers: []Answer{primary}},
		"what is here is a branch":    {answers: []Answer{answer("c", line(75, fork(epochB, 4, 75, 90)))}, peer: "c", records: 15, leaves: 5},
		"two that exclude each other": {answers: []Answer{answer("c", line(90, fork(epochB, 4, 90, 95))), answer("d", line(90, fork(epochC, 5, 90, 99)))}, apart: "c and d hold tails that exclude each other"},
		"one goes on where the other was left": {answers: []Answer{answer("c", line(95)), answer("d", line(90, fork(epochB, 4, 90, 93)))},
			apart: "exclude each other"},
		"chosen": {answers: []Answer{answer("c", line(90, fork(epochB, 4, 90, 95))), answer("d", line(90, fork(epochC, 5, 90, 99)))}, wanted: "c", peer: "c", records: 15},
	} {
		got := Weigh(line(80), epochA, c.answers, c.wanted)
		switch f := got.Furthest; {
		case (f == nil) != (c.peer == ""):
			t.Errorf("%s: tail %+v, want %q", name, f, c.peer)
		case f != nil && (f.Peer != c.peer || f.Records != c.records || f.Leaves != c.leaves):
			t.Errorf("%s: tail %+v, want %d records of %s, %d left", name, f, c.records, c.peer, c.leaves)
		}
		if why := strings.Join(got.Apart, "; "); (why == "") != (c.apart == "") || !strings.Contains(why, c.apart) {
			t.Errorf("%s: apart %q, want %q", name, why, c.apart)
		}
	}
	// This site forked itself, and a replica goes on where it was before.
	ours := line(80, fork(epochB, 4, 80, 85))
	if got := Weigh(ours, epochB, []Answer{answer("c", line(90, fork(epochC, 5, 90, 95)))}, ""); got.Furthest != nil || len(got.Apart) != 1 || got.Related["c"] != "diverged" {
		t.Errorf("diverged from here: %+v", got)
	}
}

// A plan with a tail tells the loss as it is once that has arrived; without it, against
// what the peer holds. Tails that exclude each other are for a person.
func TestPlanWithATail(t *testing.T) {
	in := inputs()
	in.At, in.Point.Position, in.Point.Time, in.Since = "latest", in.Head.Position, in.Head.Time, journal.Since{}
	in.Peers[1].Head.Seq, in.Peers[1].Relation, in.Fence = 9010, journal.PeerAhead.String(), FenceProven
	in.Tail = &Tail{Peer: "c", Head: journal.Position{Epoch: epochA, Seq: 9010}, Number: 3, Records: 10, Bytes: 40_000, Time: in.Head.Time.Add(time.Second / 2)}
	p := NewPlan(in)
	if len(p.Refused) != 0 || p.Loss.NeverArrived.Records != 7 || p.Loss.NeverArrived.Bytes != 30_000 || p.Loss.NeverArrived.Seconds != 0.5 || p.Steps[0].Name != StepTail {
		t.Errorf("%+v, refused %v, steps %v", p.Loss, p.Refused, p.Steps)
	}
	more := in
	tail := *in.Tail
	tail.Head.Seq, tail.Records = 9011, 11
	more.Tail = &tail
	if NewPlan(more).Digest != p.Digest {
		t.Error("a tail that grows makes another plan")
	}
	without := in
	without.Tail, without.WithoutTail = nil, true
	w := NewPlan(without)
	if len(w.Refused) != 0 || w.Digest == p.Digest || w.Loss.NeverArrived.Records != 17 || !strings.Contains(strings.Join(w.Warnings, ";"), "c holds more than this site, up to #3.9010") {
		t.Errorf("%+v, refused %v, warnings %q", w.Loss, w.Refused, w.Warnings)
	}
	apart := in
	apart.Tail, apart.Apart = nil, []string{"c and d hold tails that exclude each other"}
	if got := NewPlan(apart).Refused; len(got) != 1 || got[0].Code != ObjectionApart {
		t.Errorf("refused %v", got)
	}
	earlier := in // the tail does not change what an earlier point gives up
	earlier.At = "#3.9000"
	if l := NewPlan(earlier).Loss; l.NeverArrived.Records != 17 {
		t.Errorf("%+v", l)
	}
}

func TestFurthestHead(t *testing.T) {
	at := func(number uint64, seq journal.Seq, heard int) *SourceHead {
		h := &SourceHead{Number: number, Head: journal.Position{Epoch: epochA, Seq: seq}}
		if heard > 0 {
			h.Heard = noon.Add(time.Duration(heard) * time.Second)
		}
		return h
	}
	for _, c := range []struct {
		a, b *SourceHead
		want int
	}{{nil, at(1, 1, 1), 2}, {at(1, 1, 1), nil, 1}, {at(1, 5, 9), at(1, 6, 1), 2}, {at(2, 1, 1), at(1, 9, 1), 1}, {at(1, 5, 1), at(1, 5, 2), 2}, {at(1, 5, 1), at(1, 5, 0), 1}} {
		if got := Furthest(c.a, c.b); (c.want == 1) != (got == c.a) || (c.want == 2) != (got == c.b) {
			t.Errorf("%+v and %+v: %+v", c.a, c.b, got)
		}
	}
}
