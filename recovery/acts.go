package recovery

import (
	"fmt"
	"slices"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
)

// The role of a site changes by acts, one at a time, and each is durable before
// anything is done because of it:
//
//	primary ──drain──▶ draining ──cede──▶ ceded ──given──▶ replica
//	   ▲  ▲               │                 │                │  ▲
//	   │  └───withdraw────┴────withdraw─────┘             promote│
//	   │                                                     ▼  │
//	   ├──commit──────────────────────────────────────── uncommitted
//	   │                                                     │
//	renew ⇄ renewed (primary, uncommitted)       rollback, yield ──▶ left ──follow──▶ replica
//
// A primary or uncommitted reign that stands down is a replica at once, of nobody yet.
//
// Only primary and uncommitted capture, and not while they drain or are renewed. A
// site that ceded does not capture again unless who was to take over has said, durably,
// that it never will. A branch that is left stays in the journal, readable.

// Policy is what becomes of an uncommitted reign that nobody decides on until then.
type Policy struct {
	Mode CommitMode `json:"mode"`
	At   time.Time  `json:"at,omitzero"`
}

// CommitMode is what happens when a policy's time has come.
type CommitMode string

// Modes; the zero value is CommitNone.
const (
	CommitNone     CommitMode = "none"     // nothing: a person decides
	CommitAuto     CommitMode = "commit"   // it is committed
	CommitRollback CommitMode = "rollback" // it is rolled back
)

// Due reports that p's time has come.
func (p Policy) Due(now time.Time) bool {
	return (p.Mode == CommitAuto || p.Mode == CommitRollback) && !now.Before(p.At)
}

// Handover is a planned change of primary, as who gives it keeps it.
type Handover struct {
	ID       cbt.ID         `json:"id"`
	To       string         `json:"to"` // peer
	Ceded    bool           `json:"ceded"`
	Head     journal.Cursor `json:"head,omitzero"` // once ceded: where both histories end
	Number   uint64         `json:"epoch_number,omitempty"`
	Operator string         `json:"operator,omitempty"`
	Since    time.Time      `json:"since"`
	// NoMachine: the peer starts none.
	NoMachine bool `json:"no_machine,omitempty"`
}

// Left says that the history here ends in a branch that was given up: it goes on at
// Common in another one, which has not arrived yet.
type Left struct {
	Common   journal.Cursor    `json:"common"`
	Number   uint64            `json:"epoch_number"` // of Common's epoch
	Head     journal.Position  `json:"head"`         // where the branch ends
	Epochs   []journal.EpochID `json:"epochs"`       // that began after Common
	Newest   uint64            `json:"newest"`       // highest epoch number here: what goes on has a higher one
	Keeper   string            `json:"keeper"`       // site whose history is kept
	Operator string            `json:"operator,omitempty"`
	Why      string            `json:"why,omitempty"`
	Since    time.Time         `json:"since"`
}

// Anew says that the trunk is to be forked anew at a record of it, because a follower
// cannot go on otherwise or because a person went back.
type Anew struct {
	At       journal.Position `json:"at"`
	From     journal.Position `json:"from"`  // where the trunk ended; zero: not known yet
	Carry    bool             `json:"carry"` // what differs at From is written again
	AtLeast  uint64           `json:"epoch_at_least,omitempty"`
	Operator string           `json:"operator,omitempty"`
	Why      string           `json:"why,omitempty"`
	Since    time.Time        `json:"since"`
}

// Act is one step of the automaton.
type Act string

// Acts.
const (
	ActPromote  Act = "promote"  // a replica begins a reign
	ActCommit   Act = "commit"   // it is the trunk
	ActRollback Act = "rollback" // it is left
	ActDrain    Act = "drain"    // a handover begins: nothing is written any more
	ActCede     Act = "cede"     // the peer holds all: the role is given up
	ActWithdraw Act = "withdraw" // the handover is off
	ActGiven    Act = "given"    // the peer reigns
	ActYield    Act = "yield"    // another site's history is kept
	ActFollow   Act = "follow"   // what goes on has arrived
	ActRenew    Act = "renew"    // the trunk is forked anew
	ActRenewed  Act = "renewed"  // it has been

	ActStandDown Act = "stand-down" // the role is given up, to nobody
)

// Stage is where a reign stands in the picture above.
type Stage string

// Stages. The first is that of a site log without a role.
const (
	stageNew         Stage = ""
	StagePrimary     Stage = "primary"
	StageUncommitted Stage = "uncommitted"
	StageReplica     Stage = "replica"
	StageDraining    Stage = "draining"
	StageCeded       Stage = "ceded"
	StageLeft        Stage = "left"
	StageRenewing    Stage = "renewing"
)

// Stage tells where r stands.
func (r Reign) Stage() Stage {
	switch {
	case r.Handover != nil && r.Handover.Ceded:
		return StageCeded
	case r.Handover != nil:
		return StageDraining
	case r.Anew != nil:
		return StageRenewing
	case r.Left != nil:
		return StageLeft
	}
	return Stage(r.Role)
}

// from are the stages in which an act is possible.
var from = map[Act][]Stage{
	ActPromote:  {stageNew, StageReplica, StageCeded, StageLeft, StageUncommitted}, // the last: to another point
	ActCommit:   {StageUncommitted},
	ActRollback: {StageUncommitted},
	ActDrain:    {StagePrimary},
	ActCede:     {StageDraining},
	ActWithdraw: {StageDraining, StageCeded},
	ActGiven:    {StageCeded},
	ActYield:    {StagePrimary, StageUncommitted, StageReplica, StageCeded, StageRenewing},
	ActFollow:   {StageLeft},
	ActRenew:    {StagePrimary, StageUncommitted},
	ActRenewed:  {StageRenewing},

	ActStandDown: {StagePrimary, StageUncommitted},
}

// Can is nil if act is possible now; else an error that wraps ErrNotNow.
func (r Reign) Can(a Act) error {
	if s := r.Stage(); !slices.Contains(from[a], s) {
		return fmt.Errorf("%s: %w: the group is %s here", a, ErrNotNow, s)
	}
	return nil
}

// Promote is r after a promotion that began an epoch. What was ceded or left before is
// over: whoever promotes such a site has been warned of it.
func (r Reign) Promote(next Reign) (Reign, error) {
	if err := r.Can(ActPromote); err != nil {
		return r, err
	}
	next.Handover, next.Left, next.Anew = nil, nil, nil
	next.Took = append(slices.Clone(r.Took), next.Took...)
	next.Took = next.Took[max(0, len(next.Took)-maxTook):]
	return next, nil
}

// maxTook bounds Reign.Took.
const maxTook = 64

// Commit makes an uncommitted reign the trunk.
func (r Reign) Commit(now time.Time) (Reign, error) {
	if err := r.Can(ActCommit); err != nil {
		return r, err
	}
	r.Role, r.Since, r.Policy = Primary, now, Policy{}
	return r, nil
}

// Rollback gives an uncommitted reign up: what it wrote is left as a branch.
func (r Reign) Rollback(l Left) (Reign, error) { return r.leave(ActRollback, l) }

// Yield gives up what a site wrote beyond the common record in favour of another site.
func (r Reign) Yield(l Left) (Reign, error) { return r.leave(ActYield, l) }

func (r Reign) leave(a Act, l Left) (Reign, error) {
	if err := r.Can(a); err != nil {
		return r, err
	}
	if l.Common.IsZero() || l.Keeper == "" && a == ActYield {
		return r, fmt.Errorf("%s: %w: no record in common, or nobody whose history is kept", a, ErrNotNow)
	}
	return Reign{Role: Replica, Since: l.Since, Operator: l.Operator, Left: &l, Took: r.Took}, nil
}

// Drain begins a handover.
func (r Reign) Drain(h Handover) (Reign, error) {
	if err := r.Can(ActDrain); err != nil {
		return r, err
	}
	h.Ceded, h.Head = false, journal.Cursor{}
	r.Handover = &h
	return r, nil
}

// Cede gives the role up to the peer that holds all up to head, durably.
func (r Reign) Cede(head journal.Cursor, number uint64, now time.Time) (Reign, error) {
	if err := r.Can(ActCede); err != nil {
		return r, err
	}
	if head.IsZero() {
		return r, fmt.Errorf("%s: %w: nothing was ever written", ActCede, ErrNotNow)
	}
	h := *r.Handover
	h.Ceded, h.Head, h.Number = true, head, number
	r.Role, r.Since, r.Handover = Replica, now, &h
	return r, nil
}

// Withdraw ends a handover that did not come about. One that was ceded may only be
// withdrawn once the peer has said, durably, that it will not take it.
func (r Reign) Withdraw(now time.Time) (Reign, error) {
	if err := r.Can(ActWithdraw); err != nil {
		return r, err
	}
	if r.Handover.Ceded {
		r.Role, r.Since = Primary, now
	}
	r.Handover = nil
	return r, nil
}

// Given ends a handover that the peer has taken.
func (r Reign) Given(now time.Time) (Reign, error) {
	if err := r.Can(ActGiven); err != nil {
		return r, err
	}
	return Reign{Role: Replica, Since: now, Operator: r.Operator, Took: r.Took}, nil
}

// StandDown gives the role up to nobody: whoever begins an epoch elsewhere is followed.
func (r Reign) StandDown(now time.Time, operator string) (Reign, error) {
	if err := r.Can(ActStandDown); err != nil {
		return r, err
	}
	return Reign{Role: Replica, Since: now, Stood: now, Operator: operator, Took: r.Took}, nil
}

// Follow is r once head's epoch is none that was left: what goes on has arrived.
func (r Reign) Follow(head journal.EpochID, now time.Time) (Reign, error) {
	if err := r.Can(ActFollow); err != nil {
		return r, err
	}
	if r.Left.Holds(head) {
		return r, fmt.Errorf("%s: %w: the history still ends in the branch", ActFollow, ErrNotNow)
	}
	r.Left = nil
	r.Since = now
	return r, nil
}

// Holds reports whether an epoch is one in which the branch that was left may end.
func (l Left) Holds(e journal.EpochID) bool {
	return e == l.Common.Epoch || slices.Contains(l.Epochs, e)
}

// Renew orders the trunk to be forked anew.
func (r Reign) Renew(a Anew) (Reign, error) {
	if err := r.Can(ActRenew); err != nil {
		return r, err
	}
	if a.At.IsZero() {
		return r, fmt.Errorf("%s: %w: nothing was ever written", ActRenew, ErrNotNow)
	}
	r.Anew = &a
	return r, nil
}

// RenewFrom notes where the trunk ended, once nobody writes any more; asked again it
// stays what it was.
func (r Reign) RenewFrom(head journal.Position) (Reign, error) {
	if err := r.Can(ActRenewed); err != nil {
		return r, err
	}
	if a := *r.Anew; a.From.IsZero() {
		a.From = head
		r.Anew = &a
	}
	return r, nil
}

// Renewed ends it: e is the epoch that goes on.
func (r Reign) Renewed(e journal.Epoch) (Reign, error) {
	if err := r.Can(ActRenewed); err != nil {
		return r, err
	}
	r.Epoch, r.ID, r.Anew = e.Number, e.ID, nil
	return r, nil
}

// CanFollow reports whether a site whose newest epoch has the number newest can go on
// from common, a record that both hold, along l: l leaves common's epoch right there,
// and into an epoch that is younger than all that the site knows.
func CanFollow(l journal.Lineage, common journal.Position, newest uint64) bool {
	if !l.Holds(common) {
		return false
	}
	for _, i := range l {
		if i.First > common.Seq {
			return i.First == common.Seq+1 && i.Number > newest
		}
	}
	return false
}
