package site

import (
	"fmt"
	"time"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/site/config"
)

// role is what this site is to a group, kept in the journal's site log: the
// configuration names it for the first start only.
type role string

const (
	primary     role = role(config.Primary)
	replica     role = role(config.Replica)
	uncommitted role = "uncommitted" // primary after a failover that nobody committed yet
)

// captures reports whether the role adds to the history.
func (r role) captures() bool { return r != replica }

// reignRecord is the durable form.
type reignRecord struct {
	Role  role            `json:"role"`
	Epoch uint64          `json:"epoch"` // that the role began with; 0 for the first start
	ID    journal.EpochID `json:"epoch_id"`
	Since time.Time       `json:"since"`
	// Unfenced says that a failover went on without proof that the old primary
	// is off; Operator who asked for it.
	Unfenced bool   `json:"unfenced,omitempty"`
	Operator string `json:"operator,omitempty"`
	// From is the point at which a failover forked, At how it was asked for.
	From journal.Position `json:"from,omitzero"`
	At   string           `json:"at,omitempty"`
}

const roleKey = "role"

// remembering is the part of a journal that keeps small values.
type remembering interface {
	Remember(key string, v any) error
	Recall(key string, v any) (bool, error)
}

// recallRole reads the role, and at the first start makes the configured one durable.
func recallRole(j remembering, first config.Role, now time.Time) (reignRecord, error) {
	r, ok, err := roleIn(j)
	if err != nil || ok {
		return r, err
	}
	r = reignRecord{Role: role(first), Since: now}
	return r, rememberRole(j, r)
}

func roleIn(j remembering) (reignRecord, bool, error) {
	var r reignRecord
	ok, err := j.Recall(roleKey, &r)
	if err != nil {
		return r, false, fmt.Errorf("recall role: %w", err)
	}
	return r, ok, nil
}

func rememberRole(j remembering, r reignRecord) error {
	if err := j.Remember(roleKey, r); err != nil {
		return fmt.Errorf("remember role: %w", err)
	}
	return nil
}
