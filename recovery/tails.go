package recovery

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/novacron/afterimage/journal"
)

// Before a promotion every peer that answers has said where its history ends. One that
// holds more than this site, in the same lineage, is asked for that tail first, the
// furthest of several: what arrived anywhere is not lost. Two that exclude each other
// are for a person to choose from, and none is taken unasked.

// Answer is what a peer said of its history.
type Answer struct {
	Peer     string
	Captures bool           // it reigns
	Head     journal.Cursor // where it ends, durably
	Epoch    journal.EpochID
	Branches []journal.Branch // that Epoch is one of
	Time     time.Time        // of its newest record
}

// Tail is what a peer holds beyond this site.
type Tail struct {
	Peer    string           `json:"peer"`
	Head    journal.Position `json:"head"`
	Number  uint64           `json:"epoch_number"`
	Time    time.Time        `json:"time,omitzero"` // of its newest record
	Records uint64           `json:"records"`       // beyond what both hold
	Bytes   int64            `json:"bytes"`
	// Leaves counts the records here that the peer's history has not: they become a branch.
	Leaves uint64 `json:"leaves,omitempty"`
}

// Tails is what the answers come to.
type Tails struct {
	Furthest *Tail             // nil: nobody holds more, or those who do exclude each other
	Related  map[string]string // peer: how its history stands to the one here
	Apart    []string          // why a person has to choose
}

// Weigh compares what peers said with the history here. wanted names the peer whose
// tail a person chose; empty: the furthest. It is pure.
func Weigh(ours []journal.Branch, head journal.EpochID, answers []Answer, wanted string) Tails {
	out := Tails{Related: map[string]string{}}
	var ahead []Answer
	tails := map[string]*Tail{}
	for _, a := range answers {
		r, err := journal.Relate(ours, head, a.Branches, a.Epoch)
		if err != nil {
			out.Related[a.Peer] = "not comparable"
			continue
		}
		out.Related[a.Peer] = r.Kind.String()
		behind := r.Kind == journal.PeerAhead || r.Kind == journal.Diverged && r.OurTail
		switch {
		case a.Captures: // it speaks for itself: a second primary is refused anyway
		case behind && a.Head.Seq > r.Common.Seq:
			ahead = append(ahead, a)
			t := &Tail{Peer: a.Peer, Head: a.Head.Position, Number: numberIn(a.Branches, a.Head.Epoch), Time: a.Time, Records: uint64(a.Head.Seq - r.Common.Seq)}
			if end := r.Ours.Last.Seq; end > r.Common.Seq {
				t.Leaves = uint64(end - r.Common.Seq)
			}
			tails[a.Peer] = t
		case r.Kind == journal.Diverged:
			out.Apart = append(out.Apart, fmt.Sprintf("%s has another history since #%d: it ends at #%d.%d", a.Peer, r.Common.Seq, numberIn(a.Branches, a.Head.Epoch), a.Head.Seq))
		}
	}
	if t := tails[wanted]; wanted != "" {
		out.Furthest, out.Apart = t, nil
		return out
	}
	if len(ahead) == 0 {
		return out
	}
	best := ahead[0]
	for _, a := range ahead[1:] {
		r, err := journal.Relate(best.Branches, best.Epoch, a.Branches, a.Epoch)
		switch {
		case err != nil || r.Kind != journal.Same && r.Kind != journal.PeerAhead && r.Kind != journal.PeerBehind || r.PeerTail:
			out.Apart = append(out.Apart, fmt.Sprintf("%s and %s hold tails that exclude each other: one ends at #%d.%d, the other at #%d.%d",
				best.Peer, a.Peer, tails[best.Peer].Number, best.Head.Seq, tails[a.Peer].Number, a.Head.Seq))
		case a.Head.Seq > best.Head.Seq:
			best = a
		}
	}
	if len(out.Apart) == 0 {
		out.Furthest = tails[best.Peer]
	}
	return out
}

func numberIn(branches []journal.Branch, e journal.EpochID) uint64 {
	i := slices.IndexFunc(branches, func(b journal.Branch) bool { return b.ID == e })
	if i < 0 {
		return 0
	}
	return branches[i].Number
}

// further reports that head a of a lineage lies beyond head b of it.
func further(numberA uint64, a journal.Position, numberB uint64, b journal.Position) bool {
	return numberA > numberB || numberA == numberB && a.Seq > b.Seq
}

// Furthest is the later one of two things that were heard of the source. What a peer
// holds itself, with no time at which the source was heard, says that it wrote that much.
func Furthest(a, b *SourceHead) *SourceHead {
	switch {
	case a == nil:
		return b
	case b == nil || !further(b.Number, b.Head, a.Number, a.Head):
		if b != nil && b.Head == a.Head && b.Heard.After(a.Heard) {
			return b
		}
		return a
	}
	return b
}

// takesTail reports that the plan's point moves when the tail has arrived.
func (in Inputs) takesTail() bool { return in.Tail != nil && in.At == atLatest }

const atLatest = "latest"

// tailStep says what is taken, and what it changes.
func tailStep(in Inputs) Step {
	t := in.Tail
	what := fmt.Sprintf("take the %s that %s holds beyond this site first, up to #%d.%d", count(int(t.Records), "record"), t.Peer, t.Number, t.Head.Seq)
	if t.Leaves > 0 {
		what += fmt.Sprintf("; %s here are in another history and stay as a branch", count(int(t.Leaves), "record"))
	}
	if in.takesTail() {
		what += "; latest is there then"
	}
	return Step{StepTail, what}
}

// tailWarnings tell of tails that are left where they are.
func tailWarnings(in Inputs) []string {
	if !in.WithoutTail {
		return nil
	}
	var out []string
	for _, p := range in.Peers {
		if in.ahead(p) {
			out = append(out, fmt.Sprintf("%s holds more than this site, up to #%d.%d, and that is not fetched: it stays there as a branch", p.Name, p.Number, p.Head.Seq))
		}
	}
	return append(out, in.Apart...)
}

// ahead reports that a peer answers and holds more.
func (in Inputs) ahead(p PeerHead) bool {
	if p.Relation != "" {
		return p.Reachable && p.Relation == journal.PeerAhead.String()
	}
	return p.Reachable && p.Head.Seq > in.Head.Seq
}

// tailObjections are what a person has to decide about tails.
func tailObjections(in Inputs) []Objection {
	if in.WithoutTail {
		return nil
	}
	var out []Objection
	if len(in.Apart) > 0 {
		out = append(out, Objection{ObjectionApart, strings.Join(in.Apart, "; ") + ": choose with --tail SITE, or go on with what is here: --without-tail"})
	}
	for _, p := range in.Peers {
		if in.Tail == nil && len(in.Apart) == 0 && in.ahead(p) {
			out = append(out, Objection{ObjectionAhead, fmt.Sprintf("%s holds %d records more than this site", p.Name, p.Head.Seq-in.Head.Seq)})
		}
	}
	return out
}
