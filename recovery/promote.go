package recovery

import (
	"context"
	"fmt"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
)

// History is the journal that is promoted; *journal.Journal is one.
type History interface {
	cbt.Memory
	BeginEpoch(ctx context.Context, site string, parent journal.Position, atLeast uint64) (*journal.Writer, error)
	Branches() []journal.Branch
}

var _ History = (*journal.Journal)(nil)

// Order is what somebody decided: Plan.Order makes one.
type Order struct {
	Group        string           `json:"group"`
	Site         string           `json:"site"` // this one
	At           string           `json:"at"`
	Point        journal.Position `json:"point"`
	EpochAtLeast uint64           `json:"epoch_at_least"`
	Operator     string           `json:"operator,omitempty"`
	Fence        Fence            `json:"fence"`
	Forced       bool             `json:"forced"`
	Machine      string           `json:"machine,omitempty"` // to be started afterwards
	Plan         string           `json:"plan,omitempty"`    // digest of what was confirmed
	// Rewind: this site reigns already and goes back in its own history. Nobody is to be
	// fenced, and the role stays what it was.
	Rewind bool `json:"rewind,omitempty"`
	// Drives: the disks are a machine's own, and whoever reigns writes to them before
	// anything is captured.
	Drives bool `json:"drives,omitempty"`
	// Handover is the planned change that this is the end of, and Giver the site that
	// gave the group up: nothing is lost and nothing is to be decided.
	Handover cbt.ID `json:"handover,omitzero"`
	Giver    string `json:"giver,omitempty"`
	Policy   Policy `json:"policy,omitzero"` // of the uncommitted reign
}

// PromotionState says how far a promotion came.
type PromotionState string

// States of a promotion.
const (
	PromotionBegun     PromotionState = "begun"
	PromotionDone      PromotionState = "done"
	PromotionAbandoned PromotionState = "abandoned"
)

// Promotion is an order and its fate, as it is kept in the site log.
type Promotion struct {
	ID    cbt.ID         `json:"id"`
	State PromotionState `json:"state"`
	Order Order          `json:"order"`
	Began time.Time      `json:"began"`
	// Known is the highest epoch number that was known here before: one of this
	// site above it is the promotion's own.
	Known uint64    `json:"known_epoch"`
	Ended time.Time `json:"ended,omitzero"`
}

// Promoted is the outcome. Writer is the pen of the new epoch.
type Promoted struct {
	Writer    *journal.Writer
	Reign     Reign
	Promotion Promotion
	Resumed   bool // an interrupted run was finished
}

// Newest is the newest promotion of a journal. While its state is begun nothing may
// capture or receive: Promote with its order, or Abandon, goes first.
func Newest(m cbt.Memory) (Promotion, bool, error) {
	var p Promotion
	ok, err := m.Recall(PromotionKey, &p)
	if err != nil {
		return p, false, fmt.Errorf("recall promotion: %w", err)
	}
	return p, ok, nil
}

// Abandon gives up a promotion that was begun and has not changed the role.
func Abandon(m cbt.Memory, now time.Time) error {
	p, ok, err := Newest(m)
	if err != nil || !ok || p.State != PromotionBegun {
		return err
	}
	r, _, err := RecallReign(m)
	if err != nil {
		return err
	}
	if r.Promotion == p.ID {
		return fmt.Errorf("abandon promotion: %w: it is in effect since %s", ErrOtherPromotion, r.Since.Format(time.RFC3339))
	}
	p.State, p.Ended = PromotionAbandoned, now
	return m.Remember(PromotionKey, p)
}

// Promote makes this site the primary of h's group, from o.Point on. Four steps, each
// durable before the next: the intent; the epoch, forked at the point; the role
// (uncommitted); the outcome. Interrupted anywhere and called again with the same
// point, it ends as if it had not been: one image, one role, nothing written between
// the point and the new epoch. Called again with the same plan when all was done, it
// goes on from the head. Without a proven fence o.Forced must be set
// (ErrUnfenced), and the reign says Unfenced.
func Promote(ctx context.Context, h History, o Order, now time.Time) (Promoted, error) {
	out, err := promote(ctx, h, o, now)
	if err != nil {
		return Promoted{}, fmt.Errorf("promote %s: %w", o.Group, err)
	}
	return out, nil
}

func promote(ctx context.Context, h History, o Order, now time.Time) (Promoted, error) {
	if o.Fence == "" {
		o.Fence = FenceUnknown
	}
	if !o.Fence.Off() && !o.Forced && !o.Rewind {
		return Promoted{}, ErrUnfenced
	}
	if o.Point.IsZero() || o.Site == "" {
		return Promoted{}, fmt.Errorf("order without a point or a site: %w", journal.ErrNoPoint)
	}
	before, _, err := RecallReign(h)
	if err == nil && o.Rewind {
		err = mayRewind(before, o, h.Branches())
	}
	if err != nil {
		return Promoted{}, err
	}
	p, resumed, err := intend(h, o, before, now)
	if err != nil {
		return Promoted{}, err
	}
	w, err := h.BeginEpoch(ctx, o.Site, forkAt(h.Branches(), p, before), p.Order.EpochAtLeast)
	if err != nil {
		return Promoted{}, err
	}
	r := before
	if before.Promotion != p.ID {
		if next := reignOf(p, h.Branches(), w.Epoch(), now); o.Rewind {
			r = rewound(before, next)
		} else if r, err = before.Promote(next); err != nil {
			return Promoted{}, err
		}
		if err := RememberReign(h, r); err != nil {
			return Promoted{}, err
		}
	}
	if p.State != PromotionDone {
		p.State, p.Ended = PromotionDone, now
		if err := h.Remember(PromotionKey, p); err != nil {
			return Promoted{}, fmt.Errorf("remember promotion: %w", err)
		}
	}
	return Promoted{Writer: w, Reign: r, Promotion: p, Resumed: resumed}, nil
}

// intend makes the intent durable, or finds the one that was interrupted. A
// promotion by the same plan that is done and in effect is found too: what was
// interrupted then came after it, and its epoch may hold writes.
func intend(h History, o Order, r Reign, now time.Time) (Promotion, bool, error) {
	p, ok, err := Newest(h)
	if err != nil {
		return p, false, err
	}
	same := p.Order.Point == o.Point && p.Order.Site == o.Site && p.Order.Rewind == o.Rewind
	switch {
	case ok && p.State == PromotionBegun && !same:
		return p, false, fmt.Errorf("%w: to %s, by %q, at %s", ErrOtherPromotion, p.Order.Point, p.Order.Operator, p.Began.Format(time.RFC3339))
	case ok && p.State == PromotionBegun:
		return p, true, nil
	case ok && p.State == PromotionDone && same && o.Plan != "" && p.Order.Plan == o.Plan && r.Promotion == p.ID:
		return p, true, nil
	}
	p = Promotion{ID: cbt.NewID(), State: PromotionBegun, Order: o, Began: now}
	for _, b := range h.Branches() {
		p.Known = max(p.Known, b.Number)
	}
	if err := h.Remember(PromotionKey, p); err != nil {
		return p, false, fmt.Errorf("remember promotion: %w", err)
	}
	return p, false, nil
}

// forkAt is the parent of the epoch to begin. Once the role is this promotion's the
// site may have captured: it goes on from the head (zero). When the newest epoch is
// one that an interrupted run began, it holds no write, and going on from it keeps
// one line where peers may have heard of it already. Else it is the point.
func forkAt(branches []journal.Branch, p Promotion, r Reign) journal.Position {
	switch {
	case r.Promotion == p.ID:
		return journal.Position{}
	case len(branches) == 0:
		return p.Order.Point
	}
	newest := branches[len(branches)-1]
	own := newest.Site == p.Order.Site && newest.Number > p.Known && newest.Last.Seq >= newest.First()
	l, err := journal.LineageOf(branches, newest.ID)
	if i, ok := l.Owner(p.Order.Point.Seq); own && err == nil && ok && i.Epoch == p.Order.Point.Epoch && i.Last == p.Order.Point.Seq {
		return journal.Position{}
	}
	return p.Order.Point
}

func reignOf(p Promotion, branches []journal.Branch, e journal.Epoch, now time.Time) Reign {
	o := p.Order
	r := Reign{
		Role: Uncommitted, Epoch: e.Number, ID: e.ID, Since: now, Unfenced: !o.Fence.Off(), Fence: o.Fence, Forced: o.Forced,
		Operator: o.Operator, From: o.Point, At: o.At, Promotion: p.ID, Policy: o.Policy,
	}
	if !o.Handover.IsZero() {
		r.Role, r.Policy, r.Took, r.Handed = Primary, Policy{}, []cbt.ID{o.Handover}, o.Handover
	}
	for _, b := range branches {
		if b.Parent.Position == o.Point {
			r.Chain = b.Parent.Chain
		}
	}
	return r
}
