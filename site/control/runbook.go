package control

import "time"

// DrillRequest asks for a failover's rehearsal: the group's machine is started from a
// point over scratch disks, where it reaches nobody, and taken away again.
type DrillRequest struct {
	Group    string `json:"group"`
	At       string `json:"at"`
	Operator string `json:"operator,omitempty"`
}

// Drilled is how a drill went. Nothing of it is left but its report, unless Left says so.
type Drilled struct {
	Group      string             `json:"group"`
	At         string             `json:"at"`
	Point      Point              `json:"point"`
	Machine    string             `json:"machine"`
	RTOSeconds float64            `json:"rto_seconds"` // to the machine running, and healthy where that is checked
	Times      map[string]float64 `json:"step_seconds"`
	Health     string             `json:"health,omitempty"` // the line that the console said
	Left       []string           `json:"left,omitempty"`
	Report     string             `json:"report,omitempty"`
}

// RunbookRequest is a runbook's file and what it is to be used for.
type RunbookRequest struct {
	File string `json:"file"` // what problems name
	Text []byte `json:"text"`
	Mode string `json:"mode"`
	At   string `json:"at,omitempty"`
	// Points is RunbookPlan.Points of what was confirmed: At is not looked up again.
	Points   map[string]string `json:"points,omitempty"`
	Force    bool              `json:"force,omitempty"`  // goes on although a check refuses; recorded
	Expect   string            `json:"expect,omitempty"` // RunbookPlan.Digest of what was confirmed
	Operator string            `json:"operator,omitempty"`
}

// RunbookPlan is what a run would do.
type RunbookPlan struct {
	Runbook string `json:"runbook"`
	Mode    string `json:"mode"`
	At      string `json:"at"`
	// Points is what At comes to, #EPOCH.SEQ by group, where it is not latest or latest-app.
	Points   map[string]string `json:"points,omitempty"`
	Digest   string            `json:"digest"`
	Groups   []string          `json:"groups"`
	Steps    []RunbookStep     `json:"steps"`
	Expected *float64          `json:"expected_seconds,omitempty"` // by earlier runs; absent: none was measured
	Unknown  int               `json:"unmeasured_steps"`
	Failover []Plan            `json:"failovers,omitempty"` // what each group loses, of an unplanned one
	// Handover is what each group goes through, of a planned one and of a failback.
	Handover []HandoverPlan `json:"handovers,omitempty"`
	Warnings []string       `json:"warnings,omitempty"`
	Refused  []string       `json:"refused,omitempty"` // --force overrides
	Text     string         `json:"text"`              // the plan for a person
}

// RunbookStep is a step and where it stands.
type RunbookStep struct {
	Step     int      `json:"step"` // from 1
	Boot     string   `json:"boot,omitempty"`
	Name     string   `json:"name"`
	Kind     string   `json:"kind"`
	Machine  string   `json:"machine,omitempty"`
	After    []int    `json:"after,omitempty"`
	Expected *float64 `json:"expected_seconds,omitempty"`

	State    string    `json:"state,omitempty"`
	Attempts int       `json:"attempts,omitempty"`
	Began    time.Time `json:"began,omitzero"`
	Ended    time.Time `json:"ended,omitzero"`
	Seconds  *float64  `json:"seconds,omitempty"`
	Detail   string    `json:"detail,omitempty"`
	Output   string    `json:"output,omitempty"`
}

// RunRequest is about a run that was begun.
type RunRequest struct {
	Run      string `json:"run"`
	Step     int    `json:"step,omitempty"`   // that Answer is to
	Answer   string `json:"answer,omitempty"` // yes, no, done, again, skip
	Reason   string `json:"reason,omitempty"` // of an abort
	Operator string `json:"operator,omitempty"`
}

// RunbookRun is one carrying-out of a runbook.
type RunbookRun struct {
	Run      string        `json:"run"`
	Runbook  string        `json:"runbook"`
	Mode     string        `json:"mode"`
	At       string        `json:"at"`
	Digest   string        `json:"digest"`
	Operator string        `json:"operator,omitempty"`
	State    string        `json:"state"` // running, halted, asking, unfinished, aborting, done, partly, aborted
	Why      string        `json:"why,omitempty"`
	Begun    time.Time     `json:"begun"`
	Ended    time.Time     `json:"ended,omitzero"`
	RTO      *float64      `json:"rto_seconds,omitempty"` // of a finished one
	Report   string        `json:"report,omitempty"`      // of one that has just ended
	Steps    []RunbookStep `json:"steps"`
}
