package replicator

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/replicator/transport/stormtest"
)

// heal takes away all that a person or the world put in the way.
func (w *simulation) heal() error {
	w.say("all heals")
	w.healAll()
	w.net.Set(stormtest.Weather{Least: 5 * time.Millisecond, Most: 10 * time.Millisecond})
	for _, s := range w.sites {
		s.disk.Slow(0)
		s.disk.Full(false)
		clear(s.without)
		if !s.up() {
			if err := s.boot(); err != nil {
				return err
			}
			continue
		}
		if err := s.rep.SetPeers(s.peers()); err != nil {
			return err
		}
		for _, p := range s.peers() {
			if err := s.rep.SetLimit(p.Name, 0, 0); err != nil {
				return err
			}
		}
	}
	return nil
}

// eventually lets time pass until ok holds; that it comes to hold is what is checked.
func (w *simulation) eventually(what string, ok func() error) error {
	const patient = 5 * time.Minute
	begun := time.Now()
	for {
		err := ok()
		if err == nil {
			w.say("%s", what)
			return nil
		}
		if time.Since(begun) > patient {
			return fmt.Errorf("not within %v: %s: %w", patient, what, err)
		}
		if err := w.pass(time.Second); err != nil {
			return err
		}
	}
}

// resolve has a person decide: the newest primary leads. That both branches exclude each
// other must have been found, at both ends, before anybody asked.
func (w *simulation) resolve(g *simGroup) error {
	if err := w.heal(); err != nil {
		return err
	}
	var old []*simSite
	for _, s := range w.primaries(g) {
		if s == g.leader {
			continue
		}
		old = append(old, s)
		err := w.eventually(fmt.Sprintf("%s: %s and %s see that both wrote", g.name, g.leader.name, s.name), func() error {
			if g.leader.conflicted(g) == 0 || s.conflicted(g) == 0 {
				return fmt.Errorf("%d conflicts at %s, %d at %s", g.leader.conflicted(g), g.leader.name, s.conflicted(g), s.name)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	for _, s := range old {
		w.say("%s: %s is a replica from now on", g.name, s.name)
		s.setRole(g, simRole{})
		if err := errors.Join(s.down(), s.boot()); err != nil {
			return err
		}
	}
	highest := uint64(0)
	for _, s := range w.sites {
		highest = max(highest, s.held[g].Head().Number)
	}
	if highest >= g.leader.held[g].Head().Number && len(old) > 0 { // an epoch above all that there are
		if err := w.begin(g.leader, g, journal.Position{}, highest+1); err != nil {
			return err
		}
	}
	return w.part(g)
}

// part begins anew who cannot follow the leader: who holds a reign that the leader's
// history does not go back to, or has thinned away where it parted from it.
func (w *simulation) part(g *simGroup) error {
	lineage := g.leader.held[g].Lineage()
	for _, s := range w.sites {
		ours := s.held[g].Lineage()
		if s == g.leader || len(ours) == 0 {
			continue
		}
		if w.follows(s, g, lineage, ours) {
			continue
		}
		w.say("%s: %s begins anew", g.name, s.name)
		if err := s.down(); err != nil {
			return err
		}
		delete(s.floor, g)
		if err := errors.Join(s.disk.Remove(g.name), s.boot()); err != nil {
			return err
		}
	}
	return nil
}

// follows reports that a site can go on from where its history parts from the leader's.
func (w *simulation) follows(s *simSite, g *simGroup, leader, ours journal.Lineage) bool {
	end := ours[len(ours)-1]
	for _, i := range leader {
		if i.Epoch != end.Epoch {
			continue
		}
		if end.Last <= i.Last {
			return true
		}
		v, err := s.held[g].View(context.Background(), journal.Point{Position: journal.Position{Epoch: i.Epoch, Seq: i.Last}})
		return err == nil && v.Close() == nil
	}
	return false
}

// settle heals the world, and waits until all that should be level is.
func (w *simulation) settle() error {
	for _, g := range w.groups {
		if err := w.resolve(g); err != nil {
			return err
		}
	}
	if err := w.eventually("all are level", w.level); err != nil {
		return err
	}
	for _, g := range w.groups {
		for _, s := range w.sites {
			if err := w.images(s, g); err != nil {
				return err
			}
		}
	}
	return nil
}

// level says who lacks what.
func (w *simulation) level() error {
	for _, s := range w.sites {
		for _, l := range s.rep.Lags() {
			if l.Direction == Outbound && !idle(l) && (!l.Known || l.Records > 0 || l.Bytes > 0 || l.State != StateStreaming || l.RPO > 10*time.Second) {
				return fmt.Errorf("%s to %s: %v, %d records, %d bytes and %v behind: %v", s.name, l.Peer, l.State, l.Records, l.Bytes, l.RPO, l.Err)
			}
		}
	}
	for _, g := range w.groups {
		want := g.leader.held[g].Head().Durable
		for _, s := range w.sites {
			if got := s.held[g].Head().Durable; got != want && s.fed(g) {
				return fmt.Errorf("%s holds %s up to %s, its leader to %s", s.name, g.name, got.Position, want.Position)
			}
		}
	}
	return nil
}

// idle is of a relay whom nobody needs: its peer has what it has from another site, or reigns.
func idle(l Lag) bool {
	return l.Relayed && l.State == StateRefused && (errors.Is(l.Err, ErrSourced) || errors.Is(l.Err, ErrNotReplica))
}

// fed reports that somebody sends g to s.
func (s *simSite) fed(g *simGroup) bool {
	for _, p := range s.w.sites {
		for _, to := range p.roles[g].peers {
			if to == s {
				return true
			}
		}
	}
	return false
}

// images reads points of g at s and compares them with what was recorded.
func (w *simulation) images(s *simSite, g *simGroup) error {
	j, ctx := s.held[g], context.Background()
	spans, err := j.Spans(ctx)
	if err != nil {
		return err
	}
	var at []journal.Position
	for _, sp := range spans {
		at = append(at, sp.Last)
		if n := sp.Last.Seq - sp.First.Seq; n > 0 {
			at = append(at, sp.First, g.within(j.Lineage(), sp.First.Seq+journal.Seq(w.rng.Uint64N(uint64(n)))))
		}
	}
	w.rng.Shuffle(len(at), func(i, j int) { at[i], at[j] = at[j], at[i] })
	const looked = 8
	tails := at[:min(len(at), looked)]
	for _, b := range j.Branches() { // also of those that were left
		tails = append(tails, b.Last.Position)
	}
	for _, p := range tails {
		if err := w.image(ctx, s, g, p); err != nil {
			return fmt.Errorf("%s at %s as of %s: %w", g.name, s.name, p, err)
		}
	}
	return nil
}

func (g *simGroup) within(l journal.Lineage, seq journal.Seq) journal.Position {
	i, _ := l.Owner(seq)
	return journal.Position{Epoch: i.Epoch, Seq: seq}
}

func (w *simulation) image(ctx context.Context, s *simSite, g *simGroup, p journal.Position) error {
	if p.IsZero() {
		return nil
	}
	state := g.states[p]
	if state == nil {
		return errors.New("nobody recorded that")
	}
	v, err := s.held[g].View(ctx, journal.Point{Position: p})
	if errors.Is(err, journal.ErrReclaimed) {
		return nil // thinned, or skipped by a delta
	}
	if err != nil {
		return err
	}
	defer v.Close()
	for i, vol := range g.vols {
		b := make([]byte, vol.Size)
		if err := v.ReadAt(ctx, vol.ID, b, 0); err != nil {
			return err
		}
		if at := state.Differs(i, b); at >= 0 {
			return fmt.Errorf("%s differs from what was written from byte %d on", vol.Name, at)
		}
	}
	return nil
}
