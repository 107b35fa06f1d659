package control

import (
	"context"
	"time"
)

// API is what a site can be asked and told. Groups are named NAME or
// TENANT/NAME. Errors are, or wrap, *fault.Error.
type API interface {
	Moments
	Moves
	// Status is everything on one screen.
	Status(ctx context.Context) (Status, error)
	// Group is one group with its volumes, intervals and branches.
	Group(ctx context.Context, name string) (GroupDetail, error)
	// Points lists what can be restored; with At it resolves that moment.
	Points(ctx context.Context, q PointsQuery) (Points, error)
	// Pin keeps a point from being thinned at this site, Unpin lets it go.
	Pin(ctx context.Context, q PinRequest) (Pin, error)
	Unpin(ctx context.Context, q UnpinRequest) (Pin, error)
	// Maintain folds, merges, thins and frees now, or says what it would.
	Maintain(ctx context.Context, q MaintainRequest, progress func(Progress)) (Maintained, error)
	// ExportSeed writes a group's first copy for a new peer, ImportSeed takes it in.
	ExportSeed(ctx context.Context, q SeedExport, progress func(Progress)) (Seed, error)
	ImportSeed(ctx context.Context, q SeedImport, progress func(Progress)) (Seed, error)
	// Key tells how a group's history is sealed; RotateKey wraps its data keys with
	// the newest key, ShredKey destroys the keys that it is sealed with.
	Key(ctx context.Context, q KeyRequest) (KeyState, error)
	RotateKey(ctx context.Context, q KeyRequest) (KeyState, error)
	ShredKey(ctx context.Context, q KeyRequest) (KeyState, error)
	// Verify scrubs a group's journal, and repairs it from peers if asked.
	Verify(ctx context.Context, q VerifyRequest, progress func(Progress)) (Verified, error)
	// Mark labels the newest point of a group that is primary here.
	Mark(ctx context.Context, q MarkRequest) (Point, error)
	// Pause lets go of a group's machine for a while, Resume takes it again early.
	Pause(ctx context.Context, q PauseRequest) (Paused, error)
	Resume(ctx context.Context, q ResumeRequest) (Paused, error)
	// Limit changes what is sent to a peer, or of a group, for a while or for good.
	Limit(ctx context.Context, q LimitRequest) (Limited, error)
	Invite(ctx context.Context, q InviteRequest) (Invited, error)
	Join(ctx context.Context, q JoinRequest) (Joined, error)
	RemovePeer(ctx context.Context, q RemovePeerRequest) (Joined, error)
	// Rotate begins to change this site's key, or says how far that has come.
	Rotate(ctx context.Context, q RotateRequest) (Rotation, error)
	// Serve opens a view as NBD exports and calls opened with it; then, with
	// Lease, it blocks until ctx ends and closes the view.
	Serve(ctx context.Context, q ServeRequest, opened func(View)) error
	// Views lists the open views, CloseView closes one.
	Views(ctx context.Context) ([]View, error)
	CloseView(ctx context.Context, id string) error
	// Restore writes volumes of a point to files, and reports as it goes.
	Restore(ctx context.Context, q RestoreRequest, progress func(Progress)) (Restored, error)
	// PlanFailover says what a failover to this site would do and lose.
	PlanFailover(ctx context.Context, q FailoverRequest) (Plan, error)
	// TestFailover rehearses it: the machine is started isolated, over scratch disks,
	// and taken away again.
	TestFailover(ctx context.Context, q DrillRequest, progress func(Progress)) (Drilled, error)
	// Reports lists the site's evidence, ExportReport gives one file that proves a report.
	Reports(ctx context.Context) ([]Report, error)
	ExportReport(ctx context.Context, q ReportRequest) (ReportFile, error)
	// LedgerHead signs where the ledger of reports ends, VouchLedger keeps and signs
	// that of a peer, KeepAnchor takes a peer's word for this site's.
	LedgerHead(ctx context.Context) (Token, error)
	VouchLedger(ctx context.Context, q TokenRequest) (Token, error)
	KeepAnchor(ctx context.Context, q TokenRequest) (Token, error)
	// CheckRunbook judges a file, PlanRunbook says what a run of it would do and lose.
	CheckRunbook(ctx context.Context, q RunbookRequest) (RunbookPlan, error)
	PlanRunbook(ctx context.Context, q RunbookRequest) (RunbookPlan, error)
	// RunRunbook begins a run; it and the next two go on until the run is over, a step
	// fails or a person is asked.
	RunRunbook(ctx context.Context, q RunbookRequest, progress func(Progress)) (RunbookRun, error)
	ResumeRun(ctx context.Context, q RunRequest, progress func(Progress)) (RunbookRun, error)
	AbortRun(ctx context.Context, q RunRequest, progress func(Progress)) (RunbookRun, error)
	// Runs lists runs, oldest first; RunDetail is one.
	Runs(ctx context.Context) ([]RunbookRun, error)
	RunDetail(ctx context.Context, id string) (RunbookRun, error)
	// Failover does it, if the plan is still the one shown.
	Failover(ctx context.Context, q FailoverRequest, progress func(Progress)) (FailedOver, error)
	// PlanHandover says what a planned change of primary would do, Handover does it.
	PlanHandover(ctx context.Context, q HandoverRequest) (HandoverPlan, error)
	Handover(ctx context.Context, q HandoverRequest, progress func(Progress)) (HandedOver, error)
	// PlanDecision says what a commit, rollback, reprotect or resolve means, Decide does it.
	PlanDecision(ctx context.Context, q DecisionRequest) (Decision, error)
	Decide(ctx context.Context, q DecisionRequest, progress func(Progress)) (Decision, error)
}

// Status of a site.
type Status struct {
	Site    string    `json:"site"`
	Daemon  string    `json:"daemon"` // "running" or "not running"
	Pin     string    `json:"pin,omitempty"`
	PID     int       `json:"pid,omitempty"`
	Since   time.Time `json:"since,omitzero"`
	Listen  string    `json:"listen,omitempty"` // bound UDP address
	NBD     string    `json:"nbd,omitempty"`
	Metrics string    `json:"metrics,omitempty"`
	Time    time.Time `json:"time"`              // of this status
	Notices []Notice  `json:"notices,omitempty"` // of the site as a whole
	Groups  []Group   `json:"groups"`
	Peers   []Peer    `json:"peers"`
}

// Words for Status.Daemon.
const (
	Running    = "running"
	NotRunning = "not running"
)

// Group is one line of status.
type Group struct {
	Tenant  string    `json:"tenant"`
	Name    string    `json:"name"`
	Role    string    `json:"role"`  // primary, replica, uncommitted
	State   string    `json:"state"` // see the State words
	Since   time.Time `json:"since,omitzero"`
	Detail  string    `json:"detail,omitempty"` // why the state is what it is
	Halt    string    `json:"halt,omitempty"`   // of a halted group: see the Halt words
	Epoch   uint64    `json:"epoch"`
	EpochID string    `json:"epoch_id,omitempty"`
	Seq     uint64    `json:"seq"`             // newest record
	Durable uint64    `json:"durable"`         // newest record that survives power loss
	Chain   string    `json:"chain,omitempty"` // hash of the history up to Durable: two sites that hold the same say the same
	// RPOSeconds is the worst over the group's peers at its primary, and towards
	// its source at a replica; absent while unknown.
	RPOSeconds    *float64  `json:"rpo_seconds,omitempty"`
	RPOTarget     float64   `json:"rpo_target_seconds,omitempty"`
	BehindWrites  uint64    `json:"behind_writes"`
	BehindBytes   int64     `json:"behind_bytes"`
	WindowSeconds float64   `json:"window_seconds"` // from the first point to the last
	LastPoint     time.Time `json:"last_point,omitzero"`
	OldestPoint   time.Time `json:"oldest_point,omitzero"`
	JournalBytes  int64     `json:"journal_bytes"` // on disk
	Quota         int64     `json:"quota_bytes,omitempty"`
	Error         any       `json:"error,omitempty"` // *fault.Error of a failed group
	Lags          []Lag     `json:"lags,omitempty"`
	Notices       []Notice  `json:"notices,omitempty"`
	Paused        *Paused   `json:"paused,omitempty"`
	NextDrill     time.Time `json:"next_drill,omitzero"` // by schedule
	Machines      []Guest   `json:"machines,omitempty"`  // that are captured, where they are several
}

// Words for Group.State.
const (
	StateSynced    = "synced"    // primary: every write is a point
	StateCycles    = "bitmap"    // primary: each closed bitmap cycle is a point
	StateSyncing   = "syncing"   // primary: not every block is known yet
	StateGap       = "gap"       // primary: no points are being made
	StatePaused    = "paused"    // primary: somebody asked for its machine to be left alone
	StateReceiving = "receiving" // replica: frames flow
	StateWaiting   = "waiting"   // replica: no session with the primary
	StateHalted    = "halted"    // histories exclude each other; a person must decide
	StateFailed    = "failed"    // could not be opened or stopped; tried again
	StateStarting  = "starting"
	StateStopped   = "stopped" // no daemon
)

// Words for Group.Halt.
const (
	HaltSplitBrain  = "split-brain"  // both sides hold records that the other does not
	HaltHistoryLost = "history-lost" // this site or the peer lacks what was durable there
)

// Words for GroupDetail.MachineState.
const (
	MachineRuns    = "running"
	MachinePartly  = "running in part" // of several
	MachineOff     = "not running"
	MachineUnknown = "unknown"
)

// Lag is how far a peer is behind, or this site behind its source.
type Lag struct {
	Peer         string   `json:"peer"`
	Direction    string   `json:"direction"` // out, in
	State        string   `json:"state"`
	RPOSeconds   *float64 `json:"rpo_seconds,omitempty"` // absent while unknown
	BehindWrites uint64   `json:"behind_writes"`
	BehindBytes  int64    `json:"behind_bytes"`
	Durable      uint64   `json:"durable"`       // seq at the replica
	Moved        uint64   `json:"bytes_moved"`   // over the wire
	MovedFor     uint64   `json:"journal_bytes"` // what they stood for, as it lies in the journals
	Error        string   `json:"error,omitempty"`

	Recent *Measured `json:"recent_rpo,omitempty"` // of group show
}

// Measured is an RPO as it was measured over some time, in seconds. Samples in which it
// was unknown are in none of the figures but Unknown.
type Measured struct {
	Since   time.Time `json:"since"`
	Samples int       `json:"samples"`
	Unknown int       `json:"unknown"`
	P50     float64   `json:"p50_seconds"`
	P99     float64   `json:"p99_seconds"`
	Max     float64   `json:"max_seconds"`
}

// Peer is another site as this one sees it.
type Peer struct {
	Name       string   `json:"name"`
	Address    string   `json:"address,omitempty"`
	Pin        string   `json:"pin,omitempty"`
	State      string   `json:"state"`                            // connected, disconnected, unpaired, unknown
	Limit      int64    `json:"limit_bytes_per_second,omitempty"` // in force now
	Limited    Limited  `json:"limited"`
	Groups     int      `json:"groups"`
	Error      string   `json:"error,omitempty"`
	RPOSeconds *float64 `json:"rpo_seconds,omitempty"`

	Transport    string  `json:"transport,omitempty"`     // of the session: quic, tls
	TransportWhy string  `json:"transport_why,omitempty"` // it is not the preferred one
	Connections  int     `json:"connections,omitempty"`
	RTTSeconds   float64 `json:"rtt_seconds,omitempty"`
}

// GroupDetail is all about a group.
type GroupDetail struct {
	Group
	ID         string     `json:"id"`
	Dir        string     `json:"dir"`
	Sync       string     `json:"sync"`
	Stall      float64    `json:"stall_budget_seconds"`
	Configured string     `json:"configured_role"`
	Volumes    []Volume   `json:"volumes"`
	Lineage    []Interval `json:"lineage"`
	Branches   []Branch   `json:"branches"`
	Conflict   string     `json:"conflict,omitempty"`
	// Others is what other programs cannot do to the group's domain while it is captured.
	Others string `json:"others,omitempty"`

	Retention   Retention   `json:"retention"`
	Usage       Usage       `json:"usage"`
	Maintenance Maintenance `json:"maintenance"`
	Holds       []Hold      `json:"holds,omitempty"`
	Pins        []Pin       `json:"pins,omitempty"`
	Timing      *Timing     `json:"timing,omitempty"` // of drills and failovers here
	Skipped     []Skipped   `json:"skipped,omitempty"`

	// Machine is what a failover here starts.
	Machine      string `json:"machine,omitempty"`
	MachineState string `json:"machine_state,omitempty"` // see the Machine words
	MachinePID   int    `json:"machine_pid,omitempty"`
	// Seen is each machine that a failover here starts, where they are several.
	Seen []MachineSeen `json:"machines_seen,omitempty"`
}

// MachineSeen is one of several machines that a failover here starts.
type MachineSeen struct {
	Name    string `json:"name"`
	State   string `json:"state"` // see the Machine words
	PID     int    `json:"pid,omitempty"`
	Renamed string `json:"renamed,omitempty"` // what libvirt calls it by now
}

// Volume is one disk.
type Volume struct {
	Name    string `json:"name"`
	ID      string `json:"id"`
	Size    int64  `json:"size_bytes"`
	Kind    string `json:"kind"`              // embedded, tapped, replica
	Machine string `json:"machine,omitempty"` // whose disk it is, where the group captures several
	State   string `json:"state,omitempty"`   // of its tracker
	Export  string `json:"export,omitempty"`  // NBD URI while it is served
	Cause   string `json:"cause,omitempty"`
	// Capture is how a disk that is tapped is followed; Since and Detail are of the state.
	Capture string    `json:"capture,omitempty"`
	Since   time.Time `json:"since,omitzero"`
	Detail  string    `json:"detail,omitempty"`
	Resync  *Resync   `json:"resync,omitempty"` // the newest one
	// Mode is how its changes come in just now, since when and why, and Effect what
	// that means for points.
	Mode      string    `json:"mode,omitempty"` // none, per-write, delta, full, bitmap, released
	ModeSince time.Time `json:"mode_since,omitzero"`
	ModeWhy   string    `json:"mode_why,omitempty"`
	Effect    string    `json:"effect,omitempty"`
	Cycles    *Cycles   `json:"cycles,omitempty"` // bitmap
	Added     *Added    `json:"added,omitempty"`  // per write, once there were any
	Local     *Local    `json:"local,omitempty"`  // where its machine has it open itself, after a failover
}

// Local is a disk that was handed to the machine which was started from it.
type Local struct {
	Image string    `json:"image"`
	Since time.Time `json:"since"`
	Pause float64   `json:"pause_seconds"` // that the guest stood still for it
}

// Added is what capture adds to a guest's writes on this side: from a write's arrival to
// its answer, since the daemon began to capture. What QEMU takes to send it is not in it.
type Added struct {
	Writes uint64  `json:"writes"`
	P50    float64 `json:"p50_seconds"`
	P99    float64 `json:"p99_seconds"`
	Max    float64 `json:"max_seconds"`
}

// Guest is one of several machines whose disks a group captures: how the disk that is
// furthest from points is followed.
type Guest struct {
	Name    string    `json:"name"`
	Volumes int       `json:"volumes"`
	Mode    string    `json:"mode"` // see Volume
	State   string    `json:"state,omitempty"`
	Since   time.Time `json:"since,omitzero"` // of Mode
	Why     string    `json:"why,omitempty"`
	Effect  string    `json:"effect,omitempty"`
}

// Cycles are a machine's bitmap cycles since its tracker began.
type Cycles struct {
	EverySeconds float64 `json:"every_seconds"`
	Points       uint64  `json:"points"`
	Refused      uint64  `json:"refused"`                         // without a point
	LongestPause float64 `json:"longest_pause_seconds,omitempty"` // that several machines stood still for a point
}

// Resync is what it cost to bring a volume back to what its disk holds.
type Resync struct {
	Full      bool   `json:"full"`          // the whole disk was read, else a bitmap's delta
	Why       string `json:"why,omitempty"` // full: why no bitmap could be trusted
	ToRead    int64  `json:"bytes_to_read"`
	Read      int64  `json:"bytes_read"`
	Journaled int64  `json:"bytes_journaled"` // what differed from the journal's head
	Running   bool   `json:"running,omitempty"`
}

// Interval of a lineage.
type Interval struct {
	Epoch uint64 `json:"epoch"`
	ID    string `json:"id"`
	First uint64 `json:"first"`
	Last  uint64 `json:"last"`
}

// Branch is an epoch held here.
type Branch struct {
	Epoch   uint64    `json:"epoch"`
	ID      string    `json:"id"`
	Site    string    `json:"site"`
	Begun   time.Time `json:"begun"`
	First   uint64    `json:"first"`
	Last    uint64    `json:"last"`
	Current bool      `json:"current"` // part of the lineage
}

// Point is a restorable moment.
type Point struct {
	Epoch   uint64    `json:"epoch"`
	Seq     uint64    `json:"seq"`
	Time    time.Time `json:"time"`
	Marks   []Mark    `json:"marks,omitempty"`
	Volumes []string  `json:"volumes,omitempty"` // ids covered
}

// Mark is a label of a point.
type Mark struct {
	Name string `json:"name"`
	App  bool   `json:"app,omitempty"`
	Pin  bool   `json:"pin,omitempty"`
	Note string `json:"note,omitempty"`
}

// PointsQuery asks for points.
type PointsQuery struct {
	Group string `json:"group"`
	At    string `json:"at,omitempty"`
	// From and To bound the times of what is listed; zero: no bound.
	From time.Time `json:"from,omitzero"`
	To   time.Time `json:"to,omitzero"`

	Branches bool `json:"branches,omitempty"` // also what lies beside the lineage
}

// Points are a group's points and why they are kept, gaps, marks and pins, oldest
// first.
type Points struct {
	Group    string    `json:"group"`
	Time     time.Time `json:"time"`               // of this list
	Resolved *Point    `json:"resolved,omitempty"` // of the query's At
	Kept     []Stretch `json:"kept"`
	Spans    []Span    `json:"spans"` // ranges in which every record is a point
	Gaps     []Gap     `json:"gaps"`
	Marks    []Point   `json:"marks"`
	Pins     []Pin     `json:"pins"`
	Changes  []Change  `json:"changes"` // of what the points are of
	// Suspect are stretches in which a volume was written as if it were being encrypted.
	Suspect []Suspicion `json:"suspect,omitempty"`
	// Abandoned are what lies beside the lineage, if that was asked for.
	Abandoned []Abandoned `json:"abandoned,omitempty"`
	// Skipped is what catch-ups left out here.
	Skipped []Skipped `json:"skipped,omitempty"`
}

// Abandoned is a branch, or the tail of one, that the group's history does not go
// through: after a rewind, a rollback, or a failover behind its end.
type Abandoned struct {
	Epoch  uint64    `json:"epoch"`
	ID     string    `json:"id"`
	Site   string    `json:"site"`
	Begun  time.Time `json:"begun"`
	First  uint64    `json:"first"` // records
	Last   uint64    `json:"last"`
	Newest *Point    `json:"newest,omitempty"` // point in it; absent: none is left
	At     string    `json:"at,omitempty"`     // that names it
}

// Skipped are the records between two, which came here as one delta: none of them is a
// point here.
type Skipped struct {
	After uint64    `json:"after_seq"` // 0: the beginning
	To    Point     `json:"to"`        // where it led
	At    time.Time `json:"at"`        // when it came
	Peer  string    `json:"peer"`      // from where
	// Left is how many of them are points there still; nil: it was not asked, or does not say.
	Left *uint64 `json:"left,omitempty"`
}

// Change is a record of a volume or of a machine's definition: what the points from
// there on are of.
type Change struct {
	Epoch   uint64    `json:"epoch"`
	Seq     uint64    `json:"seq"`
	Time    time.Time `json:"time"`
	Volume  string    `json:"volume,omitempty"`
	Machine string    `json:"machine,omitempty"` // whose definition is recorded anew
	What    string    `json:"what"`              // of a volume: added, joins, resized or left; of a machine: defined
	Size    int64     `json:"size,omitempty"`
}

// Span is a range in which every record is a point.
type Span struct {
	First Point  `json:"first"`
	Last  Point  `json:"last"`
	Open  bool   `json:"open"`
	Ended string `json:"ended,omitempty"` // cause
}

// Gap is an interval without points.
type Gap struct {
	Epoch  uint64    `json:"epoch"`
	Seq    uint64    `json:"seq"`
	Time   time.Time `json:"time"`
	Volume string    `json:"volume,omitempty"`
	Cause  string    `json:"cause"`
	Detail string    `json:"detail,omitempty"`
}

// MarkRequest labels the newest point.
type MarkRequest struct {
	Group string `json:"group"`
	Name  string `json:"name"`
	App   bool   `json:"app,omitempty"`
	Pin   bool   `json:"pin,omitempty"`
	Note  string `json:"note,omitempty"`
}
