package fence

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Result is what all channels together come to.
type Result string

// Results. Off alone is a proof.
const (
	Off         Result = "off"         // two channels saw it off, none saw it on
	Refused     Result = "refused"     // it was seen to run, or a switch did not obey
	Unreachable Result = "unreachable" // no channel answered
	Unproven    Result = "unproven"    // one channel alone says it is off, or none that can be believed
)

// State is what one reading saw.
type State string

// States. Silent is no answer where an answer would mean that the machine is on.
const (
	SeenOn     State = "on"
	SeenOff    State = "off"
	SeenSilent State = "silent"
	Unseen     State = "unknown"
)

// Channel is a way to see the machine. Name tells it from the others: two of the same
// name are one channel.
type Channel interface {
	Name() string
	// Read sees. An error leaves Unseen; it says why.
	Read(ctx context.Context) (State, string, error)
}

// Switch is a channel that can switch off.
type Switch interface {
	Channel
	// Challenge asks what only one that tells the truth answers rightly, and changes
	// nothing; ErrLiar.
	Challenge(ctx context.Context) (string, error)
	// SwitchOff is ErrRefused or ErrUnreachable, or it says that it is done.
	SwitchOff(ctx context.Context) (string, error)
}

// host is a channel that sees the machine's host: a host that runs does not mean that
// the machine does, one that is off means that the machine is off.
type host interface{ OfHost() bool }

// glancing is a channel whose silence says nothing unless it was heard before: before,
// one asking is enough, and after it nobody waits for one that was silent already.
type glancing interface {
	Glance(ctx context.Context) (State, string, error)
}

// Act is what was done on a channel.
type Act string

// Acts.
const (
	ActBefore    Act = "read before"
	ActChallenge Act = "challenge"
	ActSwitch    Act = "switch off"
	ActAfter     Act = "read after"
	ActAgain     Act = "read again" // when the other machines of several were switched off
)

// Observation is one act and what came of it.
type Observation struct {
	Channel string    `json:"channel"`
	OfHost  bool      `json:"of_host,omitempty"`
	Act     Act       `json:"act"`
	State   State     `json:"state,omitempty"`  // of a reading
	Detail  string    `json:"detail,omitempty"` // what it said
	Error   string    `json:"error,omitempty"`
	Liar    bool      `json:"liar,omitempty"`
	Refused bool      `json:"refused,omitempty"`
	Time    time.Time `json:"time"`
}

// Proof is a Result with all that it rests on.
type Proof struct {
	Result Result        `json:"result"`
	Why    string        `json:"why"`
	Seen   []Observation `json:"seen"`
}

// Fence is the channels to one machine, the gentlest switch first.
type Fence struct {
	Channels []Channel
	Now      func() time.Time // default time.Now
}

// Prove switches the machine off and proves it, or says why it could not.
func (f Fence) Prove(ctx context.Context) Proof {
	p := f.proving()
	p.read(ctx, ActBefore)
	return p.prove(ctx)
}

func (f Fence) proving() *proving {
	if f.Now == nil {
		f.Now = time.Now
	}
	return &proving{f: f}
}

// prove throws the switches of a fence that was read.
func (p *proving) prove(ctx context.Context) Proof {
	for _, c := range p.f.Channels {
		s, ok := c.(Switch)
		if !ok {
			continue
		}
		if !p.challenge(ctx, s) {
			continue
		}
		detail, err := s.SwitchOff(ctx)
		p.note(s, ActSwitch, "", detail, err)
		p.read(ctx, ActAfter)
		if r, _ := judge(p.seen); r == Off {
			break
		}
	}
	if !p.thrown() { // a machine may be off without our doing
		p.read(ctx, ActAfter)
	}
	return p.proof()
}

func (p *proving) proof() Proof {
	r, why := judge(p.seen)
	return Proof{Result: r, Why: why, Seen: p.seen}
}

// Look reads and challenges, and switches nothing.
func (f Fence) Look(ctx context.Context) []Observation {
	p := f.proving()
	p.read(ctx, ActBefore)
	for _, c := range f.Channels {
		if s, ok := c.(Switch); ok {
			p.challenge(ctx, s)
		}
	}
	return p.seen
}

// Names lists the channels, for people.
func (f Fence) Names() []string {
	var out []string
	for _, c := range f.Channels {
		out = append(out, c.Name())
	}
	return out
}

type proving struct {
	f    Fence
	seen []Observation
}

func (p *proving) read(ctx context.Context, act Act) {
	for _, c := range p.f.Channels {
		read := c.Read
		if g, ok := c.(glancing); ok && (act == ActBefore || !p.heard(c.Name())) {
			read = g.Glance
		}
		state, detail, err := read(ctx)
		if err != nil {
			state = Unseen
		}
		p.note(c, act, state, detail, err)
	}
}

func (p *proving) heard(channel string) bool {
	return slices.ContainsFunc(p.seen, func(o Observation) bool { return o.Channel == channel && o.State == SeenOn })
}

func (p *proving) challenge(ctx context.Context, s Switch) bool {
	detail, err := s.Challenge(ctx)
	p.note(s, ActChallenge, "", detail, err)
	return err == nil
}

func (p *proving) thrown() bool {
	return slices.ContainsFunc(p.seen, func(o Observation) bool { return o.Act == ActAfter })
}

func (p *proving) note(c Channel, act Act, state State, detail string, err error) {
	o := Observation{Channel: c.Name(), Act: act, State: state, Detail: strings.TrimSpace(detail), Time: p.f.Now()}
	if h, ok := c.(host); ok {
		o.OfHost = h.OfHost()
	}
	if err != nil {
		o.Error, o.Liar, o.Refused = err.Error(), errors.Is(err, ErrLiar), errors.Is(err, ErrRefused)
	}
	p.seen = append(p.seen, o)
}

// String is a line for people.
func (o Observation) String() string {
	s := fmt.Sprintf("%s: %s", o.Channel, o.Act)
	if o.State != "" {
		s += ": " + string(o.State)
	}
	if o.Error != "" {
		return s + ": " + o.Error
	}
	if o.Detail != "" && o.State == "" {
		s += ": " + o.Detail
	}
	return s
}
