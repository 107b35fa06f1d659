package recovery

import (
	"context"
	"fmt"
	"os/user"
	"slices"
	"strings"
	"time"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/recovery/fence"
)

// Failover carries a plan out.
type Failover struct {
	Plan     Plan
	Operator string // default: the user of this process
	Force    bool   // go on although the plan is refused; recorded
	History  History
	// Fence proves that the old primary's machine is off; needed where Plan.Fencing
	// names channels.
	Fence func(ctx context.Context) fence.Proof
	// Right is asked before the promotion, and before the machine starts, where the old
	// primary is off by a lease: an error says that it is not any more. Nil: nobody is asked.
	Right func() error
	// Tail fetches Plan.Tail and gives the plan as it is then: its point may be a later
	// one. Needed where the plan has a tail.
	Tail func(ctx context.Context) (Plan, string, error)
	// Announce returns once the epoch is durable at every reachable peer. Nil: there
	// is none.
	Announce func(ctx context.Context, e journal.Epoch) error
	// Serve serves the volumes from the new epoch and says where each is, as an NBD
	// URI by the volume's name. Nil: nobody needs them.
	Serve   func(ctx context.Context, w *journal.Writer) (map[string]string, error)
	Machine *Machine // nil: none is started
	// Start has Machine run with its disks there. Nil: Machine.Ensure does.
	Start  func(ctx context.Context, uris map[string]string) (*Running, error)
	Health Health
	Now    func() time.Time // default time.Now
	Step   func(StepTime)   // hears of every step that ended; may be nil
}

// StepTime is a step and what it took.
type StepTime struct {
	Name    StepName  `json:"name"`
	Began   time.Time `json:"began"`
	Seconds float64   `json:"seconds"`
	Detail  string    `json:"detail,omitempty"`
	Error   string    `json:"error,omitempty"`
}

// Outcome is what a failover did, also one that failed: then Failed names the step,
// and what was done before it stands.
type Outcome struct {
	Plan     Plan          `json:"plan"`
	Operator string        `json:"operator"`
	Reign    Reign         `json:"reign"`
	Epoch    journal.Epoch `json:"epoch"`
	Unfenced bool          `json:"unfenced"`
	Proof    *fence.Proof  `json:"fence_proof,omitempty"` // what the fence saw
	Resumed  bool          `json:"resumed,omitempty"`
	Steps    []StepTime    `json:"steps"`
	Began    time.Time     `json:"began"`
	// RTOSeconds is from the order to the machine running, and healthy where that is
	// checked; without a machine, to the volumes being served. 0 after a failure.
	RTOSeconds float64           `json:"rto_seconds"`
	URIs       map[string]string `json:"uris,omitempty"`
	Machine    *Running          `json:"machine,omitempty"`
	Failed     StepName          `json:"failed,omitempty"`

	Writer *journal.Writer `json:"-"`
}

// Run promotes, serves, starts and checks. What it did is in the Outcome even when
// it fails. Running it again after an interruption goes on where that was: the
// promotion is finished, the machine found or started.
func (f Failover) Run(ctx context.Context) (Outcome, error) {
	if f.Now == nil {
		f.Now = time.Now
	}
	if f.Operator == "" {
		f.Operator = "unknown"
		if u, err := user.Current(); err == nil {
			f.Operator = u.Username
		}
	}
	out := Outcome{Plan: f.Plan, Operator: f.Operator, Began: f.Now()}
	order, err := f.Plan.Order(f.Operator, f.Force)
	if err != nil {
		return out, err
	}
	if f.Machine != nil {
		if err := f.admissible(); err != nil { // before the epoch, not after it
			return out, err
		}
	}
	out.Unfenced = !order.Fence.Off()
	for _, s := range f.steps(&order, &out) {
		began := f.Now()
		var detail string
		err := f.still(s.name, order.Fence)
		if err == nil {
			detail, err = s.do(ctx)
		}
		t := StepTime{Name: s.name, Began: began, Seconds: f.Now().Sub(began).Seconds(), Detail: detail}
		if err != nil {
			t.Error, out.Failed = err.Error(), s.name
		}
		out.Steps = append(out.Steps, t)
		if f.Step != nil {
			f.Step(t)
		}
		if err != nil {
			return out, fmt.Errorf("fail over %s: %s: %w", f.Plan.Group, s.name, err)
		}
	}
	out.RTOSeconds = f.Now().Sub(out.Began).Seconds()
	return out, nil
}

// still is nil if what a lease says of the old primary holds yet for a step.
func (f Failover) still(step StepName, by Fence) error {
	if f.Right == nil || by != FenceLeased || step != StepPromote && step != StepStart {
		return nil
	}
	return f.Right()
}

func (f Failover) admissible() error {
	talks := func(arg string) bool { return strings.Contains(arg, "{serial}") }
	h := f.Health
	for i, m := range f.Machine.Each() {
		if i > 0 {
			h = f.Machine.Besides[i-1].Health
		}
		if m.Host == nil && h.Prefix != "" && !slices.ContainsFunc(m.Args, talks) {
			return fmt.Errorf("%w: machine %q: its health is read from its serial console, and no argument has {serial}", ErrMachine, m.Name)
		}
	}
	return f.Machine.validate()
}

type action struct {
	name StepName
	do   func(ctx context.Context) (detail string, err error)
}

func (f Failover) steps(order *Order, out *Outcome) []action {
	var as []action
	if len(f.Plan.Fencing) > 0 && !order.Fence.Off() {
		as = append(as, action{StepFence, func(ctx context.Context) (string, error) { return f.fence(ctx, order, out) }})
	}
	if f.Plan.Tail != nil && f.Tail != nil {
		as = append(as, action{StepTail, func(ctx context.Context) (string, error) { return f.tail(ctx, order, out) }})
	}
	as = append(as, action{StepPromote, func(ctx context.Context) (string, error) {
		p, err := Promote(ctx, f.History, *order, f.Now())
		if err != nil {
			return "", err
		}
		out.Writer, out.Reign, out.Resumed, out.Epoch = p.Writer, p.Reign, p.Resumed, p.Writer.Epoch()
		return fmt.Sprintf("epoch %d, %s", out.Epoch.Number, out.Epoch.ID.Short()), nil
	}})
	if f.Announce != nil {
		as = append(as, action{StepAnnounce, func(ctx context.Context) (string, error) { return "", f.Announce(ctx, out.Epoch) }})
	}
	if f.Serve != nil {
		as = append(as, action{StepServe, func(ctx context.Context) (_ string, err error) {
			out.URIs, err = f.Serve(ctx, out.Writer)
			return count(len(out.URIs), "volume"), err
		}})
	}
	if f.Machine == nil {
		return as
	}
	start := f.Start
	if start == nil {
		start = f.Machine.Ensure
	}
	as = append(as, action{StepStart, func(ctx context.Context) (_ string, err error) {
		if out.Machine, err = start(ctx, out.URIs); err != nil {
			return "", err
		}
		return out.Machine.Told(), nil
	}})
	if f.Machine.Waits(f.Health) {
		as = append(as, action{StepHealth, func(ctx context.Context) (string, error) { return out.Machine.Healthy(ctx, f.Health) }})
	}
	return as
}

// fence proves the old primary off and writes it into the order. What is not proven
// ends the failover before anything was promoted, unless somebody said to go on; then
// that is on record, with what was seen.
func (f Failover) fence(ctx context.Context, order *Order, out *Outcome) (string, error) {
	proof := fence.Proof{Result: fence.Unproven, Why: "no fence is configured"}
	if f.Fence != nil {
		proof = f.Fence(ctx)
	}
	out.Proof = &proof
	said := string(proof.Result) + ": " + proof.Why
	switch {
	case proof.Result == fence.Off:
		order.Fence, out.Unfenced = FenceProven, false
	case f.Force:
		order.Forced = true
		said += "; forced by " + f.Operator
	default:
		return said, &UnprovenError{Group: f.Plan.Group, Proof: proof}
	}
	return said, nil
}

// tail fetches what a peer holds beyond this site. The plan keeps the name under which
// it was confirmed.
func (f Failover) tail(ctx context.Context, order *Order, out *Outcome) (string, error) {
	p, detail, err := f.Tail(ctx)
	if err != nil {
		return detail, err
	}
	if slices.ContainsFunc(p.Refused, func(o Objection) bool { return o.Code == ObjectionPrimary }) && !f.Force { // since the plan was made
		return detail, &RefusedError{Group: p.Group, Reasons: p.Refused}
	}
	p.Digest, p.Policy = f.Plan.Digest, f.Plan.Policy
	out.Plan = p
	order.Point, order.EpochAtLeast = p.Point.Position, max(order.EpochAtLeast, p.NewEpochNumber)
	return detail, nil
}

// Stands reports whether the new epoch exists, whatever failed after it.
func (o Outcome) Stands() bool { return !o.Epoch.ID.IsZero() }
