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
	ok := r.Kind == journal.Same || (r.Kind == journal.PeerAhead && !primary)
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
