package recovery

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
)

// Fence is what is known about the old primary. Unreachable is unknown.
type Fence string

// Outcomes of a fence.
const (
	FenceUnknown Fence = "unknown"
	FenceProven  Fence = "proven"
	// FenceLeased: the old primary's lease of the witness ended, and its watchdog paused
	// its machines before.
	FenceLeased Fence = "leased"
)

// Off reports that the old primary's machine does not run, as far as that can be known.
func (f Fence) Off() bool { return f == FenceProven || f == FenceLeased }

// PeerHead is where a peer's history ends, as it answered or, when it is not
// reachable, as far as it was ever heard (zero: never).
type PeerHead struct {
	Name      string           `json:"name"`
	Reachable bool             `json:"reachable"`
	Primary   bool             `json:"primary,omitempty"` // it captures
	Head      journal.Position `json:"head,omitzero"`
	Number    uint64           `json:"epoch_number,omitempty"`
	Time      time.Time        `json:"time,omitzero"`
	// Relation is how its history stands to the one here, if it answered for this plan.
	Relation string `json:"relation,omitempty"`
}

// SourceHead is the newest head of the source that this site was told of.
type SourceHead struct {
	Peer   string           `json:"peer"`
	Head   journal.Position `json:"head"`
	Number uint64           `json:"epoch_number,omitempty"`
	Bytes  int64            `json:"bytes_beyond"` // of its records that are not here
	Time   time.Time        `json:"time"`         // of the head's record, a label like a point's
	Heard  time.Time        `json:"heard"`        // when that was told, by this site's clock
}

// Inputs of a plan; all of them are values, so a plan can be made again.
type Inputs struct {
	Tenant, Group, Site string
	Identity            journal.Identity
	At                  string // as asked
	Point               journal.Point
	Head                journal.Head    // of this site
	Lineage             journal.Lineage // that Head ends
	HighestEpoch        uint64          // number known here
	Since               journal.Since   // what is here beyond Point
	// Thinned says that not all of what Since counts is there any more as it was
	// written: its records are known by number alone, its bytes by what differs.
	Thinned bool
	Volumes []cbt.Volume // of the group at Head
	Peers   []PeerHead
	Source  *SourceHead // nil: none was ever heard
	Machine string      // name; empty: none is started
	Besides []string    // names of those that start with it
	// Recorded are the machines that the group has by its history, where they are several.
	Recorded []string
	Health   bool // the machine's console is waited for
	Fence    Fence
	Fencing  []string // channels by which the first step is to prove it; none: no such step
	Tail     *Tail    // that is fetched first; nil: nobody holds more
	Apart    []string // why of several tails none can be taken unasked
	// WithoutTail: a person said to go on with what is here.
	WithoutTail bool
	Now         time.Time
}

// Plan is what a failover would do and lose.
type Plan struct {
	Tenant         string           `json:"tenant,omitempty"`
	Group          string           `json:"group"`
	Identity       journal.Identity `json:"identity"`
	Site           string           `json:"site"`
	At             string           `json:"at"`
	Point          journal.Point    `json:"point"`
	Head           journal.Position `json:"head"`
	NewEpochNumber uint64           `json:"new_epoch_number"`
	Fence          Fence            `json:"fence"`
	Fencing        []string         `json:"fencing,omitempty"`
	Loss           Loss             `json:"loss"`
	Peers          []PeerHead       `json:"peers,omitempty"`
	Source         *SourceHead      `json:"source,omitempty"`
	Tail           *Tail            `json:"tail,omitempty"`
	WithoutTail    bool             `json:"without_tail,omitempty"`
	Machine        string           `json:"machine,omitempty"` // of several the names, in the order of their start
	Steps          []Step           `json:"steps"`
	Warnings       []string         `json:"warnings,omitempty"`
	Refused        []Objection      `json:"refused,omitempty"` // only force goes on
	Policy         Policy           `json:"policy,omitzero"`   // of what it begins
	Made           time.Time        `json:"made"`
	// Digest names what was confirmed: another point, head, epoch, machine or
	// objection gives another one, the passing of time does not.
	Digest string `json:"digest"`
}

// StepName is one action of a failover.
type StepName string

// Steps, in their order.
const (
	StepFence    StepName = "fence"
	StepTail     StepName = "tail"
	StepPromote  StepName = "promote"
	StepAnnounce StepName = "announce"
	StepServe    StepName = "serve"
	StepStart    StepName = "start"
	StepHealth   StepName = "health"
	StepRead     StepName = "read" // these of a handover
	StepDrain    StepName = "drain"
	StepCede     StepName = "cede"
	StepTake     StepName = "take"
)

// Step is an action and what it means in this plan.
type Step struct {
	Name StepName `json:"name"`
	What string   `json:"what"`
}

// Codes of objections; append-only.
const (
	ObjectionUnfenced = "unfenced"
	ObjectionPrimary  = "primary-answers"
	ObjectionAhead    = "peer-ahead"
	ObjectionApart    = "tails-apart"
)

// Objection is a check that speaks against a plan.
type Objection struct {
	Code string `json:"code"`
	Text string `json:"text"`
}

// NewPlan says what a failover of in means. It is pure.
func NewPlan(in Inputs) Plan {
	if in.Fence == "" {
		in.Fence = FenceUnknown
	}
	p := Plan{
		Tenant: in.Tenant, Group: in.Group, Identity: in.Identity, Site: in.Site, At: in.At, Point: in.Point, Head: in.Head.Position,
		Fence: in.Fence, Fencing: in.Fencing, Loss: lossOf(in), Peers: slices.Clone(in.Peers), Source: in.Source, Tail: in.Tail, WithoutTail: in.WithoutTail,
		Machine: in.Machine, Made: in.Now,
	}
	if len(in.Besides) > 0 {
		p.Machine = called(append([]string{in.Machine}, in.Besides...))
	}
	p.NewEpochNumber = max(in.HighestEpoch, in.Head.Number, in.Point.Number)
	if in.Source != nil {
		p.NewEpochNumber = max(p.NewEpochNumber, in.Source.Number)
	}
	for _, peer := range in.Peers {
		p.NewEpochNumber = max(p.NewEpochNumber, peer.Number)
	}
	p.NewEpochNumber++
	p.Refused = objections(in)
	p.Warnings = warnings(in, p.Loss)
	p.Steps = steps(in, p.NewEpochNumber)
	p.Digest = p.digest()
	return p
}

func objections(in Inputs) []Objection {
	var out []Objection
	for _, peer := range in.Peers {
		if peer.Reachable && peer.Primary {
			out = append(out, Objection{ObjectionPrimary, fmt.Sprintf("%s answers and is primary: a second primary writes a second history", peer.Name)})
		}
	}
	if !in.Fence.Off() && len(in.Fencing) == 0 {
		out = append(out, Objection{ObjectionUnfenced, "source not proven fenced: it may still run; going on is recorded as UNFENCED"})
	}
	return append(out, tailObjections(in)...)
}

func warnings(in Inputs, l Loss) []string {
	var out []string
	switch {
	case in.Source == nil:
		out = append(out, "no head of the source was ever heard: how much never arrived is not known")
	case l.UnheardSeconds > 0:
		out = append(out, fmt.Sprintf("what %s wrote in the %s since it was last heard is not known, and lost", in.Source.Peer, seconds(l.UnheardSeconds)))
	}
	for _, peer := range in.Peers {
		if !peer.Reachable && (in.Source == nil || peer.Name != in.Source.Peer) {
			out = append(out, fmt.Sprintf("%s is not reachable: it may hold more", peer.Name))
		}
	}
	for _, v := range in.Volumes {
		if !slices.Contains(in.Point.Volumes, v.ID) {
			out = append(out, fmt.Sprintf("the point does not cover volume %s", v.Name))
		}
	}
	if len(in.Lineage) > 0 && !in.Lineage.Holds(in.Point.Position) {
		out = append(out, fmt.Sprintf("the point %v lies in an abandoned branch", in.Point))
	}
	if in.Thinned {
		out = append(out, "history after the point was thinned: at most so many writes, and bytes that differ now; a block that was written again counts once")
	}
	out = append(out, tailWarnings(in)...)
	if in.Machine == "" {
		out = append(out, "no machine is started: the volumes are served only")
	} else if len(in.Recorded) > 1+len(in.Besides) {
		out = append(out, fmt.Sprintf("the group is machines %s, and only %s starts here: name the others in besides: of machine:", called(in.Recorded), called(append([]string{in.Machine}, in.Besides...))))
	}
	return out
}

func steps(in Inputs, number uint64) []Step {
	what := fmt.Sprintf("fork epoch %d at %v, durably", number, in.Point)
	var out []Step
	switch {
	case in.Fence.Off():
	case len(in.Fencing) > 0:
		out = append(out, Step{StepFence, "switch the old primary's machine off, and see it off through another channel: " + strings.Join(in.Fencing, "; ")})
	default:
		what += "; recorded as UNFENCED"
	}
	if in.Tail != nil {
		out = append(out, tailStep(in))
	}
	out = append(out, Step{StepPromote, what})
	reachable := 0
	for _, peer := range in.Peers {
		if peer.Reachable {
			reachable++
		}
	}
	if reachable > 0 {
		out = append(out, Step{StepAnnounce, "wait until the epoch is durable at " + count(reachable, "reachable peer")})
	}
	out = append(out, Step{StepServe, "serve " + count(len(in.Point.Volumes), "volume") + " from the new epoch"})
	if in.Machine != "" {
		out = append(out, Step{StepStart, StartText(append([]string{in.Machine}, in.Besides...))})
		if in.Health {
			out = append(out, Step{StepHealth, "wait for its line on the serial console"})
		}
	}
	return out
}

// StartText is what a start of machines means.
func StartText(names []string) string {
	if len(names) == 1 {
		return fmt.Sprintf("start machine %s and wait until it runs", names[0])
	}
	return fmt.Sprintf("start machines %s, in this order, each until it runs: all of them, or none", called(names))
}

func (p *Plan) digest() string {
	codes := []string{}
	for _, o := range p.Refused {
		codes = append(codes, o.Code)
	}
	named := []any{p.Identity, p.Site, p.At, p.Point.Position, p.Head, p.NewEpochNumber, p.Machine, codes}
	if len(p.Fencing) > 0 {
		named = append(named, p.Fencing)
	}
	if p.Tail != nil || p.WithoutTail { // not how long it is: it may grow still
		named = append(named, p.WithoutTail, p.tailOf())
	}
	b, err := json.Marshal(named)
	if err != nil {
		panic(err) // our own structs of strings and numbers
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}

func (p *Plan) tailOf() string {
	if p.Tail == nil {
		return ""
	}
	return p.Tail.Peer
}

// Order is what Promote is told to do once somebody has agreed to p: without force
// a plan with objections is a *RefusedError.
func (p Plan) Order(operator string, force bool) (Order, error) {
	if len(p.Refused) > 0 && !force {
		return Order{}, &RefusedError{Group: p.Group, Reasons: p.Refused}
	}
	return Order{
		Group: p.Group, Site: p.Site, At: p.At, Point: p.Point.Position, EpochAtLeast: p.NewEpochNumber,
		Operator: operator, Fence: p.Fence, Forced: force && len(p.Refused) > 0, Machine: p.Machine, Plan: p.Digest, Policy: p.Policy,
	}, nil
}
