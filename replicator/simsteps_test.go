package replicator

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/journal/journaltest"
)

// simStep is something that can happen; do reports that it could not just now.
type simStep struct {
	weight int
	do     func(w *simulation) error
}

var errNotNow = errors.New("not now")

var simSteps = []simStep{
	{60, (*simulation).write},
	{6, (*simulation).cutWay},
	{8, (*simulation).healWay},
	{6, (*simulation).forget},
	{3, func(w *simulation) error { w.weather(); return nil }},
	{5, (*simulation).losePower},
	{12, (*simulation).bootOne},
	{4, (*simulation).slowDisk},
	{3, (*simulation).fullDisk},
	{6, (*simulation).fold},
	{3, (*simulation).coalesce},
	{3, (*simulation).limit},
	{4, (*simulation).removePeer},
	{2, (*simulation).newEpoch},
	{3, (*simulation).promote},
	{3, (*simulation).resolveOne},
}

// step does something that can be done.
func (w *simulation) step() error {
	total := 0
	for _, s := range simSteps {
		total += s.weight
	}
	for {
		x := w.rng.IntN(total)
		for _, s := range simSteps {
			if x -= s.weight; x < 0 {
				if err := s.do(w); !errors.Is(err, errNotNow) {
					return err
				}
				break
			}
		}
	}
}

// one is one of those for which ok holds.
func one[T any](rng *rand.Rand, of []T, ok func(T) bool) (T, error) {
	var fit []T
	for _, x := range of {
		if ok(x) {
			fit = append(fit, x)
		}
	}
	if len(fit) == 0 {
		var none T
		return none, errNotNow
	}
	return fit[rng.IntN(len(fit))], nil
}

// reign is one group at one of its primaries that is up.
func (w *simulation) reign() (*simSite, *simGroup, error) {
	g := w.groups[w.rng.IntN(len(w.groups))]
	s, err := one(w.rng, w.primaries(g), (*simSite).up)
	return s, g, err
}

// write is a few writes of a guest, which share a frame where the journal likes.
func (w *simulation) write() error {
	s, g, err := w.reign()
	if err != nil {
		return err
	}
	n := 1 + w.rng.IntN(4)
	var evs []cbt.Event
	var ops []journaltest.Op
	for range n {
		v := w.rng.IntN(len(g.vols))
		cells := g.vols[v].Size / cbt.SectorBytes
		at := w.rng.Int64N(cells)
		length := min(1+w.rng.Int64N(24), cells-at)
		e := cbt.Extent{Offset: at * cbt.SectorBytes, Length: length * cbt.SectorBytes}
		ev := cbt.Event{Kind: cbt.EventWrite, Volume: g.vols[v].ID, Extent: e}
		op := journaltest.Op{Kind: journaltest.Write, Volume: v, Off: e.Offset, Len: e.Length}
		switch w.rng.IntN(12) {
		case 0:
			ev.Kind, op.Kind = cbt.EventZero, journaltest.Zero
		case 1:
			ev.Kind, op.Kind = cbt.EventTrim, journaltest.Trim
		default:
			ev.Data = make([]byte, e.Length)
			for i := range ev.Data {
				ev.Data[i] = byte(w.rng.Uint32())
				if i%512 > 64 {
					ev.Data[i] = ev.Data[i-64]
				}
			}
			op.Data = slices.Clone(ev.Data)
		}
		evs, ops = append(evs, ev), append(ops, op)
	}
	w.say("%s: %d writes at %s", g.name, n, s.name)
	return w.record(s, g, evs, ops)
}

// twoSites are two different ones.
func (w *simulation) twoSites() (*simSite, *simSite) {
	i := w.rng.IntN(len(w.sites))
	k := (i + 1 + w.rng.IntN(len(w.sites)-1)) % len(w.sites)
	return w.sites[i], w.sites[k]
}

func (w *simulation) cutWay() error {
	a, b := w.twoSites()
	if w.cut[[2]*simSite{a, b}] {
		return errNotNow
	}
	ways := [][2]*simSite{{a, b}, {b, a}}[:1+w.rng.IntN(2)]
	for _, way := range ways {
		w.say("cut %s→%s", way[0].name, way[1].name)
		w.cut[way] = true
		w.net.Cut(way[0].address(), way[1].address())
	}
	return nil
}

func (w *simulation) healWay() error {
	if len(w.cut) == 0 {
		return errNotNow
	}
	w.healAll()
	return nil
}

func (w *simulation) healAll() {
	for _, a := range w.sites {
		for _, b := range w.sites {
			if w.cut[[2]*simSite{a, b}] {
				w.say("heal %s→%s", a.name, b.name)
				w.net.Heal(a.address(), b.address())
			}
		}
	}
	clear(w.cut)
}

// forget makes one end forget its connections with another site.
func (w *simulation) forget() error {
	a, b := w.twoSites()
	w.say("%s forgets its connections with %s", a.name, b.name)
	w.net.Break(a.address(), b.address())
	return nil
}

// losePower takes a site down, some operations of its disk from now at the latest.
func (w *simulation) losePower() error {
	s, err := one(w.rng, w.sites, (*simSite).up)
	if err != nil {
		return err
	}
	percent := []int{0, 50, 100}[w.rng.IntN(3)]
	if w.rng.IntN(2) == 0 {
		w.say("%s loses power, %d %% of what is not synced stays", s.name, percent)
		s.crash(percent)
		return nil
	}
	ops := w.rng.IntN(60)
	w.say("%s loses power within %d operations of its disk, %d %% of what is not synced stays", s.name, ops, percent)
	s.disk.LoseAfter(ops, percent, rand.New(rand.NewPCG(w.seed, uint64(s.age))), func() { w.net.Unplug(s.address()) })
	for range 3 {
		if err := w.write(); err != nil && !errors.Is(err, errNotNow) {
			return err
		}
		if err := w.pass(w.pause()); err != nil {
			return err
		}
	}
	s.crashSoon(percent)
	return nil
}

func (w *simulation) bootOne() error {
	s, err := one(w.rng, w.sites, func(s *simSite) bool { return !s.up() })
	if err != nil {
		return err
	}
	w.say("%s comes back", s.name)
	return s.boot()
}

func (w *simulation) slowDisk() error {
	s := w.sites[w.rng.IntN(len(w.sites))]
	d := time.Duration(w.rng.IntN(400)) * time.Millisecond
	if w.rng.IntN(3) == 0 {
		d = 0
	}
	w.say("%s's disk syncs in %v", s.name, d)
	s.disk.Slow(d)
	return nil
}

// fullDisk fills the disk of a site that leads nothing, or makes room there.
func (w *simulation) fullDisk() error {
	s, err := one(w.rng, w.sites, func(s *simSite) bool { return s.up() && !s.leads() })
	if err != nil {
		return err
	}
	full := w.rng.IntN(2) == 0
	w.say("%s's disk is full: %v", s.name, full)
	s.disk.Full(full)
	return nil
}

// fold thins the history of a group at a site, and keeps what peers lack within a hold.
func (w *simulation) fold() error {
	s, err := one(w.rng, w.sites, (*simSite).up)
	if err != nil {
		return err
	}
	g := w.groups[w.rng.IntN(len(w.groups))]
	j := s.held[g]
	if j.Head().IsZero() || s.disk.IsFull() {
		return errNotNow
	}
	m := journal.Maintenance{FoldBytes: 1, TrustClock: true,
		Retention: journal.Retention{Ladder: []journal.Rung{{For: time.Duration(1+w.rng.IntN(8000)) * time.Millisecond}, {Every: 10 * time.Second}}}}
	hold := time.Duration(w.rng.IntN(20)) * time.Second
	for _, l := range s.rep.Lags() {
		if l.Identity == g.id && l.Direction == Outbound && l.Known && l.RPO < hold {
			m.References = append(m.References, journal.Reference{Kind: journal.ReferenceCursor, Name: l.Peer, At: l.Durable.Position})
		}
	}
	w.say("%s: fold at %s, all for %v, hold %v", g.name, s.name, m.Ladder[0].For, hold)
	if _, err := j.Maintain(context.Background(), m); err != nil && !errors.Is(err, journal.ErrBusy) {
		return fmt.Errorf("fold at %s: %w", s.name, err)
	}
	return nil
}

func (w *simulation) coalesce() error {
	s := w.sites[w.rng.IntN(len(w.sites))]
	s.setBehind([]time.Duration{0, time.Second, 5 * time.Second}[w.rng.IntN(3)])
	w.say("%s coalesces what is behind by %v", s.name, s.behind)
	if s.up() {
		s.rep.Refresh()
	}
	return nil
}

func (w *simulation) limit() error {
	a, b := w.twoSites()
	if !a.up() || a.without[b] {
		return errNotNow
	}
	rate := []int64{0, 4 << 10, 32 << 10, 256 << 10}[w.rng.IntN(4)]
	w.say("%s sends %d bytes a second to %s", a.name, rate, b.name)
	return a.rep.SetLimit(b.name, rate, 0)
}

// removePeer removes a peer, or puts it back.
func (w *simulation) removePeer() error {
	a, b := w.twoSites()
	a.without[b] = !a.without[b]
	w.say("%s has peer %s: %v", a.name, b.name, !a.without[b])
	if a.up() {
		return a.rep.SetPeers(a.peers())
	}
	return nil
}

// newEpoch begins an epoch at a primary, at its end or some records before it.
func (w *simulation) newEpoch() error {
	s, g, err := w.reign()
	if err != nil {
		return err
	}
	at := w.forkPoint(s, g)
	w.say("%s: %s goes on at record %d", g.name, s.name, at.Seq)
	if err = w.begin(s, g, at, 0); errors.Is(err, journal.ErrReclaimed) {
		return w.begin(s, g, journal.Position{}, 0)
	}
	return err
}

// forkPoint is the durable end of g at s, or a record before it.
func (w *simulation) forkPoint(s *simSite, g *simGroup) journal.Position {
	j := s.held[g]
	at := j.Head().Durable.Position
	back := journal.Seq(0)
	if w.rng.IntN(2) == 0 {
		back = journal.Seq(w.rng.IntN(8))
	}
	for _, i := range j.Lineage() {
		if from := j.Usage().FramesFrom.Seq; i.First+back <= at.Seq && at.Seq-back <= i.Last && at.Seq-back >= max(i.First, from, g.first()) {
			return journal.Position{Epoch: i.Epoch, Seq: at.Seq - back}
		}
	}
	return at
}

// first is the first record at which all volumes are there.
func (g *simGroup) first() journal.Seq { return 1 + journal.Seq(len(g.vols)) }

// promote makes a replica the primary; the old one goes on reigning, or hears of it.
func (w *simulation) promote() error {
	g := w.groups[w.rng.IntN(len(w.groups))]
	if len(w.primaries(g)) > 1 {
		return errNotNow
	}
	s, err := one(w.rng, w.sites, func(s *simSite) bool {
		return s.up() && !s.roles[g].primary && s.held[g].Head().Durable.Seq >= g.first() && !s.disk.IsFull()
	})
	if err != nil {
		return err
	}
	at := w.forkPoint(s, g)
	w.say("%s: %s is promoted at record %d", g.name, s.name, at.Seq)
	return w.lead(s, g, at)
}

// lead makes s the primary of g from a record on.
func (w *simulation) lead(s *simSite, g *simGroup, at journal.Position) error {
	err := w.begin(s, g, at, 0)
	if end := s.held[g].Head().Durable.Position; errors.Is(err, journal.ErrReclaimed) && at != end {
		w.say("that is thinned: at record %d", end.Seq)
		err = w.begin(s, g, end, 0)
	}
	if err != nil {
		return fmt.Errorf("promote %s: %w", s.name, err)
	}
	others := slices.DeleteFunc(slices.Clone(w.sites), func(p *simSite) bool { return p == s })
	s.setRole(g, simRole{primary: true, peers: others})
	for _, p := range others {
		if !p.roles[g].primary { // it followed the old primary, and may have fed others
			p.setRole(g, simRole{})
		}
		p.forgetConflicts(g)
		if p.up() {
			p.rep.Refresh()
		}
	}
	s.forgetConflicts(g)
	g.leader = s
	s.rep.Refresh()
	return nil
}

// resolveOne has a person decide for a group with two primaries.
func (w *simulation) resolveOne() error {
	g, err := one(w.rng, w.groups, func(g *simGroup) bool { return len(w.primaries(g)) > 1 })
	if err != nil {
		return err
	}
	return w.resolve(g)
}
