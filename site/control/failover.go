package control

import (
	"time"

	"github.com/novacron/afterimage/recovery/fence"
)

// FailoverRequest asks for a plan, or for its execution.
type FailoverRequest struct {
	Group     string `json:"group"`
	At        string `json:"at"`
	Force     bool   `json:"force,omitempty"`      // goes on although a check refuses; recorded
	NoMachine bool   `json:"no_machine,omitempty"` // promote the history only
	// Expect is Plan.Digest of the plan that was confirmed; execution refuses
	// another one. Empty: whatever the plan is now.
	Expect string `json:"expect,omitempty"`
	// Statement is what the old site signed about its machine being off, if somebody
	// brought it.
	Statement string `json:"statement,omitempty"`
	// Tail is the peer whose tail a person chose; WithoutTail leaves what peers hold
	// beyond this site where it is; TailSeconds bounds its fetch, 0: a default.
	Tail        string  `json:"tail,omitempty"`
	WithoutTail bool    `json:"without_tail,omitempty"`
	TailSeconds float64 `json:"tail_seconds,omitempty"`
	// Operator says who asked, for the record.
	Operator string `json:"operator,omitempty"`
	// Policy is what becomes of it when nobody commits or rolls back: none (default),
	// commit or rollback after PolicySeconds.
	Policy        string  `json:"commit_policy,omitempty"`
	PolicySeconds float64 `json:"commit_after_seconds,omitempty"`
}

// Plan is what a failover would do.
type Plan struct {
	Group    string     `json:"group"`
	At       string     `json:"at"`
	Point    Point      `json:"point"`
	Epoch    uint64     `json:"new_epoch"`
	Loss     Loss       `json:"loss"`
	Peers    []PlanPeer `json:"peers"`
	Tail     *PlanTail  `json:"tail,omitempty"` // that is fetched first
	Machine  string     `json:"machine,omitempty"`
	Fence    string     `json:"fence"`             // unknown, proven
	Fencing  []string   `json:"fencing,omitempty"` // channels by which the first step is to prove it
	Steps    []string   `json:"steps"`
	Warnings []string   `json:"warnings,omitempty"`
	// Refused says which check speaks against it; --force overrides.
	Refused []string `json:"refused,omitempty"`
	Digest  string   `json:"digest"`
	// Expected is how long it takes by the newest drills and failovers here; absent:
	// none was measured.
	Expected *float64 `json:"expected_seconds,omitempty"`
	// Timing is that step by step, and what it was before; absent: none was measured.
	Timing *Timing `json:"timing,omitempty"`
	// Resumes: the group was promoted here before and its machine does not run; only
	// that is started. Epoch is the one that reigns, the loss what was told then.
	Resumes bool `json:"resumes,omitempty"`
}

// Timing is how long the newest drills and failovers of a group took that held.
type Timing struct {
	Runs    int          `json:"runs"`
	Seconds float64      `json:"seconds"` // the median
	Newest  float64      `json:"newest_seconds"`
	Time    time.Time    `json:"newest_time"`
	Before  *float64     `json:"before_seconds,omitempty"` // the median of those before these
	Steps   []TimingStep `json:"steps,omitempty"`
}

// TimingStep is one step's part.
type TimingStep struct {
	Step    string   `json:"step"`
	Seconds float64  `json:"seconds"`
	Before  *float64 `json:"before_seconds,omitempty"`
}

// Loss is what the new primary will not have, against the newest head of the
// source that is known here. The true loss may be larger by what the source
// wrote after its last heartbeat: Unheard seconds ago.
type Loss struct {
	Known        bool         `json:"known"` // false: no head of the source was ever heard
	Seconds      float64      `json:"seconds"`
	Writes       uint64       `json:"writes"`
	Bytes        int64        `json:"bytes"`
	Unheard      float64      `json:"unheard_seconds"`
	Volumes      []VolumeLoss `json:"volumes,omitempty"` // of what is held here and given up
	NeverArrived NeverArrived `json:"never_arrived"`
}

// NeverArrived is what the source had beyond this site when it was last heard.
type NeverArrived struct {
	Seconds float64 `json:"seconds"`
	Records uint64  `json:"records"`
	Bytes   int64   `json:"bytes"`
}

// VolumeLoss is one volume's part of the records held here after the point.
type VolumeLoss struct {
	Volume string `json:"volume"`
	Writes uint64 `json:"writes"`
	Bytes  int64  `json:"bytes"`
}

// PlanPeer is what another site holds of the group.
type PlanPeer struct {
	Name      string    `json:"name"`
	Reachable bool      `json:"reachable"`
	Primary   bool      `json:"primary,omitempty"` // it captures
	Epoch     uint64    `json:"epoch,omitempty"`
	Seq       uint64    `json:"seq,omitempty"`
	Time      time.Time `json:"time,omitzero"`
	// Relation is how its history stands to this site's, if it answered: same, peer
	// behind, peer ahead, diverged, unrelated.
	Relation string `json:"relation,omitempty"`
}

// PlanTail is what a peer holds beyond this site, and is fetched first.
type PlanTail struct {
	Peer    string    `json:"peer"`
	Epoch   uint64    `json:"epoch"`
	Seq     uint64    `json:"seq"`
	Records uint64    `json:"records"`
	Bytes   int64     `json:"bytes"`
	Time    time.Time `json:"time,omitzero"`
}

// MachineStarted is one of several machines that run.
type MachineStarted struct {
	Name    string `json:"name"`
	PID     int    `json:"pid"`
	QMP     string `json:"qmp,omitempty"`
	Serial  string `json:"serial,omitempty"`
	Adopted bool   `json:"ran_already,omitempty"`
}

// FailedOver tells what a failover did.
type FailedOver struct {
	Plan
	Unfenced   bool               `json:"unfenced"` // nobody proved that the old primary is off
	Proof      *fence.Proof       `json:"fence_proof,omitempty"`
	RTOSeconds float64            `json:"rto_seconds"`
	Times      map[string]float64 `json:"step_seconds"`
	Exports    []Export           `json:"exports"`
	Started    bool               `json:"machine_started"`
	QMP        string             `json:"qmp,omitempty"`
	Serial     string             `json:"serial,omitempty"`
	PID        int                `json:"pid,omitempty"`
	// Machines are all that run, where a failover starts several.
	Machines []MachineStarted `json:"machines,omitempty"`
	Report   string           `json:"report,omitempty"` // file with the evidence
}
