package fence

import (
	"context"
	"strings"
)

// Of is the fence of one of several machines.
type Of struct {
	Machine string
	Fence
}

// Several is the fences of machines that are off together, or not at all.
type Several []Of

// Prove switches every machine off and proves each, or says of which it could not. All
// are read before any switch is thrown, for one of them may be that of their host; and
// those that were proven first are read again at the end, for the proof is of all, and no
// older than that reading: a channel that does not answer then says nothing, whatever it
// saw before, unless the machine's host is seen off, which takes its channels along.
func (s Several) Prove(ctx context.Context) Proof {
	if len(s) == 0 {
		return Proof{Result: Unproven, Why: "no fence is configured"}
	}
	all := make([]*proving, len(s))
	for i, f := range s {
		all[i] = f.proving()
		all[i].read(ctx, ActBefore)
	}
	for i, p := range all {
		if r := p.prove(ctx); r.Result != Off { // the others are left alone: nothing is gained by their end
			return s.joined(all[:i+1])
		}
	}
	for _, p := range all[:len(all)-1] {
		p.read(ctx, ActAgain)
	}
	return s.joined(all)
}

// joined is the proof of all that were tried: off only if each is.
func (s Several) joined(tried []*proving) Proof {
	out := Proof{Result: Off}
	var why []string
	for i, p := range tried {
		one := p.proof()
		if one.Result == Refused || one.Result != Off && out.Result == Off {
			out.Result = one.Result
		}
		why = append(why, s[i].Machine+": "+one.Why)
		out.Seen = append(out.Seen, s.named(i, one.Seen)...)
	}
	if out.Result == Off && len(tried) < len(s) {
		out.Result = Unproven
	}
	out.Why = strings.Join(why, "; ")
	return out
}

// named says of each observation whose it is.
func (s Several) named(i int, seen []Observation) []Observation {
	var out []Observation
	for _, o := range seen {
		o.Channel = s[i].Machine + ": " + o.Channel
		out = append(out, o)
	}
	return out
}

// Look reads and challenges all, and switches nothing.
func (s Several) Look(ctx context.Context) []Observation {
	var out []Observation
	for i, f := range s {
		out = append(out, s.named(i, f.Look(ctx))...)
	}
	return out
}

// Names lists the channels to each, for people.
func (s Several) Names() []string {
	var out []string
	for _, f := range s {
		for _, name := range f.Fence.Names() {
			out = append(out, f.Machine+": "+name)
		}
	}
	return out
}
