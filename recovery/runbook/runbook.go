package runbook

import (
	"slices"
	"time"
)

// Mode is what a runbook is used for.
type Mode string

// Modes.
const (
	Test      Mode = "test"      // a drill: isolated, taken down at the end
	Planned   Mode = "planned"   // a move while both sites live: nothing is lost
	Unplanned Mode = "unplanned" // the other site died
	Failback  Mode = "failback"  // the way home, a move
)

// Modes is every mode.
func Modes() []Mode { return []Mode{Test, Planned, Unplanned, Failback} }

// Kind is what a step does.
type Kind string

// Kinds of steps. Those of checks ask until the answer is yes or the time is up.
const (
	Start   Kind = "start"
	Stop    Kind = "stop"
	Agent   Kind = "agent"   // check: the guest agent answers
	Ping    Kind = "ping"    // check: ICMP
	TCP     Kind = "tcp"     // check: a connection is accepted
	HTTP    Kind = "http"    // check: status and content
	Program Kind = "program" // check: a program exits 0
	Script  Kind = "script"
	Prompt  Kind = "prompt"
	Network Kind = "network" // interfaces of a machine are connected elsewhere
	ReIP    Kind = "reip"    // addresses inside the guest, through its agent
	Notify  Kind = "notify"  // a program is told
)

// Kinds that only a plan has.
const (
	Wait    Kind = "wait"    // time between boot groups
	Cleanup Kind = "cleanup" // a drill's machines and disks go, whatever happened
)

// kinds are those that a file may have.
var kinds = []Kind{Start, Stop, Agent, Ping, TCP, HTTP, Program, Script, Prompt, Network, ReIP, Notify}

// IsCheck reports whether the step only looks.
func (k Kind) IsCheck() bool { return slices.Contains([]Kind{Agent, Ping, TCP, HTTP, Program}, k) }

// runs reports whether the step runs a program of the allow-list.
func (k Kind) runs() bool { return k == Program || k == Script || k == Notify }

// Policy is what a step's failure means to the run.
type Policy string

// Policies.
const (
	Halt     Policy = "halt"     // the run stops; resume tries the step again
	Continue Policy = "continue" // it is recorded, and the run goes on
	Abort    Policy = "abort"    // the run is over; a drill is taken down
)

// Runbook is a file that was understood.
type Runbook struct {
	Name     string
	Machines []Machine
	Vars     []Var
	Boot     []Boot

	text   []byte
	file   string
	places map[string]Place
}

// Machine is one that the runbook brings up: that of a protected group.
type Machine struct {
	Name  string
	Group string
}

// Var stands for {Name} in a step's strings: one value for drills, one for the rest.
type Var struct {
	Name string
	Test string
	Live string
}

// Boot is a boot group.
type Boot struct {
	Name     string
	After    []string // other boot groups; nil: the one before it in the file
	Parallel int      // machines at a time; 0: all
	Steps    []Step
	Wait     time.Duration // after its last step
}

// Step is one step as the file has it.
type Step struct {
	Kind    Kind   `json:"kind"`
	Name    string `json:"name,omitempty"`
	Machine string `json:"machine,omitempty"`
	In      []Mode `json:"-"` // nil: every mode

	Timeout   time.Duration `json:"timeout,omitempty"` // of one attempt; of a check: of all
	Retries   int           `json:"retries,omitempty"` // attempts after the first
	Pause     time.Duration `json:"pause,omitempty"`   // before each of them, and between looks of a check
	OnFailure Policy        `json:"on_failure,omitempty"`

	How        string            `json:"how,omitempty"`     // stop: shutdown or off
	Address    string            `json:"address,omitempty"` // ping: host; tcp: HOST:PORT; reip: CIDR
	URL        string            `json:"url,omitempty"`
	Status     int               `json:"status,omitempty"`
	Contains   string            `json:"contains,omitempty"`
	Argv       []string          `json:"argv,omitempty"`
	Check      []string          `json:"check,omitempty"`      // script: exits 0 if it has happened
	Idempotent bool              `json:"idempotent,omitempty"` // script: may be repeated
	Text       string            `json:"text,omitempty"`
	Interfaces map[string]string `json:"interfaces,omitempty"` // network: interface to network
	Interface  string            `json:"interface,omitempty"`
	Gateway    string            `json:"gateway,omitempty"`
	DNS        []string          `json:"dns,omitempty"`
}

// Repeatable reports whether the step may be done a second time when nobody can
// tell whether it was done.
func (s Step) Repeatable() bool {
	return s.Kind != Script || s.Idempotent || len(s.Check) > 0
}

// defaultTimeouts are those of one attempt.
var defaultTimeouts = map[Kind]time.Duration{
	Start: 5 * time.Minute, Stop: 2 * time.Minute, Agent: 5 * time.Minute, Ping: 2 * time.Minute, TCP: 2 * time.Minute, HTTP: 2 * time.Minute,
	Program: 2 * time.Minute, Script: time.Minute, Network: time.Minute, ReIP: time.Minute, Notify: 30 * time.Second,
}
