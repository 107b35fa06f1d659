package journal

import (
	"fmt"
	"slices"
)

// Interval is the seqs First..Last of one epoch.
type Interval struct {
	Epoch       EpochID
	Number      uint64
	First, Last Seq
}

// Lineage is the intervals that a history consists of, oldest first, dense in
// seq: a view sees these and nothing else.
type Lineage []Interval

// Owner is the interval that holds s.
func (l Lineage) Owner(s Seq) (Interval, bool) {
	for i := len(l) - 1; i >= 0; i-- {
		if l[i].First <= s && s <= l[i].Last {
			return l[i], true
		}
	}
	return Interval{}, false
}

// written is l without an interval at its end that holds nothing yet.
func (l Lineage) written() Lineage {
	if n := len(l); n > 0 && l[n-1].Last < l[n-1].First {
		return l[:n-1]
	}
	return l
}

// Holds reports whether p lies in l.
func (l Lineage) Holds(p Position) bool {
	i, ok := l.Owner(p.Seq)
	return ok && i.Epoch == p.Epoch
}

// Until is l cut after seq s.
func (l Lineage) Until(s Seq) Lineage {
	var out Lineage
	for _, i := range l {
		if i.First > s {
			break
		}
		i.Last = min(i.Last, s)
		out = append(out, i)
	}
	return out
}

// LineageOf follows the parents of epoch head through branches. The last interval
// ends where head is held.
func LineageOf(branches []Branch, head EpochID) (Lineage, error) {
	if head.IsZero() {
		return nil, nil
	}
	byID := make(map[EpochID]Branch, len(branches))
	for _, b := range branches {
		byID[b.ID] = b
	}
	b, ok := byID[head]
	if !ok {
		return nil, fmt.Errorf("follow lineage: epoch %s: %w", head.Short(), ErrUnknownParent)
	}
	l := Lineage{{b.ID, b.Number, b.First(), b.Last.Seq}}
	for !b.Parent.IsZero() {
		p, ok := byID[b.Parent.Epoch]
		if !ok {
			return nil, fmt.Errorf("follow lineage: parent %s of epoch %d: %w", b.Parent.Epoch.Short(), b.Number, ErrUnknownParent)
		}
		if p.Number >= b.Number {
			return nil, fmt.Errorf("follow lineage: epoch %d has parent %d: %w", b.Number, p.Number, ErrLowerEpoch)
		}
		if b.Parent.Seq >= p.First() { // a parent that wrote nothing up to the fork leaves no interval
			l = append(l, Interval{p.ID, p.Number, p.First(), b.Parent.Seq})
		}
		b = p
	}
	slices.Reverse(l)
	return l, nil
}

// RelationKind is how a peer's history stands to ours.
type RelationKind uint8

// Kinds of relation.
const (
	Same       RelationKind = iota + 1 // both end at the same record
	PeerBehind                         // the peer's end lies in our lineage
	PeerAhead                          // our end lies in the peer's lineage
	Diverged                           // both wrote after Common
	Unrelated                          // no record in common though both hold some
)

var relationNames = map[RelationKind]string{Same: "same", PeerBehind: "peer behind", PeerAhead: "peer ahead", Diverged: "diverged", Unrelated: "unrelated"}

func (k RelationKind) String() string { return relationNames[k] }

// Relation is what a comparison of two histories found. Common is the furthest
// record that both lineages hold, zero when there is none; its Chain is known only
// where it ends a branch or begins one. Ours and Theirs are the branches the two
// histories end in: the evidence of a divergence.
type Relation struct {
	Kind         RelationKind
	Common       Cursor
	Ours, Theirs Branch
	// PeerTail says that the peer holds records of a shared epoch beyond Common
	// that are not in our lineage, or that all it holds beyond Common is held here
	// too, as a branch that we have left for an epoch after it: if it never reigned
	// there it keeps them as a branch and goes on from Common. OurTail is the same
	// seen from the other end.
	PeerTail, OurTail bool
}

// Relate compares two histories by lineage, never by bare seqs. ourHead and
// theirHead are the epochs the two sites are in. It is pure.
//
// A peer that holds more of an epoch than we forked from, and no epoch after it,
// is behind with a tail, and so is one whose whole history is a branch of ours that
// we went back from, to one of before; whether it was that epoch's primary, and so has
// diverged, its role tells. A peer whose newest epoch we do not know has diverged unless
// our end lies in its lineage.
func Relate(ours []Branch, ourHead EpochID, theirs []Branch, theirHead EpochID) (Relation, error) {
	ol, err := LineageOf(ours, ourHead)
	if err != nil {
		return Relation{}, fmt.Errorf("relate histories: ours: %w", err)
	}
	tl, err := LineageOf(theirs, theirHead)
	if err != nil {
		return Relation{}, fmt.Errorf("relate histories: theirs: %w", err)
	}
	ol, tl = startedBoth(ol, tl), startedBoth(tl, ol)
	r := Relation{Ours: find(ours, ourHead), Theirs: find(theirs, theirHead)}
	switch {
	case len(tl) == 0 && len(ol) == 0:
		r.Kind = Same
		return r, nil
	case len(tl) == 0:
		r.Kind = PeerBehind
		return r, nil
	case len(ol) == 0:
		r.Kind = PeerAhead
		return r, nil
	}
	common := lastCommon(ol, tl)
	r.Common = Cursor{Position: common, Chain: chainAt(common, ours, theirs)}
	if common.IsZero() {
		r.Kind = Unrelated
		return r, nil
	}
	for _, i := range ol { // wherever both know a chain value of what they share
		p := Position{i.Epoch, min(i.Last, common.Seq)}
		if i.First <= common.Seq && chainsDiffer(p, ours, theirs) {
			r.Kind = Diverged
			return r, nil
		}
	}
	ourEnd, theirEnd := lastOf(ol), lastOf(tl)
	switch {
	case ourEnd == common && theirEnd == common:
		r.Kind = Same
	case theirEnd == common:
		r.Kind = PeerBehind
	case ourEnd == common:
		r.Kind = PeerAhead
	case theirEnd.Epoch == common.Epoch, leftBehind(tl, theirs, r.Theirs, ours, r.Ours):
		r.Kind, r.PeerTail = PeerBehind, true
	default:
		r.Kind, r.OurTail = Diverged, ourEnd.Epoch == common.Epoch || leftBehind(ol, ours, r.Ours, theirs, r.Theirs)
	}
	return r, nil
}

// leftBehind reports that l, which ends in the epoch at of one side, is held whole at
// the other side, whose newest epoch came after.
func leftBehind(l Lineage, side []Branch, at Branch, other []Branch, newest Branch) bool {
	end := lastOf(l)
	b := find(other, end.Epoch)
	if at.Number >= newest.Number || b.ID.IsZero() || b.Last.Epoch != end.Epoch || b.Last.Seq < end.Seq {
		return false
	}
	theirs, err := LineageOf(other, end.Epoch)
	if err != nil || !slices.Equal(l, theirs.Until(end.Seq)) {
		return false
	}
	for _, i := range l {
		if chainsDiffer(Position{i.Epoch, i.Last}, side, other) {
			return false
		}
	}
	return true
}

// startedBoth is l without an epoch at its end that holds nothing here but is
// known to the other side: its parent is where l really ends.
func startedBoth(l, other Lineage) Lineage {
	if w := l.written(); len(w) < len(l) {
		for _, i := range other {
			if i.Epoch == l[len(l)-1].Epoch {
				return w
			}
		}
	}
	return l
}

func lastOf(l Lineage) Position { i := l[len(l)-1]; return Position{i.Epoch, i.Last} }

func find(bs []Branch, id EpochID) Branch {
	for _, b := range bs {
		if b.ID == id {
			return b
		}
	}
	return Branch{}
}

// lastCommon is the furthest record both lineages hold.
func lastCommon(a, b Lineage) Position {
	var common Position
	for i := 0; i < len(a) && i < len(b); i++ {
		if a[i].Epoch != b[i].Epoch || a[i].First != b[i].First {
			break
		}
		common = Position{a[i].Epoch, min(a[i].Last, b[i].Last)}
		if a[i].Last != b[i].Last {
			break
		}
	}
	if common.Seq == 0 {
		return Position{}
	}
	return common
}

// chainsDiffer reports that both sides know the chain at p and disagree: the same
// names over different bytes.
func chainsDiffer(p Position, ours, theirs []Branch) bool {
	a, okA := knownChain(p, ours)
	b, okB := knownChain(p, theirs)
	return okA && okB && a != b
}

func chainAt(p Position, sides ...[]Branch) Chain {
	for _, s := range sides {
		if c, ok := knownChain(p, s); ok {
			return c
		}
	}
	return Chain{}
}

func knownChain(p Position, bs []Branch) (Chain, bool) {
	for _, b := range bs {
		if b.Last.Position == p && !b.Last.Chain.unknown(p.Seq+1) {
			return b.Last.Chain, true
		}
		if b.Parent.Position == p {
			return b.Parent.Chain, true
		}
	}
	return Chain{}, false
}
