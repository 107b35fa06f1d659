package site

import (
	"context"
	"fmt"
	"slices"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/site/fault"
)

// The taker's side of a handover. What it promises: a handover is taken at most once,
// from exactly the record that the giver named, and never after it was revoked. The
// order to promote is durable before the promotion, so that a crash finishes it.

// revokedKey is where the site log keeps the handovers that are never taken.
const (
	revokedKey = "handover/revoked"
	maxRevoked = 64
)

// offered says whether this site could take over: its history ends where the giver's does.
func (l *life) offered(peer string, q cession) (statement, error) {
	if err := l.takes(q); err != nil {
		return statement{}, err
	}
	if l.atHome() {
		ctx, cancel := context.WithTimeout(l.ctx, ownPatience)
		defer cancel()
		if _, err := l.homeDisks(ctx); err != nil {
			return statement{}, declined("the domain's own disks cannot be brought to the head at %s: %v. %s", l.site.cfg.Site, err, fault.Of(err).Advice())
		}
	}
	return statement{l.j.Head().Durable}, nil
}

// takes is why the group cannot be taken over here, or nil.
func (l *life) takes(q cession) error {
	head := l.j.Head()
	switch r := l.roleNow(); {
	case r.Stage() != recovery.StageReplica:
		return declined("the group is %s here", r.Stage())
	case head.Position != q.Head.Position || head.Durable.Position != q.Head.Position:
		return declined("the history ends at %s here, durably at %s, and at %s there", head.Position, head.Durable.Position, q.Head.Position)
	case head.Durable.Chain != q.Head.Chain:
		return declined("record %s has another history here: chain %s, there %s", q.Head.Position, head.Durable.Chain.String(), q.Head.Chain.String())
	}
	return nil
}

// taken tells whether a handover was taken here, and its epoch where that still reigns.
func (l *life) taken(id cbt.ID) (taking, error) {
	if r := l.roleNow(); slices.Contains(r.Took, id) {
		return taking{Taken: true, Epoch: r.Epoch}, nil
	}
	p, ok, err := recovery.Newest(l.j)
	if err != nil || !ok || p.Order.Handover != id || p.State == recovery.PromotionAbandoned {
		return taking{}, err
	}
	return taking{Taken: true, Epoch: p.Order.EpochAtLeast}, nil
}

func (l *life) revokedIDs() ([]cbt.ID, error) {
	var ids []cbt.ID
	if _, err := l.j.Recall(revokedKey, &ids); err != nil {
		return nil, fmt.Errorf("recall revoked handovers: %w", err)
	}
	return ids, nil
}

// take makes this site the primary of what peer ceded.
func (l *life) take(ctx context.Context, peer string, q cession) (taking, error) {
	if err := l.claimFailover(); err != nil {
		return taking{}, err
	}
	defer l.releaseFailover()
	if t, err := l.taken(q.ID); err != nil || t.Taken {
		return t, err
	}
	ids, err := l.revokedIDs()
	if err != nil {
		return taking{}, err
	}
	if slices.Contains(ids, q.ID) {
		return taking{Revoked: true}, nil
	}
	if err := l.takes(q); err != nil {
		return taking{}, err
	}
	o := recovery.Order{Group: l.cfg.Ref(), Site: l.site.cfg.Site, At: "latest", Point: q.Head.Position, EpochAtLeast: max(q.Number, l.newestNumber()) + 1,
		Operator: q.Operator, Fence: recovery.FenceProven, Handover: q.ID, Giver: peer}
	if !q.NoMachine {
		o.Machine = l.hasMachine()
	}
	// From here on it goes to its end: half a promotion helps nobody.
	p, err := recovery.Promote(context.WithoutCancel(ctx), l.promoting(), o, l.site.o.Now())
	if err != nil {
		l.next() // what was begun is finished by the next life
		return taking{}, err
	}
	l.setRole(p.Reign)
	l.mu.Lock()
	l.took = q.ID
	l.mu.Unlock()
	l.site.o.Log.Warn("group taken over", "group", l.cfg.Ref(), "giver", peer, "epoch", p.Reign.Epoch, "record", q.Head.Position.String(), "operator", q.Operator)
	if !l.hand(coronation{writer: p.Writer}) {
		return taking{}, errDetached // the next life plays what stands
	}
	return taking{Taken: true, Epoch: p.Reign.Epoch}, nil
}

// revoke makes sure that a handover is never taken here, unless it was already.
func (l *life) revoke(q cession) (taking, error) {
	if err := l.claimFailover(); err != nil {
		return taking{}, err
	}
	defer l.releaseFailover()
	if t, err := l.taken(q.ID); err != nil || t.Taken {
		return t, err
	}
	ids, err := l.revokedIDs()
	if err != nil {
		return taking{}, err
	}
	if !slices.Contains(ids, q.ID) {
		ids = append(ids, q.ID)
		if err := l.j.Remember(revokedKey, ids[max(0, len(ids)-maxRevoked):]); err != nil {
			return taking{}, fmt.Errorf("remember revoked handover: %w", err)
		}
		l.site.o.passes("handover revoked")
	}
	return taking{Revoked: true}, nil
}
