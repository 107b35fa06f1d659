package recovery

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
)

// RewindInputs is what a rewind is planned from; all of it are values.
type RewindInputs struct {
	Tenant, Group, Site string
	Identity            journal.Identity
	Reign               Reign // of this site
	At                  string
	Point               journal.Point
	Head                journal.Head // of this site; what lies behind the point is given up
	Lineage             journal.Lineage
	HighestEpoch        uint64
	Since               journal.Since
	Thinned             bool // see Inputs
	Volumes             []cbt.Volume
	Changed             map[cbt.VolumeID][]cbt.Extent // between Head and Point
	Machine             string                        // that runs and is stopped; empty: none
	Undo                string                        // what --at leads back; empty: the head is no point
	Clients             int                           // of its disks, beside the machine
	Drives              bool                          // the disks are the machine's own, which is tapped
	Unfollowed          string                        // why the disks may hold what the history does not
	Stays               bool                          // nobody told this site how to start the machine
	Now                 time.Time
}

// Codes of objections to a rewind; append-only.
const (
	ObjectionClients = "clients"
	ObjectionNoUndo  = "no-undo"
	ObjectionUnheard = "unfollowed"
)

// RewindPlan is what a rewind does and gives up.
type RewindPlan struct {
	Tenant   string           `json:"tenant,omitempty"`
	Group    string           `json:"group"`
	Identity journal.Identity `json:"identity"`
	Site     string           `json:"site"`
	At       string           `json:"at"`
	Point    journal.Point    `json:"point"`
	Head     journal.Position `json:"head"`
	Epoch    uint64           `json:"new_epoch_number"`
	GivenUp  GivenUp          `json:"given_up"`
	Volumes  []RewindVolume   `json:"volumes"`
	Machine  string           `json:"machine,omitempty"`
	Undo     string           `json:"undo,omitempty"`
	Drives   bool             `json:"drives,omitempty"`
	Stays    bool             `json:"stays_off,omitempty"`
	Steps    []Step           `json:"steps"`
	Warnings []string         `json:"warnings,omitempty"`
	Refused  []Objection      `json:"refused,omitempty"`
	Made     time.Time        `json:"made"`
	// Digest names what was confirmed: another point, machine or objection gives
	// another one. The head does not, for the guest writes on until it is stopped.
	Digest string `json:"digest"`
}

// RewindVolume is one disk's part: what of it may differ, and is compared.
type RewindVolume struct {
	Volume string `json:"volume"`
	Differ int64  `json:"differ_bytes"`
	Writes uint64 `json:"writes"` // given up
	Bytes  int64  `json:"bytes"`  // of those
}

// Steps of a rewind.
const (
	StepStop  StepName = "stop"
	StepFork  StepName = "fork"
	StepWrite StepName = "write"
)

// NewRewind says what a rewind of in means. It is pure.
func NewRewind(in RewindInputs) RewindPlan {
	given := givenUp(Inputs{Point: in.Point, Since: in.Since, Thinned: in.Thinned, Volumes: in.Volumes})
	p := RewindPlan{Tenant: in.Tenant, Group: in.Group, Identity: in.Identity, Site: in.Site, At: in.At, Point: in.Point, Head: in.Head.Position,
		Epoch: max(in.HighestEpoch, in.Head.Number) + 1, GivenUp: given, Machine: in.Machine, Undo: in.Undo, Drives: in.Drives, Stays: in.Stays, Made: in.Now}
	for _, v := range in.Volumes {
		part := RewindVolume{Volume: v.Name}
		for _, e := range in.Changed[v.ID] {
			part.Differ += e.Length
		}
		if i := slices.IndexFunc(given.Volumes, func(l VolumeLoss) bool { return l.Volume == v.Name }); i >= 0 {
			part.Writes, part.Bytes = given.Volumes[i].Writes, given.Volumes[i].Bytes
		}
		p.Volumes = append(p.Volumes, part)
		if !slices.Contains(in.Point.Volumes, v.ID) {
			p.Warnings = append(p.Warnings, fmt.Sprintf("the point does not cover volume %s: what it holds of it is no moment of that volume", v.Name))
		}
	}
	if len(in.Lineage) > 0 && !in.Lineage.Holds(in.Point.Position) {
		p.Warnings = append(p.Warnings, fmt.Sprintf("the point %v lies in an abandoned branch", in.Point))
	}
	if in.Thinned {
		p.Warnings = append(p.Warnings, "history after the point was thinned: at most so many writes, and bytes that differ now; a block that was written again counts once")
	}
	if in.Clients > 0 {
		p.Refused = append(p.Refused, Objection{ObjectionClients, fmt.Sprintf("%s of its disks would find them changed beneath it", count(in.Clients, "client"))})
	}
	if in.Undo == "" {
		p.Refused = append(p.Refused, Objection{ObjectionNoUndo, "the newest record is no point: nothing leads back to it"})
	}
	if in.Unfollowed != "" {
		p.Refused = append(p.Refused, Objection{ObjectionUnheard, "the disks may hold what the history does not, and nothing would lead back to that: " + in.Unfollowed})
	}
	p.Steps = rewindSteps(p)
	p.Digest = p.digest()
	return p
}

func rewindSteps(p RewindPlan) []Step {
	var out []Step
	if p.Machine != "" {
		out = append(out, Step{StepStop, fmt.Sprintf("turn machine %s off, as a power cut would", p.Machine)})
	}
	var differ int64
	for _, v := range p.Volumes {
		differ += v.Differ
	}
	out = append(out,
		Step{StepFork, fmt.Sprintf("fork epoch %d at %v, durably; what came after stays as a branch", p.Epoch, p.Point)},
		p.writeStep(differ))
	switch {
	case p.Machine != "" && p.Stays:
		out = append(out, Step{StepStart, fmt.Sprintf("machine %s stays off: start it again yourself", p.Machine)})
	case p.Machine != "":
		out = append(out, Step{StepStart, fmt.Sprintf("start machine %s again", p.Machine)})
	}
	return out
}

func (p *RewindPlan) writeStep(differ int64) Step {
	if p.Drives {
		return Step{StepWrite, fmt.Sprintf("compare all of the machine's own %s with the point, write what differs (about %d bytes), read it back", count(len(p.Volumes), "disk"), differ)}
	}
	return Step{StepWrite, fmt.Sprintf("compare %d bytes of %s with the point, write what differs, read it back", differ, count(len(p.Volumes), "volume"))}
}

func (p *RewindPlan) digest() string {
	codes := []string{}
	for _, o := range p.Refused {
		codes = append(codes, o.Code)
	}
	b, err := json.Marshal([]any{"rewind", p.Identity, p.Site, p.Point.Position, p.Machine, codes})
	if err != nil {
		panic(err) // our own structs of strings and numbers
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}

// Order is what Promote is told to do once somebody has agreed to p: without force a
// plan with objections is a *RefusedError.
func (p RewindPlan) Order(operator string, force bool) (Order, error) {
	if len(p.Refused) > 0 && !force {
		return Order{}, &RefusedError{Verb: "rewind", Group: p.Group, Reasons: p.Refused}
	}
	return Order{Group: p.Group, Site: p.Site, At: p.At, Point: p.Point.Position, EpochAtLeast: p.Epoch, Operator: operator, Forced: force && len(p.Refused) > 0,
		Machine: p.Machine, Plan: p.Digest, Rewind: true, Drives: p.Drives}, nil
}

// mayRewind is why the reign cannot go back as ordered, or nil.
func mayRewind(r Reign, o Order, branches []journal.Branch) error {
	if !r.Role.Captures() {
		return fmt.Errorf("%w: its role is %s", ErrNotReigning, r.Role)
	}
	if r.Role != Uncommitted || r.From.IsZero() {
		return nil
	}
	l, err := journal.LineageOf(branches, o.Point.Epoch)
	if err != nil {
		return err
	}
	if !l.Until(o.Point.Seq).Holds(r.From) {
		return fmt.Errorf("%w: it forked at %s", ErrBehindFork, r.From)
	}
	return nil
}

// rewound is a role after a rewind: the same, in another epoch. What a failover left
// to be committed or rolled back stays known.
func rewound(before, now Reign) Reign {
	r := before
	r.Epoch, r.ID, r.Since, r.Promotion = now.Epoch, now.ID, now.Since, now.Promotion
	return r
}
