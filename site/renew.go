package site

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/recovery"
)

// A follower takes no record of an epoch that is older than what it holds. One that left
// a branch of its own may hold younger epochs than the trunk has: then the trunk is
// forked anew, in a younger epoch, at the record that both hold, and what differs at its
// end is written again. Nothing else moves. What it was before stays, as a branch.

// renewFor lets a peer follow from a record that both hold.
func (l *life) renewFor(ctx context.Context, peer string, q renewing) (renewal, error) {
	r := l.roleNow()
	lineage := l.j.Lineage()
	switch {
	case q.Common.IsZero():
		return renewal{}, declined("no record in common is named")
	case r.Stage() == recovery.StageReplica && slices.Contains(q.Epochs, l.j.Head().Epoch):
		return renewal{Left: true}, l.leaveToo(peer, q)
	case !r.Role.Captures():
		return renewal{}, declined("the group is %s here", r.Stage())
	case recovery.CanFollow(lineage, q.Common.Position, q.Newest):
		return renewal{Follows: true}, nil
	case r.Stage() == recovery.StageRenewing:
		return renewal{Renewing: true}, nil
	case !lineage.Holds(q.Common.Position):
		return renewal{}, declined("record %s is not in this site's history", q.Common.Position)
	case r.Stage() == recovery.StageUncommitted && q.Common.Seq < r.From.Seq:
		return renewal{}, declined("the failover here, at record %d, is not committed", r.From.Seq)
	}
	v, err := l.j.View(ctx, journal.Point{Position: q.Common.Position})
	if err != nil {
		return renewal{}, declined("record %s cannot be gone back to: %v", q.Common.Position, err)
	}
	if err := v.Close(); err != nil {
		return renewal{}, err
	}
	a := recovery.Anew{At: q.Common.Position, Carry: true, AtLeast: max(q.Newest, l.newestNumber()) + 1, Operator: q.Operator,
		Why: peer + " follows from there", Since: l.site.o.Now()}
	if _, err := l.act(func(r recovery.Reign) (recovery.Reign, error) { return r.Renew(a) }); err != nil {
		return renewal{}, err
	}
	l.next()
	return renewal{Renewing: true}, nil
}

// leaveToo leaves the branch that its writer has left: this site only followed it.
func (l *life) leaveToo(peer string, q renewing) error {
	left, err := l.leftAt(q.Common, peer, q.Operator, q.Why)
	if err != nil {
		return declined("%v", err)
	}
	if left.Keeper = q.Keeper; left.Keeper == "" {
		left.Keeper = peer
	}
	if _, err := l.act(func(r recovery.Reign) (recovery.Reign, error) { return r.Yield(left) }); err != nil {
		return err
	}
	l.next()
	return nil
}

// renewed forks the trunk anew, as was ordered. In this life nothing was written yet:
// where the trunk ends is certain. Interrupted, it is done again from the start. What
// cannot be done leaves the trunk as it was.
func (l *life) renewed(ctx context.Context) (*journal.Writer, error) {
	r, err := l.patiently(ctx, func(r recovery.Reign) (recovery.Reign, error) { return r.RenewFrom(l.j.Head().Position) })
	if err != nil {
		return nil, err
	}
	a := *r.Anew
	w, err := l.forkAnew(ctx, a)
	if err != nil && ctx.Err() == nil {
		l.site.o.Log.Error("trunk not forked anew: it goes on as it was", "group", l.cfg.Ref(), "at", a.At.String(), "err", err)
		w, err = l.promoting().BeginEpoch(ctx, l.site.cfg.Site, a.From, 0)
	}
	if err != nil {
		return nil, err
	}
	_, err = l.patiently(ctx, func(r recovery.Reign) (recovery.Reign, error) { return r.Renewed(w.Epoch()) })
	return w, err
}

func (l *life) forkAnew(ctx context.Context, a recovery.Anew) (*journal.Writer, error) {
	w, err := l.promoting().BeginEpoch(ctx, l.site.cfg.Site, a.At, a.AtLeast)
	if err != nil || !a.Carry {
		return w, err
	}
	n, err := l.carry(ctx, w, a.At, a.From)
	l.site.o.Log.Warn("trunk forked anew", "group", l.cfg.Ref(), "epoch", w.Epoch().Number, "at", a.At.String(), "branch", a.From.String(), "bytes_written_again", n, "why", a.Why)
	return w, err
}

// carryBytes is how much is read and recorded at once.
const carryBytes = 1 << 20

// carry makes the head, which is the image at p, the image at q.
func (l *life) carry(ctx context.Context, w *journal.Writer, p, q journal.Position) (written int64, err error) {
	view, err := l.j.View(ctx, journal.Point{Position: q})
	if err != nil {
		return 0, err
	}
	defer view.Close()
	for _, v := range view.Volumes() {
		if err := w.AddVolume(ctx, v); err != nil {
			return 0, err
		}
	}
	machines, err := l.j.Machines(view.Point())
	if err != nil {
		return 0, err
	}
	for name, definition := range machines {
		if err := w.Machine(ctx, name, definition); err != nil {
			return 0, err
		}
	}
	differs, err := l.j.Diff(ctx, p, q)
	if err != nil {
		return 0, err
	}
	for _, v := range view.Volumes() {
		for _, e := range differs[v.ID] {
			n, err := carryExtent(ctx, w, view, v, e)
			if written += n; err != nil {
				return written, fmt.Errorf("write %s at %d again: %w", v.Name, e.Offset, err)
			}
		}
	}
	return written, w.WaitDurable(ctx)
}

// carryExtent records what e of a volume holds in view, as far as the volume reaches.
func carryExtent(ctx context.Context, w *journal.Writer, view *journal.View, v cbt.Volume, e cbt.Extent) (written int64, err error) {
	for off, end := e.Offset, min(e.End(), v.Size); off < end; off += carryBytes {
		p := make([]byte, min(carryBytes, end-off))
		if err := view.ReadAt(ctx, v.ID, p, off); err != nil {
			return written, err
		}
		ev := cbt.Event{Kind: cbt.EventFill, Volume: v.ID, Extent: cbt.Extent{Offset: off, Length: int64(len(p))}, Data: p}
		if len(bytes.Trim(p, "\x00")) == 0 {
			ev.Kind, ev.Data = cbt.EventZero, nil
		}
		pending, err := w.Record(ctx, ev)
		if err == nil {
			err = pending.Wait(ctx)
		}
		if err != nil {
			return written, err
		}
		written += int64(len(p))
	}
	return written, nil
}
