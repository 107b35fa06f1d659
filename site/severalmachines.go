package site

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/recovery/fence"
)

// A group of several machines says so in its history: who fails it over must know how
// many there are, and their site is not there to be asked any more.

// companyKey names the record of the group's machines; no machine is called so.
const companyKey = "#machines"

// machinesNow are the machines that run from the group's disks here in this reign, where
// they are several.
func (l *life) machinesNow() []string {
	var names []string
	for _, t := range l.cfg.Taps() {
		names = append(names, t.Guest)
	}
	if len(names) == 0 || l.servesJournal() {
		names = nil
		for _, m := range l.cfg.Machine.Each() {
			names = append(names, m.Name)
		}
	}
	if len(names) < 2 {
		return nil
	}
	return names
}

// severalKey is where the site log keeps that this site told of several machines.
const severalKey = "site/several"

// recordMachines makes the history tell the group's machines, where that is not what it
// tells. A group that always had one has no such record, and its definitions, of which
// there may be many, are not read at each opening to see that.
func (l *life) recordMachines(ctx context.Context, w *journal.Writer) error {
	names, told := l.machinesNow(), false
	if _, err := l.j.Recall(severalKey, &told); err != nil {
		return err
	}
	promoted := l.roleNow().Epoch == w.Epoch().Number // over what another site told
	if len(names) == 0 && !told && !promoted {
		return nil
	}
	was, err := l.recordedMachines(journal.Point{Position: l.j.Head().Position})
	if err == nil && slices.Equal(names, was) {
		return nil // what cannot be read is told again
	}
	text, err := json.Marshal(names)
	if err == nil && len(names) > 0 { // before it is told: that it was is never forgotten
		err = l.j.Remember(severalKey, true)
	}
	if err == nil {
		err = w.Machine(ctx, companyKey, text)
	}
	if err == nil && len(names) == 0 {
		err = l.j.Remember(severalKey, false)
	}
	if err != nil {
		return fmt.Errorf("record machines %s: %w", strings.Join(names, ", "), err)
	}
	return nil
}

// recordedMachines are the group's machines by its history at a point; none where it is
// one, or was never told.
func (l *life) recordedMachines(p journal.Point) (names []string, err error) {
	all, err := l.j.Machines(p)
	if text, told := all[companyKey]; told && err == nil {
		err = json.Unmarshal(text, &names)
	}
	if err != nil {
		return nil, fmt.Errorf("read the machines of %s: %w", l.cfg.Ref(), err)
	}
	return names, nil
}

// prover is the fence of one machine, or of several.
type prover interface {
	Names() []string
	Prove(ctx context.Context) fence.Proof
}

// unprovable is a fence that leaves a machine of the group out: it throws no switch.
type unprovable struct {
	names []string
	why   string
}

func (u unprovable) Names() []string { return u.names }

func (u unprovable) Prove(context.Context) fence.Proof {
	return fence.Proof{Result: fence.Unproven, Why: u.why}
}

// fenced is the fence of the group's machines: of each where each: names them. shared are
// channels that speak for all of them. Where the history cannot say who they are, a fence
// of machines proves nothing, for it may leave one out.
func (l *life) fenced(shared []fence.Channel) prover {
	c, now := l.cfg.Fence, l.site.o.Now
	recorded, err := l.recordedMachines(journal.Point{Position: l.j.Head().Position})
	one := fence.Fence{Channels: append(channelsOf(c), shared...), Now: now}
	switch {
	case c == nil || len(c.Each) == 0 && (err == nil && len(recorded) < 2 || c.OfHost()):
		return one
	case err != nil:
		return unprovable{one.Names(), err.Error()}
	case len(c.Each) == 0:
		return unprovable{one.Names(), fmt.Sprintf("the group is machines %s, and fence: sees one of them: name all in each: of fence:", strings.Join(recorded, ", "))}
	}
	var all fence.Several
	left := slices.Clone(recorded)
	for i := range c.Each {
		e := &c.Each[i]
		all = append(all, fence.Of{Machine: e.Machine, Fence: fence.Fence{Channels: slices.Concat(channelsOf(e), channelsOf(c), shared), Now: now}})
		left = slices.DeleteFunc(left, func(name string) bool { return name == e.Machine })
	}
	if len(left) > 0 {
		return unprovable{all.Names(), fmt.Sprintf("machines %s of the group are not in each: of fence:", strings.Join(left, ", "))}
	}
	return all
}
