package site

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/site/fault"
)

// errTurn ends a life whose role has changed: the next one plays it.
var errTurn = errors.New("the group's role has changed")

// act changes the role: f says what to, from what is remembered, and that is durable
// before it is in effect. One act, promotion or failover at a time.
func (l *life) act(f func(recovery.Reign) (recovery.Reign, error)) (recovery.Reign, error) {
	if err := l.claimFailover(); err != nil {
		return recovery.Reign{}, err
	}
	defer l.releaseFailover()
	return l.actClaimed(f)
}

func (l *life) actClaimed(f func(recovery.Reign) (recovery.Reign, error)) (recovery.Reign, error) {
	was, _, err := recovery.RecallReign(l.j)
	if err != nil {
		return was, err
	}
	now, err := f(was)
	if err != nil {
		return was, err
	}
	l.site.o.passes("role is to change")
	if err := recovery.RememberReign(l.j, now); err != nil {
		return was, err
	}
	l.site.o.passes("role changed")
	l.site.o.Log.Warn("role changes", "group", l.cfg.Ref(), "from", was.Stage(), "to", now.Stage(), "operator", now.Operator)
	l.setRole(now)
	return now, nil
}

// patiently is act for who may wait until another one is over.
func (l *life) patiently(ctx context.Context, f func(recovery.Reign) (recovery.Reign, error)) (recovery.Reign, error) {
	for {
		r, err := l.act(f)
		if !fault.Is(err, fault.OperationBusy) || errors.Is(err, journal.ErrBusy) {
			return r, err
		}
		if err := pauseFor(ctx, actPause); err != nil {
			return r, err
		}
	}
}

// actPause is between attempts at what somebody else holds up.
const actPause = 20 * time.Millisecond

func pauseFor(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// newestNumber is the highest epoch number that is known here.
func (l *life) newestNumber() uint64 {
	n := uint64(0)
	for _, b := range l.j.Branches() {
		n = max(n, b.Number)
	}
	return n
}

// leftAt is what is given up here when the history is to go on at common.
func (l *life) leftAt(common journal.Cursor, keeper, operator, why string) (recovery.Left, error) {
	out := recovery.Left{Common: common, Head: l.j.Head().Position, Newest: l.newestNumber(), Keeper: keeper, Operator: operator, Why: why, Since: l.site.o.Now()}
	lineage := l.j.Lineage()
	if !lineage.Holds(common.Position) {
		return out, fmt.Errorf("leave a branch at %s: %w", common.Position, journal.ErrUnknownParent)
	}
	for _, i := range lineage {
		switch {
		case i.Epoch == common.Epoch:
			out.Number = i.Number
		case i.First > common.Seq:
			out.Epochs = append(out.Epochs, i.Epoch)
		}
	}
	if head := l.j.Head().Epoch; head != common.Epoch && !out.Holds(head) { // it holds nothing yet
		out.Epochs = append(out.Epochs, head)
	}
	return out, nil
}

// shown is a life's history as peers are told of it: without a branch that was left,
// until what goes on has arrived.
func (l *life) shown(head journal.Head, branches []journal.Branch) (journal.Head, []journal.Branch) {
	left := l.roleNow().Left
	if left == nil || !left.Holds(head.Epoch) {
		return head, branches
	}
	var out []journal.Branch
	for _, b := range branches {
		switch {
		case b.ID == left.Common.Epoch:
			b.Last = left.Common
			out = append(out, b)
		case !left.Holds(b.ID):
			out = append(out, b)
		}
	}
	head.Position, head.Number, head.Durable = left.Common.Position, left.Number, left.Common
	return head, out
}
