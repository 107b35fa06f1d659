package replicator

import (
	"fmt"
	"time"

	"github.com/novacron/afterimage/journal"
)

// check holds the world, at rest, against what must always hold.
func (w *simulation) check() error {
	for _, g := range w.groups {
		for _, s := range w.sites {
			if !s.up() {
				continue
			}
			if err := w.history(s, g); err != nil {
				return fmt.Errorf("%s at %s: %w", g.name, s.name, err)
			}
		}
	}
	for _, s := range w.sites {
		if err := s.alarmed(); err != nil { // nothing that is durable is ever lost here
			return fmt.Errorf("%s raises a false alarm: %w", s.name, err)
		}
		if !s.up() {
			continue
		}
		for _, l := range s.rep.Lags() {
			if err := w.shown(s, l); err != nil {
				return fmt.Errorf("%s shows of %s %s: %w", s.name, l.Peer, l.Direction, err)
			}
		}
	}
	return nil
}

// history: a site holds what was recorded, in that order, from forks that there were,
// and never less than what it once held durably.
func (w *simulation) history(s *simSite, g *simGroup) error {
	head, branches := s.held[g].Head(), s.held[g].Branches()
	if !head.IsZero() && g.states[head.Position] == nil {
		return fmt.Errorf("it ends at %s, which nobody recorded", head.Position)
	}
	for _, b := range branches {
		parent, known := g.parents[b.ID]
		if !known || parent != b.Parent.Position || g.numbers[b.ID] != b.Number {
			return fmt.Errorf("epoch %d goes on at %s, its primary's at %s", b.Number, b.Parent.Position, parent)
		}
	}
	for _, b := range s.floor[g] {
		if !holds(branches, b.Last.Position) {
			return fmt.Errorf("it lacks %s, which was durable", b.Last.Position)
		}
	}
	s.floor[g] = branches
	if d := head.Durable; !d.IsZero() {
		if was, known := g.chains[d.Position]; known && was != d.Chain {
			return fmt.Errorf("the chain value at %s is another than elsewhere", d.Position)
		}
		g.chains[d.Position] = d.Chain
	}
	w.saw("%s %s #%d.%d durable %d", s.name, g.name, head.Number, head.Seq, head.Durable.Seq)
	return nil
}

// holds reports that the record at p is durable where branches are.
func holds(branches []journal.Branch, p journal.Position) bool {
	for _, b := range branches {
		if b.ID == p.Epoch {
			return p.Seq <= max(b.Last.Seq, b.Parent.Seq)
		}
	}
	return p.IsZero() || p.Seq == 0
}

// shown: what a site says of a peer is never better than how it is.
func (w *simulation) shown(s *simSite, l Lag) error {
	g, source, replica := w.ends(s, l)
	if g == nil {
		return fmt.Errorf("a group that there is not")
	}
	floor := replica.floor[g]
	if floor == nil {
		return nil // it died since anybody looked, and nobody knows with what
	}
	if l.Direction == Outbound {
		w.saw("%s→%s %s %v %d", s.name, l.Peer, g.name, l.State, l.Durable.Seq)
		if l.Err != nil {
			w.lines = append(w.lines, "               "+l.Err.Error()) // ids in it are random
		}
		if !holds(floor, l.Durable.Position) {
			return fmt.Errorf("%s durable, there %s", l.Durable.Position, ends(floor))
		}
	}
	if source = w.primaryOf(source, g, l); source == nil {
		return nil
	}
	lineage, err := w.lineageOf(source, g)
	if err != nil {
		return err
	}
	if l.Direction == Outbound { // a relay counts the records it knows of, but no moment as its own
		if lacks := lacking(s.held[g].Lineage(), floor); l.Records < lacks {
			return fmt.Errorf("%d records behind, it lacks %d", l.Records, lacks)
		}
	}
	first := firstLacking(lineage, floor)
	if first.IsZero() || !l.Known {
		return nil
	}
	if g.reigned[first.Epoch] != source {
		return nil // it came from elsewhere: what is said of it is as of when it came
	}
	answered, known := g.times[first]
	if !known {
		return fmt.Errorf("%s, which nobody recorded", first)
	}
	if loss := s.now().Sub(s.at(answered)); l.RPO < loss-time.Microsecond {
		return fmt.Errorf("an RPO of %v; %s was answered %v ago and is not there: head %s, durable %s, there%s", l.RPO, first, loss, l.Head, l.Durable.Position, ends(floor))
	}
	return nil
}

// primaryOf is who reigns over what s sends: itself or, where it is a relay, who began the
// epoch that s was last known to end with, whatever s says of itself; nil where that one
// reigns no more.
func (w *simulation) primaryOf(s *simSite, g *simGroup, l Lag) *simSite {
	if !s.roles[g].primary {
		s = g.reigned[l.Head.Epoch]
	}
	if s == nil || !s.roles[g].primary {
		return nil
	}
	return s
}

// lineageOf is the history of g at s: where s is down, of what was durable there last.
func (w *simulation) lineageOf(s *simSite, g *simGroup) (journal.Lineage, error) {
	if j := s.held[g]; j != nil {
		return j.Lineage(), nil
	}
	branches := s.floor[g]
	if len(branches) == 0 {
		return nil, nil
	}
	return journal.LineageOf(branches, branches[len(branches)-1].ID)
}

// ends are the two sites that a lag is of.
func (w *simulation) ends(s *simSite, l Lag) (g *simGroup, source, replica *simSite) {
	var peer *simSite
	for _, p := range w.sites {
		if p.name == l.Peer {
			peer = p
		}
	}
	for _, x := range w.groups {
		if x.id == l.Identity {
			g = x
		}
	}
	if l.Direction == Outbound {
		return g, s, peer
	}
	return g, peer, s
}

func ends(branches []journal.Branch) string {
	out := ""
	for _, b := range branches {
		out += fmt.Sprintf(" #%d.%d", b.Number, b.Last.Seq)
	}
	return out
}

// firstLacking is the oldest record of a lineage that is not durable where branches
// are; zero when none is lacking.
func firstLacking(l journal.Lineage, branches []journal.Branch) journal.Position {
	for _, i := range l {
		if i.First > i.Last {
			continue
		}
		if !holds(branches, journal.Position{Epoch: i.Epoch, Seq: i.Last}) {
			first := i.First
			for _, b := range branches {
				if b.ID == i.Epoch {
					first = max(first, b.Last.Seq+1)
				}
			}
			return journal.Position{Epoch: i.Epoch, Seq: first}
		}
	}
	return journal.Position{}
}

// lacking is how many records of a lineage are not durable where branches are.
func lacking(l journal.Lineage, branches []journal.Branch) uint64 {
	first := firstLacking(l, branches)
	if first.IsZero() {
		return 0
	}
	return uint64(l[len(l)-1].Last - first.Seq + 1)
}
