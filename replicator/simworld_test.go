package replicator

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing/synctest"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/journal/journaltest"
	"github.com/novacron/afterimage/replicator/transport/stormtest"
)

// simNames are the sites there can be.
var simNames = []string{"a", "b", "c", "d"}

// simIdentities are made once: keys cost more than a world.
var simIdentities = sync.OnceValue(func() []*Identity {
	var ids []*Identity
	for range simNames {
		id, err := NewIdentity()
		if err != nil {
			panic(err)
		}
		ids = append(ids, id)
	}
	return ids
})

// simulation is one world. All of it but what says so belongs to the driver, the one
// goroutine that runs run.
type simulation struct {
	seed   uint64
	rng    *rand.Rand
	plant  faults
	net    *stormtest.Network
	sites  []*simSite
	groups []*simGroup
	begun  time.Time

	shape        simShape
	cut          map[[2]*simSite]bool
	lines        []string
	plan, course hash.Hash64
}

// simGroup is a group, and the model of its histories: what every record there ever was
// left, whoever holds it.
type simGroup struct {
	id     journal.Identity
	name   string
	vols   []cbt.Volume
	leader *simSite // whose history counts in the end

	states  map[journal.Position]*journaltest.State
	times   map[journal.Position]time.Time // when it was answered
	parents map[journal.EpochID]journal.Position
	numbers map[journal.EpochID]uint64
	reigned map[journal.EpochID]*simSite
	chains  map[journal.Position]journal.Chain // of frames' ends, as first seen
}

func newSimulation(seed uint64, plant faults, ids []*Identity) *simulation {
	w := &simulation{seed: seed, rng: rand.New(rand.NewPCG(seed, 11)), plant: plant, net: stormtest.New(seed), begun: time.Now(),
		cut: map[[2]*simSite]bool{}, plan: fnv.New64a(), course: fnv.New64a()}
	n := 2 + w.rng.IntN(2)
	w.shape = w.drawShape(n)
	if w.shape == shapeDiamond {
		n = 4
	}
	for i, name := range simNames[:n] {
		w.sites = append(w.sites, w.newSite(name, ids[i]))
	}
	groups := 1
	if w.rng.IntN(4) == 0 {
		groups = 2
	}
	for i := range groups {
		w.groups = append(w.groups, w.newGroup(i))
	}
	w.weather()
	return w
}

func (w *simulation) newGroup(i int) *simGroup {
	g := &simGroup{id: journal.Identity{Tenant: cbt.NewID(), Group: cbt.NewID(), Stream: cbt.NewID()}, name: fmt.Sprintf("g%d", i),
		states: map[journal.Position]*journaltest.State{}, times: map[journal.Position]time.Time{},
		parents: map[journal.EpochID]journal.Position{}, numbers: map[journal.EpochID]uint64{}, reigned: map[journal.EpochID]*simSite{}, chains: map[journal.Position]journal.Chain{}}
	for v := range 1 + w.rng.IntN(2) {
		g.vols = append(g.vols, cbt.Volume{ID: cbt.VolumeID(cbt.NewID()), Name: fmt.Sprintf("v%d", v), Size: 128<<10 - int64(v)*512})
	}
	order := slices.Clone(w.sites)
	w.rng.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	g.leader = order[0]
	for _, s := range order {
		s.roles[g] = &simRole{}
	}
	g.leader.roles[g].primary = true
	line := len(order) == 3 && w.rng.IntN(2) == 0
	switch to := func(i int, peers ...*simSite) { order[i].roles[g].peers = peers }; {
	case w.shape == shapeDiamond:
		to(0, order[1], order[2])
		to(1, order[3])
		to(2, order[3])
	case w.shape == shapeRing:
		to(0, order[1])
		to(1, order[2])
		to(2, order[0])
	case w.shape == shapeMesh:
		to(0, order[1:]...)
		to(1, order[2])
		to(2, order[1])
	case line:
		to(0, order[1])
		to(1, order[2])
	default:
		to(0, order[1:]...)
	}
	return g
}

// simShape is how groups go from site to site where there are relays.
type simShape int

const (
	shapeOther   simShape = iota // to all from the primary, or one after the other
	shapeDiamond                 // by two ways to the fourth
	shapeRing                    // back to the primary
	shapeMesh                    // from the primary to both others, and between these
)

// drawShape draws one of its own, so that what else a seed says stays what it is.
func (w *simulation) drawShape(sites int) simShape {
	x := rand.New(rand.NewPCG(w.seed, 12)).IntN(8)
	switch {
	case x == 0:
		return shapeDiamond
	case x < 3 && sites == 3:
		return shapeRing
	case x == 3 && sites == 3:
		return shapeMesh
	}
	return shapeOther
}

// weather is one of several, now and then a foul one.
func (w *simulation) weather() {
	x := stormtest.Weather{Least: time.Duration(1+w.rng.IntN(20)) * time.Millisecond}
	x.Most = x.Least + time.Duration(w.rng.IntN(100))*time.Millisecond
	if w.rng.IntN(2) == 0 {
		x.LossPercent = w.rng.IntN(30)
	}
	w.net.Set(x)
	w.say("pieces take %v to %v, %d %% are lost", x.Least, x.Most, x.LossPercent)
}

// say notes what happens.
func (w *simulation) say(format string, a ...any) {
	line := fmt.Sprintf("%9.3f s  %s", time.Since(w.begun).Seconds(), fmt.Sprintf(format, a...))
	fmt.Fprintln(w.plan, line)
	w.lines = append(w.lines, line)
}

// saw notes how things stand.
func (w *simulation) saw(format string, a ...any) {
	line := fmt.Sprintf(format, a...)
	fmt.Fprintln(w.course, line)
	w.lines = append(w.lines, "             "+line)
}

// story is the newest of what happened.
func (w *simulation) story() string {
	const most = 4000
	return strings.Join(w.lines[max(0, len(w.lines)-most):], "\n")
}

// run lives through the seed's world.
func (w *simulation) run() error {
	for _, s := range w.sites {
		if err := s.boot(); err != nil {
			return err
		}
	}
	for _, g := range w.groups {
		w.say("%s: %s", g.name, w.topology(g))
	}
	steps := 40 + w.rng.IntN(110)
	for range steps {
		if err := w.step(); err != nil {
			return err
		}
		if err := w.pass(w.pause()); err != nil {
			return err
		}
	}
	return w.settle()
}

// pause is how long nothing is done after a step: mostly less than anything takes,
// sometimes longer than all that is patient.
func (w *simulation) pause() time.Duration {
	most := []time.Duration{20 * time.Millisecond, 200 * time.Millisecond, 2 * time.Second, 2 * time.Second, 12 * time.Second}[w.rng.IntN(5)]
	return time.Duration(w.rng.Int64N(int64(most))) + time.Microsecond
}

// pass lets time pass, and looks at what must hold.
func (w *simulation) pass(d time.Duration) error {
	<-time.After(d)
	synctest.Wait()
	return w.check()
}

func (w *simulation) topology(g *simGroup) string {
	var parts []string
	for _, s := range w.sites {
		r := s.roles[g]
		what := s.name
		if r.primary {
			what += "*"
		}
		if len(r.peers) > 0 {
			what += "→" + names(r.peers)
		}
		parts = append(parts, what)
	}
	return strings.Join(parts, " ")
}

func names(sites []*simSite) string {
	var ns []string
	for _, s := range sites {
		ns = append(ns, s.name)
	}
	return strings.Join(ns, ",")
}

// primaries are the sites that reign over g, or think so.
func (w *simulation) primaries(g *simGroup) []*simSite {
	var ps []*simSite
	for _, s := range w.sites {
		if s.roles[g].primary {
			ps = append(ps, s)
		}
	}
	return ps
}

// begin starts a reign of s over g at parent (zero: the head), and notes it.
func (w *simulation) begin(s *simSite, g *simGroup, parent journal.Position, atLeast uint64) error {
	ctx := context.Background()
	j := s.held[g]
	writer, err := j.BeginEpoch(ctx, s.name, parent, atLeast)
	if err != nil {
		return err
	}
	s.writers[g] = writer
	e := writer.Epoch()
	g.parents[e.ID], g.numbers[e.ID], g.reigned[e.ID] = e.Parent.Position, e.Number, s
	state := g.states[e.Parent.Position]
	first := state == nil
	if first {
		var sizes []int64
		for _, v := range g.vols {
			sizes = append(sizes, v.Size)
		}
		state = journaltest.Empty(sizes...)
		for _, v := range g.vols {
			if err := writer.AddVolume(ctx, v); err != nil {
				return err
			}
		}
	}
	head := j.Head().Position
	for seq := e.Parent.Seq + 1; seq <= head.Seq; seq++ {
		g.note(journal.Position{Epoch: e.ID, Seq: seq}, state)
	}
	var synced []cbt.Event
	for _, v := range g.vols {
		synced = append(synced, cbt.Event{Kind: cbt.EventSynced, Volume: v.ID})
	}
	return w.record(s, g, synced, make([]journaltest.Op, len(synced)))
}

func (g *simGroup) note(p journal.Position, state *journaltest.State) {
	g.states[p], g.times[p] = state, time.Now()
}

// record puts events at the head of g at s, together, and the model's view of them.
func (w *simulation) record(s *simSite, g *simGroup, evs []cbt.Event, ops []journaltest.Op) error {
	ctx := context.Background()
	j := s.held[g]
	at := j.Head().Position
	state := g.states[at]
	if state == nil {
		return fmt.Errorf("%s ends %s at %s, which nobody recorded", s.name, g.name, at)
	}
	var pending []cbt.Pending
	var noted []journal.Position
	for i, ev := range evs {
		p, err := s.writers[g].Record(ctx, ev)
		if err != nil {
			return fmt.Errorf("record at %s: %w", s.name, err)
		}
		pending = append(pending, p)
		if ops[i].Kind != 0 {
			state = state.Then(ops[i])
		}
		at = journal.Position{Epoch: s.writers[g].Epoch().ID, Seq: at.Seq + 1}
		g.states[at] = state
		noted = append(noted, at)
	}
	var errs []error
	for _, p := range pending {
		errs = append(errs, p.Wait(ctx))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("record at %s: %w", s.name, err)
	}
	for _, p := range noted {
		g.times[p] = time.Now() // answered: before, nobody counts on it
	}
	if got := j.Head().Position; got != at {
		return fmt.Errorf("%s ends %s at %s after %d records, want %s", s.name, g.name, got, len(evs), at)
	}
	return nil
}
