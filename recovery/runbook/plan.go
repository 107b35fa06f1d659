package runbook

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Plan is a runbook resolved for one use: its actions in an order in which each
// comes behind all that it waits for.
type Plan struct {
	Runbook string `json:"runbook"`
	File    string `json:"file_sha256"`
	Mode    Mode   `json:"mode"`
	At      string `json:"at,omitempty"` // the moment that groups are brought to
	// Points is what At came to when the plan was made, #EPOCH.SEQ by group; a group that
	// is not in it is brought to At as of its start, which is then latest or latest-app.
	Points  map[string]string `json:"points,omitempty"`
	Actions []Action          `json:"actions"`
	// Estimate is how long it takes by earlier runs; it is not part of the hash.
	Estimate Estimate `json:"estimate"`
	Warnings []string `json:"warnings,omitempty"`
}

// Action is a step of a plan.
type Action struct {
	ID    int    `json:"id"` // its place in Actions
	Boot  string `json:"boot,omitempty"`
	Step  Step   `json:"step"`
	Group string `json:"group,omitempty"` // protected group of the machine
	After []int  `json:"after,omitempty"` // ids, all smaller than its own
	// Span is how long a wait is.
	Span time.Duration `json:"span,omitempty"`
}

// Moment is the --at of a group's start.
func (p Plan) Moment(group string) string {
	if at, ok := p.Points[group]; ok {
		return at
	}
	return p.At
}

// Name is what people call the action.
func (a Action) Name() string {
	if a.Step.Name != "" {
		return a.Step.Name
	}
	return strings.TrimSpace(string(a.Step.Kind) + " " + a.Step.object())
}

// Key names the action across runs, so that times are compared: changed numbers of
// other steps do not change it.
func (a Action) Key() string { return a.Boot + "/" + a.Name() }

// object is what a step is about.
func (s Step) object() string {
	switch s.Kind {
	case Ping, TCP:
		return s.Address
	case HTTP:
		return s.URL
	case Program, Script, Notify:
		if len(s.Argv) > 0 {
			return s.Argv[0]
		}
	case Prompt:
		return fmt.Sprintf("%q", s.Text)
	case ReIP:
		return s.Machine + " " + s.Interface + " to " + s.Address
	}
	return s.Machine
}

// Digest is the hash of a plan: another action, order or value gives another one.
func (p Plan) Digest() string {
	p.Estimate, p.Warnings = Estimate{}, nil
	b, err := json.Marshal(p)
	if err != nil {
		panic(err) // our own structs of strings and numbers
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// NewPlan resolves a checked runbook for a mode. past are the times of earlier runs.
// It is pure.
func NewPlan(b *Runbook, m Mode, at string, past History) Plan {
	sum := sha256.Sum256(b.text)
	p := Plan{Runbook: b.Name, File: hex.EncodeToString(sum[:]), Mode: m, At: at}
	ends := make([][]int, len(b.Boot))
	for _, i := range b.sorted() {
		var after []int
		for _, k := range b.before(i) {
			after = append(after, ends[k]...)
		}
		slices.Sort(after)
		ends[i] = p.boot(b, b.Boot[i], slices.Compact(after))
	}
	if m == Test {
		var all []int
		for _, e := range ends {
			all = append(all, e...)
		}
		slices.Sort(all)
		p.add(Action{Step: Step{Kind: Cleanup, Timeout: 2 * time.Minute, OnFailure: Halt}, After: slices.Compact(all)})
	}
	p.Warnings = warnings(p)
	p.Estimate = estimate(p, past)
	return p
}

// sorted are the boot groups, each behind those that it comes after; else as in the file.
func (b *Runbook) sorted() []int {
	var out []int
	done := map[int]bool{}
	for len(out) < len(b.Boot) {
		grown := false
		for i := range b.Boot {
			if !done[i] && !slices.ContainsFunc(b.before(i), func(k int) bool { return !done[k] }) {
				done[i], grown = true, true
				out = append(out, i)
				break
			}
		}
		if !grown {
			break // a cycle, which Check refuses
		}
	}
	return out
}

func (p *Plan) add(a Action) int {
	a.ID = len(p.Actions)
	p.Actions = append(p.Actions, a)
	return a.ID
}

// boot adds the actions of a boot group and returns those that its end waits for.
// Every machine has a lane. Lanes are dealt to tracks, as many as may go on at once;
// a step without a machine ends all lanes and begins new ones.
func (p *Plan) boot(b *Runbook, g Boot, after []int) []int {
	base := after // what a new lane comes after
	tracks := map[int]int{}
	lanes := map[string]int{}
	ends := func() []int {
		if len(tracks) == 0 {
			return base
		}
		out := slices.Collect(maps.Values(tracks))
		slices.Sort(out)
		return out
	}
	for _, s := range g.Steps {
		if !s.in(p.Mode) {
			continue
		}
		a := Action{Boot: g.Name, Step: b.resolve(s, p.Mode), Group: b.groupOf(s.Machine)}
		if s.Machine == "" {
			a.After = ends()
			base = []int{p.add(a)}
			tracks, lanes = map[int]int{}, map[string]int{}
			continue
		}
		lane, ok := lanes[s.Machine]
		if !ok {
			lane = len(lanes)
			if g.Parallel > 0 {
				lane %= g.Parallel
			}
			lanes[s.Machine] = lane
		}
		a.After = base
		if before, ok := tracks[lane]; ok {
			a.After = []int{before}
		}
		tracks[lane] = p.add(a)
	}
	if g.Wait > 0 {
		return []int{p.add(Action{Boot: g.Name, Step: Step{Kind: Wait, OnFailure: Halt}, Span: g.Wait, After: ends()})}
	}
	return ends()
}

func (b *Runbook) groupOf(machine string) string {
	for _, m := range b.Machines {
		if m.Name == machine {
			return m.Group
		}
	}
	return ""
}

// resolve is s with its defaults and variables.
func (b *Runbook) resolve(s Step, m Mode) Step {
	fill := func(text string) string { return b.fill(text, m) }
	list := func(in []string, from int) []string {
		out := slices.Clone(in)
		for i := from; i < len(out); i++ {
			out[i] = fill(out[i])
		}
		return out
	}
	s.In = nil
	s.Address, s.URL, s.Contains, s.Text = fill(s.Address), fill(s.URL), fill(s.Contains), fill(s.Text)
	s.Interface, s.Gateway, s.DNS = fill(s.Interface), fill(s.Gateway), list(s.DNS, 0)
	s.Argv, s.Check = list(s.Argv, 1), list(s.Check, 1)
	if s.Interfaces != nil {
		filled := map[string]string{}
		for k, v := range s.Interfaces {
			filled[k] = fill(v)
		}
		s.Interfaces = filled
	}
	if s.Timeout == 0 {
		s.Timeout = defaultTimeouts[s.Kind]
	}
	if s.Pause == 0 {
		s.Pause = time.Second
	}
	if s.OnFailure == "" {
		s.OnFailure = Halt
	}
	if s.Kind == Stop && s.How == "" {
		s.How = "shutdown"
	}
	if s.Kind == HTTP && s.Status == 0 {
		s.Status = 200
	}
	return s
}

func warnings(p Plan) []string {
	var out []string
	for _, a := range p.Actions {
		if !a.Step.Repeatable() {
			out = append(out, fmt.Sprintf("step %d, %s: if it is interrupted nobody can tell whether it happened, and a person is asked; give it check: or idempotent: true", a.ID+1, a.Name()))
		}
	}
	if !slices.ContainsFunc(p.Actions, func(a Action) bool { return a.Step.Kind == Start }) {
		out = append(out, "no machine is started in this mode")
	}
	return out
}

// String is the plan for a person.
func (p Plan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "runbook %s, mode %s", p.Runbook, p.Mode)
	if p.At != "" {
		fmt.Fprintf(&b, ", at %s", p.At)
	}
	fmt.Fprintf(&b, "\nplan %s\n\n", p.Digest()[:16])
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "#\tBOOT GROUP\tSTEP\tAFTER\tTIMEOUT\tON FAILURE\tEXPECTED")
	for _, a := range p.Actions {
		after := make([]string, 0, len(a.After))
		for _, id := range a.After {
			after = append(after, fmt.Sprint(id+1))
		}
		timeout := "-"
		if a.Step.Timeout > 0 {
			timeout = a.Step.Timeout.String()
		}
		failure := string(a.Step.OnFailure)
		if n := a.Step.Retries; n > 0 {
			failure = fmt.Sprintf("%d more, then %s", n, failure)
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\t%s\n", a.ID+1, dash(a.Boot), a.shown(), dash(strings.Join(after, ",")), timeout, failure, p.Estimate.of(a.ID))
	}
	w.Flush()
	fmt.Fprintf(&b, "\n%s\n", p.Estimate)
	for _, s := range p.Warnings {
		fmt.Fprintf(&b, "warning: %s\n", s)
	}
	lines := strings.Split(b.String(), "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
	}
	return strings.Join(lines, "\n")
}

func (a Action) shown() string {
	if a.Step.Kind == Wait {
		return "wait " + a.Span.String()
	}
	return a.Name()
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
