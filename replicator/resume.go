package replicator

import (
	"fmt"

	"github.com/novacron/afterimage/journal"
)

// site is one site's side of a comparison.
type site struct {
	branches []journal.Branch
	head     journal.EpochID
}

// verdict is what two histories allow.
type verdict struct {
	relation journal.Relation // of the peer's history to ours
	conflict bool
	lost     bool // the source no longer has what the replica holds
}

// sourceVerdict judges at the source: frames may flow when the replica's end lies in
// our lineage, or beyond a fork of it without a reign of its own.
func sourceVerdict(source, replica site) (verdict, error) {
	r, err := journal.Relate(source.branches, source.head, replica.branches, replica.head)
	if err != nil {
		return verdict{}, fmt.Errorf("compare histories: %w", err)
	}
	ok := r.Kind == journal.Same || r.Kind == journal.PeerBehind
	return verdict{relation: r, conflict: !ok, lost: r.Kind == journal.PeerAhead && source.head == replica.head}, nil
}

// replicaVerdict judges at the replica, the mirror image of sourceVerdict. primary
// says that this site reigns itself: then only the same history is no conflict.
func replicaVerdict(replica, source site, primary bool) (verdict, error) {
	r, err := journal.Relate(replica.branches, replica.head, source.branches, source.head)
	if err != nil {
		return verdict{}, fmt.Errorf("compare histories: %w", err)
	}
	// A tail of ours beyond the fork stays here as a branch; only a reign conflicts.
	behind := r.Kind == journal.PeerAhead || (r.Kind == journal.Diverged && r.OurTail)
	ok := r.Kind == journal.Same || (behind && !primary)
	return verdict{relation: r, conflict: !ok, lost: r.Kind == journal.PeerBehind && source.head == replica.head && !r.PeerTail}, nil
}

// resumeAt is where frames go on after: the replica's durable end, or the fork
// when that end lies beyond it. Both ends compute it alike.
func resumeAt(common, durable journal.Cursor) journal.Cursor {
	if durable.Seq < common.Seq {
		return durable
	}
	return common
}

// clip cuts c back to where the source's lineage left its epoch: a frame may reach
// beyond a fork in its middle, and what lies there is not what the source goes on
// with. The head's own epoch still grows, and a later one is not in l yet.
func clip(l journal.Lineage, head journal.EpochID, c journal.Cursor) journal.Cursor {
	for _, i := range l {
		if i.Epoch == c.Epoch && c.Epoch != head && c.Seq > i.Last {
			return journal.Cursor{Position: journal.Position{Epoch: c.Epoch, Seq: i.Last}}
		}
	}
	return c
}

// lineage is the history that s's head ends. It is known to be whole: a verdict
// was reached on it.
func (s site) lineage() journal.Lineage {
	l, err := journal.LineageOf(s.branches, s.head)
	if err != nil {
		return nil
	}
	return l
}

// covers reports that durable says of p that it is durable too: p is not after it
// in the same epoch, or of an epoch before it (one begins when all before is durable).
func covers(l journal.Lineage, durable, p journal.Position) bool {
	if p.Epoch == durable.Epoch {
		return p.Seq <= durable.Seq
	}
	atP, atDurable := -1, len(l) // an epoch that l does not know yet is after all that it does
	for i, v := range l {
		if v.Epoch == p.Epoch {
			atP = i
		}
		if v.Epoch == durable.Epoch {
			atDurable = i
		}
	}
	return atP >= 0 && atP < atDurable
}
