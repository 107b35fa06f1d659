package control

import "time"

// Retention is how a group's history is kept at this site.
type Retention struct {
	History []Rung  `json:"history"`
	Lock    float64 `json:"lock_seconds,omitempty"`
	Quota   int64   `json:"quota_bytes,omitempty"`
	Warn    []int   `json:"warn_percent,omitempty"`
	Every   float64 `json:"maintenance_every_seconds"`
	Rate    int64   `json:"maintenance_bytes_per_second"`
}

// Rung is a step of the ladder, in the configuration's words.
type Rung struct {
	Every string `json:"every"` // write, or a span
	For   string `json:"for"`   // ever, or a span
}

// Usage is what a group's journal takes on disk.
type Usage struct {
	Used         int64  `json:"used_bytes"` // segments and runs
	Quota        int64  `json:"quota_bytes,omitempty"`
	Segments     int    `json:"segments"`
	Runs         int    `json:"runs"`
	SegmentBytes int64  `json:"segment_bytes"`
	RunBytes     int64  `json:"run_bytes"`
	Oldest       *Point `json:"oldest,omitempty"` // the oldest point
	// FramesFrom is the first record that can still be sent to a peer; 0: the first.
	FramesFrom uint64 `json:"frames_from,omitempty"`
}

// MaintainRequest asks for maintenance now.
type MaintainRequest struct {
	Group  string `json:"group"`
	DryRun bool   `json:"dry_run,omitempty"` // say what would be done
	// TrustClock confirms a wall clock that has leapt ahead.
	TrustClock bool `json:"trust_clock,omitempty"`
	// TrustSiteLog confirms pins and peers after entries of the site log were lost.
	TrustSiteLog bool `json:"trust_site_log,omitempty"`
}

// Maintained is what a maintenance did, or would do.
type Maintained struct {
	Group   string    `json:"group"`
	DryRun  bool      `json:"dry_run,omitempty"`
	Time    time.Time `json:"time"`
	Seconds float64   `json:"seconds"`
	Folded  int64     `json:"folded_bytes"`  // of segments, rewritten into runs
	Merged  int64     `json:"merged_bytes"`  // of runs, rewritten into larger ones
	Written int64     `json:"written_bytes"` // of the runs made of both
	Freed   int64     `json:"freed_bytes"`
	Usage
	Warning string `json:"warning,omitempty"`
	// ClockLeap is how many seconds the clock is ahead of the time that has passed:
	// nothing was thinned. 0: it is not.
	ClockLeap float64 `json:"clock_leap_seconds,omitempty"`
	// Kept and Gone are of a dry run: the points that stay, and those that do not.
	Kept []Stretch `json:"kept,omitempty"`
	Gone []Stretch `json:"gone,omitempty"`
}

// Maintenance is how a group's maintenance stands.
type Maintenance struct {
	Running bool        `json:"running,omitempty"`
	Last    *Maintained `json:"last,omitempty"` // newest that came to its end
	Next    time.Time   `json:"next,omitzero"`
	Error   any         `json:"error,omitempty"` // *fault.Error of the newest, if it failed
	Totals  Totals      `json:"totals"`
}

// Totals are counted since the daemon started.
type Totals struct {
	Runs     uint64 `json:"runs"` // maintenances
	Failures uint64 `json:"failures"`
	Folded   int64  `json:"folded_bytes"`
	Merged   int64  `json:"merged_bytes"`
	Written  int64  `json:"written_bytes"`
	Freed    int64  `json:"freed_bytes"`
}

// Hold is what is kept here for a peer that is behind.
type Hold struct {
	Peer   string    `json:"peer"`
	State  string    `json:"state"`            // see the Hold words
	Cursor string    `json:"cursor,omitempty"` // #EPOCH.SEQ that is durable there
	Level  time.Time `json:"level,omitzero"`   // until when it has everything
	Until  time.Time `json:"until,omitzero"`   // when the hold ends if it stays away
	Behind int64     `json:"behind_bytes"`
	For    float64   `json:"for_seconds"`
	Bytes  int64     `json:"bytes,omitempty"` // 0: no bound of its own
	Why    string    `json:"why,omitempty"`
}

// Words for Hold.State.
const (
	HoldLevel  = "level"   // it lacks nothing
	HoldKept   = "held"    // what it lacks is kept for it
	HoldBeyond = "beyond"  // kept for it no longer; it may still be there
	HoldLost   = "cut off" // the peer lacks moments that were thinned here

	HoldCatching = "catching up" // a delta is on its way to it
)

// Notice is something about a group that somebody should know.
type Notice struct {
	Level string `json:"level"` // warning, alarm
	Code  string `json:"code,omitempty"`
	Text  string `json:"text"`
	Hint  string `json:"hint,omitempty"`
}

// Words for Notice.Level.
const (
	Warning = "warning" // nothing is lost yet
	Alarm   = "alarm"
)

// Stretch is points that are kept for the same reasons: all records of a range, or
// one point (First and Last are the same).
type Stretch struct {
	First   Point    `json:"first"`
	Last    Point    `json:"last"`
	Points  uint64   `json:"points"`
	Open    bool     `json:"open,omitempty"`    // it grows with each write
	Ended   string   `json:"ended,omitempty"`   // cause of the gap after it
	Reasons []string `json:"reasons"`           // every write, every 1m, pin NAME, view, lock, cursor PEER, …
	Volumes []string `json:"volumes,omitempty"` // names; of those that it covers
	Invalid string   `json:"invalid,omitempty"` // why it cannot be restored
}

// PinRequest keeps a point from being thinned at this site.
type PinRequest struct {
	Group string `json:"group"`
	Name  string `json:"name"`
	At    string `json:"at"`
	// Diff keeps only the ability to list what changed since the point.
	Diff bool   `json:"diff,omitempty"`
	Note string `json:"note,omitempty"`
}

// Pin is a point that is kept by name at this site.
type Pin struct {
	Name  string    `json:"name"`
	Point Point     `json:"point"`
	Diff  bool      `json:"diff,omitempty"`
	Note  string    `json:"note,omitempty"`
	Since time.Time `json:"since,omitzero"`
}

// UnpinRequest lets a pin go.
type UnpinRequest struct {
	Group string `json:"group"`
	Name  string `json:"name"`
}
