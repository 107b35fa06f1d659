package recovery

import (
	"fmt"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
)

// Role is what a site is to a group.
type Role string

// Roles. Uncommitted is a primary after a failover that nobody committed yet.
const (
	Primary     Role = "primary"
	Replica     Role = "replica"
	Uncommitted Role = "uncommitted"
)

// Captures reports whether the role adds to the history.
func (r Role) Captures() bool { return r == Primary || r == Uncommitted }

// Reign is a role as it is kept, durably, in a journal's site log.
type Reign struct {
	Role  Role            `json:"role"`
	Epoch uint64          `json:"epoch"` // number that the role began with; 0 for the first start
	ID    journal.EpochID `json:"epoch_id"`
	Since time.Time       `json:"since"`

	// What follows is set by a promotion. Unfenced: nobody proved that the old
	// primary is off. Forced: checks spoke against it. From and Chain: the fork.
	Unfenced  bool             `json:"unfenced,omitempty"`
	Fence     Fence            `json:"fence,omitempty"`
	Forced    bool             `json:"forced,omitempty"`
	Operator  string           `json:"operator,omitempty"`
	From      journal.Position `json:"from,omitzero"`
	Chain     journal.Chain    `json:"chain,omitzero"` // of the frame that holds From
	At        string           `json:"at,omitempty"`
	Promotion cbt.ID           `json:"promotion,omitzero"`

	// Own says that the disks which the configuration names hold what the history says,
	// though the reign began with a promotion: somebody moved it there.
	Own bool `json:"own,omitempty"`

	// Stood is when the site gave the role up to nobody; a promotion ends that.
	Stood time.Time `json:"stood,omitzero"`

	// Handed is the handover that the reign began with.
	Handed cbt.ID `json:"handed,omitzero"`

	// Took are the handovers that this site ever took, the newest last: it must not say
	// of one that it never will.
	Took []cbt.ID `json:"took,omitempty"`

	// What follows is of decisions that are under way (acts.go).
	Policy   Policy    `json:"policy,omitzero"` // of an uncommitted reign
	Handover *Handover `json:"handover,omitempty"`
	Left     *Left     `json:"left,omitempty"`
	Anew     *Anew     `json:"anew,omitempty"`
}

// Keys of the site log.
const (
	RoleKey      = "role"
	PromotionKey = "promotion"
)

// RecallReign reads the role, and reports whether one was ever remembered.
func RecallReign(m cbt.Memory) (Reign, bool, error) {
	var r Reign
	ok, err := m.Recall(RoleKey, &r)
	if err != nil {
		return r, false, fmt.Errorf("recall role: %w", err)
	}
	return r, ok, nil
}

// RememberReign makes a role durable.
func RememberReign(m cbt.Memory, r Reign) error {
	if err := m.Remember(RoleKey, r); err != nil {
		return fmt.Errorf("remember role: %w", err)
	}
	return nil
}
