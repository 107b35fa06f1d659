package site

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/novacron/afterimage/cbt/embedded"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/replicator"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
)

// references is what the group at this site needs of its past whatever the ladder
// says, beside pins and views, which the journal knows itself:
//
//	pin NAME              a mark that says so, for it is part of the history
//	cursor PEER           what a peer lacks, within its hold
//	cursor disk VOLUME    what an embedded image lacks, should it be opened again
//	uncommitted failover  the fork and all after it: rollback must be possible
//
// and what is held for which peer, for people.
func (l *life) references(ctx context.Context, now time.Time) ([]journal.Reference, []control.Hold, error) {
	refs, err := l.ownReferences(ctx)
	peers, _ := l.audience()
	if err != nil || len(peers) == 0 {
		return refs, nil, err
	}
	var holds []control.Hold
	head, frames := l.j.Head(), l.j.Usage().FramesFrom
	lags := l.site.lagsGoing(l.group, replicator.Outbound)
	numbers := epochNumbers(l.j)
	for _, name := range peers {
		peer, ok := l.site.cfg.Peer(name)
		if !ok {
			continue
		}
		lag := lagTo(lags, name)
		r, err := l.reachOf(name, lag, head, now)
		if err != nil {
			return nil, nil, err
		}
		refused := lag != nil && errors.Is(lag.Err, journal.ErrReclaimed)
		h, ref := holdOf(*peer.Hold, r, head, frames, refused, now)
		if lag != nil && !lag.Target.IsZero() {
			h, ref = holdOfDelta(*peer.Hold, h, *lag, now)
		}
		h.Peer = name
		if !r.At.IsZero() {
			h.Cursor = fmt.Sprintf("#%d.%d", numbers[r.At.Epoch], r.At.Seq)
		}
		holds = append(holds, h)
		if ref != nil {
			ref.Name = name
			refs = append(refs, *ref)
		}
	}
	return refs, holds, ctx.Err()
}

// ownReferences are those of this site's marks, disks and failovers.
func (l *life) ownReferences(ctx context.Context) ([]journal.Reference, error) {
	var refs []journal.Reference
	hs, err := l.j.Happenings(ctx, time.Time{}, time.Time{})
	if err != nil {
		return nil, err
	}
	for _, h := range hs {
		if h.Kind == journal.KindMark && h.Mark.Pin {
			refs = append(refs, journal.Reference{Kind: journal.ReferencePin, Name: h.Mark.Name, At: h.Position})
		}
	}
	p, known, err := recovery.Newest(l.j)
	if err != nil {
		return nil, err
	}
	if known && p.State == recovery.PromotionBegun {
		refs = append(refs, journal.Reference{Kind: journal.ReferenceUncommitted, Name: "failover", At: p.Order.Point})
	}
	r := l.roleNow()
	if r.Role == recovery.Uncommitted && !r.From.IsZero() {
		refs = append(refs, journal.Reference{Kind: journal.ReferenceUncommitted, Name: "failover", At: r.From})
	}
	if r.Role.Captures() {
		images, err := l.movedReferences(r)
		if err != nil {
			return nil, err
		}
		refs = append(refs, images...)
	}
	if r.Role != recovery.Primary {
		return refs, nil
	}
	for _, c := range l.cfg.Volumes {
		if c.Embedded == nil {
			continue
		}
		place, ok, err := embedded.Checkpointed(l.j, volumeOf(l.cfg, c).ID)
		if err != nil {
			return nil, err
		}
		at, err := positionOf(place)
		if ok && err == nil && l.j.Lineage().Holds(at) {
			refs = append(refs, journal.Reference{Kind: journal.ReferenceCursor, Name: "disk " + c.Name, At: at})
		}
	}
	return refs, nil
}

// reach is how far a peer was known to be, as the site log keeps it.
type reach struct {
	At    journal.Position `json:"at"`    // durable there; zero: nothing yet
	Level time.Time        `json:"level"` // it has everything that was captured until then
	Total int64            `json:"total"` // bytes of history up to At
}

// reachKey is where the site log keeps a peer's reach.
func reachKey(peer string) string { return "reach/" + peer }

func lagTo(lags []replicator.Lag, peer string) *replicator.Lag {
	for i, lag := range lags {
		if lag.Peer == peer && lag.Direction == replicator.Outbound {
			return &lags[i]
		}
	}
	return nil
}

// reachOf is the newest that is known of a peer, which is remembered: after a
// restart with the peer away its hold goes on and does not begin anew.
func (l *life) reachOf(peer string, lag *replicator.Lag, head journal.Head, now time.Time) (reach, error) {
	var was reach
	known, err := l.j.Recall(reachKey(peer), &was)
	if err != nil {
		return was, fmt.Errorf("recall the reach of peer %s: %w", peer, err)
	}
	stored := was
	if !known {
		was, known = l.reachOfSource(peer, head)
	}
	r := reachFrom(was, known, lag, head, now)
	if r != stored || !known {
		if err := l.j.Remember(reachKey(peer), r); err != nil {
			return r, fmt.Errorf("remember the reach of peer %s: %w", peer, err)
		}
	}
	return r, nil
}

// reachOfSource is what is known of a peer that sent us this history before we were
// promoted: it has what we have up to the fork.
func (l *life) reachOfSource(peer string, head journal.Head) (reach, bool) {
	h := l.recalled(peer)
	if h == nil {
		return reach{}, false
	}
	at, lineage := h.Head, l.j.Lineage()
	if !lineage.Holds(at) { // it had more, which never arrived
		at = l.roleNow().From
	}
	return reach{At: at, Level: h.Heard, Total: head.Bytes}, lineage.Holds(at)
}

// reachFrom is what is known now, given what was remembered. It is pure.
func reachFrom(was reach, known bool, lag *replicator.Lag, head journal.Head, now time.Time) reach {
	r := was
	if !known { // of a peer that never came nothing is held back before it was configured
		r = reach{Level: now}
	}
	if lag != nil && !lag.Durable.IsZero() {
		r.At, r.Total = lag.Durable.Position, max(0, head.Bytes-lag.Bytes)
		if lag.Known {
			r.Level = now.Add(-lag.RPO)
		}
	}
	if r.At == head.Position && !r.At.IsZero() { // nothing was written since: it lacks nothing
		r.Level, r.Total = now, head.Bytes
	}
	return r
}

// holdOfDelta is what is kept for a peer while a delta is on its way to it: the frames
// that follow on what it leads to, no longer than the hold from when it began. It is pure.
func holdOfDelta(c config.Hold, h control.Hold, lag replicator.Lag, now time.Time) (control.Hold, *journal.Reference) {
	h.Until = lag.Since.Add(time.Duration(c.For))
	h.State, h.Why = control.HoldCatching, fmt.Sprintf("a delta to record %d is on its way since %s", lag.Target.Seq, lag.Since.Format(timeLayout))
	if now.After(h.Until) {
		return h, nil
	}
	return h, &journal.Reference{Kind: journal.ReferenceCursor, At: lag.Target, Until: h.Until}
}

// holdOf judges what is kept for a peer and gives the reference that keeps it; nil
// where the peer is beyond its hold. frames is the first record that can still be
// sent; refused says that the peer asked for one before. It is pure.
func holdOf(c config.Hold, r reach, head journal.Head, frames journal.Position, refused bool, now time.Time) (control.Hold, *journal.Reference) {
	h := control.Hold{State: control.HoldKept, Level: r.Level, Until: r.Level.Add(time.Duration(c.For)), Behind: max(0, head.Bytes-r.Total),
		For: time.Duration(c.For).Seconds(), Bytes: int64(c.Bytes)}
	switch {
	case refused || !r.At.IsZero() && frames.Seq > r.At.Seq+1: // of a peer that never came nothing is known
		h.State, h.Why = control.HoldLost, fmt.Sprintf("it has nothing after record %d, and history before record %d was thinned here", r.At.Seq, frames.Seq)
		return h, nil
	case r.At == head.Position:
		h.State, h.Until = control.HoldLevel, time.Time{}
	case now.After(h.Until):
		h.State, h.Why = control.HoldBeyond, fmt.Sprintf("it has nothing after %s, longer ago than its hold of %s", r.Level.Format(timeLayout), c.For)
		return h, nil
	case c.Bytes > 0 && h.Behind > int64(c.Bytes):
		h.State, h.Why = control.HoldBeyond, fmt.Sprintf("it lacks %s, more than its hold of %s", bytesText(h.Behind), c.Bytes)
		return h, nil
	}
	return h, &journal.Reference{Kind: journal.ReferenceCursor, At: r.At, Until: r.Level.Add(time.Duration(c.For))}
}
