package control

import (
	"context"
	"net/http"
)

// RewindRequest asks for a plan, or for its execution.
type RewindRequest struct {
	Group string `json:"group"`
	At    string `json:"at"`
	Force bool   `json:"force,omitempty"` // goes on although a check refuses; recorded
	// NoMachine leaves a machine that was stopped for it off.
	NoMachine bool `json:"no_machine,omitempty"`
	// Expect is RewindPlan.Digest of the plan that was confirmed; execution refuses
	// another one. Empty: whatever the plan is now.
	Expect   string `json:"expect,omitempty"`
	Operator string `json:"operator,omitempty"`
}

// RewindPlan is what a rewind would do and give up. The guest writes on until it is
// stopped: what was given up in the end is in Rewound.
type RewindPlan struct {
	Group    string         `json:"group"`
	At       string         `json:"at"`
	Point    Point          `json:"point"`
	Head     Point          `json:"head"`
	Epoch    uint64         `json:"new_epoch"`
	Seconds  float64        `json:"given_up_seconds"`
	Writes   uint64         `json:"given_up_writes"`
	Bytes    int64          `json:"given_up_bytes"`
	Volumes  []RewindVolume `json:"volumes"`
	Machine  string         `json:"machine,omitempty"` // runs, and is turned off
	StaysOff bool           `json:"stays_off,omitempty"`
	Undo     string         `json:"undo,omitempty"` // --at that leads back
	Steps    []string       `json:"steps"`
	Warnings []string       `json:"warnings,omitempty"`
	Refused  []string       `json:"refused,omitempty"` // --force overrides
	Digest   string         `json:"digest"`
}

// RewindVolume is one disk's part.
type RewindVolume struct {
	Volume string `json:"volume"`
	Differ int64  `json:"differ_bytes"` // may differ between now and the point
	Writes uint64 `json:"given_up_writes"`
	Bytes  int64  `json:"given_up_bytes"`
}

// Rewound tells what a rewind did.
type Rewound struct {
	RewindPlan
	SecondsTaken float64            `json:"seconds"`
	Times        map[string]float64 `json:"step_seconds"`
	Pin          string             `json:"pin,omitempty"` // keeps what leads back
	Started      bool               `json:"machine_started"`
}

// PlanRewind implements API.
func (c *Client) PlanRewind(ctx context.Context, q RewindRequest) (p RewindPlan, err error) {
	return p, c.call(ctx, http.MethodPost, "/v1/rewind/plan", q, &p)
}

// Rewind implements API.
func (c *Client) Rewind(ctx context.Context, q RewindRequest, progress func(Progress)) (r Rewound, err error) {
	return r, c.follow(ctx, "/v1/rewind", q, each(progress), &r)
}
