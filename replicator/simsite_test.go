package replicator

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"sync"
	"testing/synctest"
	"time"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/journal/disktest"
)

// simRole is what a site is to a group, by its own configuration.
type simRole struct {
	primary bool
	peers   []*simSite // who gets it from here
}

// simSite is one installation. held, roles and limits change under mu, for the replicator
// asks for them; the driver alone changes anything.
type simSite struct {
	w        *simulation
	name     string
	identity *Identity
	disk     *disktest.Disk
	mode     journal.SyncMode
	compress journal.Compression
	lines    int // connections that a session may use
	skew     time.Duration
	drift    float64 // seconds of its clock that a second takes, less one

	rep     *Replicator
	stop    []func() error // of the life that runs, last first; nil: it is down
	writers map[*simGroup]*journal.Writer
	floor   map[*simGroup][]journal.Branch // what was durable when it went down
	without map[*simSite]bool              // peers that were removed
	behind  time.Duration                  // coalesce
	age     int                            // lives

	mu        sync.Mutex // guards all below
	held      map[*simGroup]*journal.Journal
	roles     map[*simGroup]*simRole
	conflicts map[journal.Identity]int
	alarm     error // a loss that was told of, and cannot be
}

func (w *simulation) newSite(name string, id *Identity) *simSite {
	return &simSite{w: w, name: name, identity: id, disk: disktest.New(), mode: journal.SyncMode(w.rng.IntN(2)), compress: journal.Compression(w.rng.IntN(3)), lines: 1 + w.rng.IntN(4),
		skew: time.Duration(w.rng.Int64N(int64(2*time.Hour))) - time.Hour, drift: (w.rng.Float64() - 0.5) * 180e-6,
		held: map[*simGroup]*journal.Journal{}, writers: map[*simGroup]*journal.Writer{}, floor: map[*simGroup][]journal.Branch{},
		roles: map[*simGroup]*simRole{}, without: map[*simSite]bool{}, conflicts: map[journal.Identity]int{}}
}

func (s *simSite) up() bool        { return s.stop != nil }
func (s *simSite) address() string { return s.name + ":1" }

func (s *simSite) now() time.Time { return s.at(time.Now()) }

// at is what the site's clock shows at a moment.
func (s *simSite) at(t time.Time) time.Time {
	return t.Add(s.skew + time.Duration(float64(t.Sub(s.w.begun))*s.drift))
}

func (s *simSite) options() Options {
	o := Options{Site: s.name, Identity: s.identity, Listen: s.address(), Peers: s.peers(), Transport: s.w.net.Open, Now: s.now,
		HeartbeatInterval: time.Second, PingInterval: 2 * time.Second, IdleTimeout: 6 * time.Second, HandshakeTimeout: 4 * time.Second,
		OpenTimeout: 10 * time.Second, StallTimeout: 20 * time.Second, RetryFirst: 100 * time.Millisecond, RetryLimit: 3 * time.Second,
		HaltRetry: 10 * time.Second, WindowBytes: 128 << 10, MaxConnections: s.lines}
	o.Events.Conflict = func(c *Conflict) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.conflicts[c.Identity]++
		if errors.Is(c, ErrHistoryLost) {
			s.alarm = c
		}
	}
	o.Groups = s.sent
	o.Receive = func(_ string, id journal.Identity, _, _ string) (Replica, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		for g, j := range s.held {
			if g.id == id {
				if s.roles[g].primary {
					return j, ErrNotReplica
				}
				return j, nil
			}
		}
		return nil, ErrUnknownGroup
	}
	return o
}

// sent are the groups that go out from here.
func (s *simSite) sent() []Group {
	s.mu.Lock()
	defer s.mu.Unlock()
	var gs []Group
	for _, g := range s.w.groups {
		j, r := s.held[g], s.roles[g]
		if j == nil || len(r.peers) == 0 {
			continue
		}
		out := Group{Tenant: "t", Name: g.name, Source: JournalSource(j), Relay: !r.primary}
		if s.behind > 0 {
			out.Coalesce = map[string]time.Duration{}
		}
		for _, p := range r.peers {
			out.Peers = append(out.Peers, p.name)
			if s.behind > 0 {
				out.Coalesce[p.name] = s.behind
			}
		}
		gs = append(gs, out)
	}
	return gs
}

func (s *simSite) peers() []Peer {
	var ps []Peer
	for _, p := range s.w.sites {
		if p != s && !s.without[p] {
			ps = append(ps, Peer{Name: p.name, Address: p.address(), Pin: p.identity.Pin()})
		}
	}
	return ps
}

// boot starts a life: journals, then the replicator, then its reigns.
func (s *simSite) boot() error {
	s.age++
	for _, g := range s.w.groups {
		if err := s.open(g); err != nil {
			return fmt.Errorf("boot %s: %w", s.name, err)
		}
	}
	for _, g := range s.w.groups {
		if s.roles[g].primary {
			if err := s.w.begin(s, g, journal.Position{}, 0); err != nil {
				return fmt.Errorf("boot %s: %w", s.name, err)
			}
		}
	}
	rep, err := New(s.options())
	if err != nil {
		return err
	}
	rep.faults = s.w.plant
	life := s.age
	rep.draws = func(what string) func(int64) int64 {
		h := fnv.New64a()
		fmt.Fprint(h, s.w.seed, s.name, life, what)
		return rand.New(rand.NewPCG(h.Sum64(), 1)).Int64N
	}
	s.rep = rep
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- rep.Run(ctx) }()
	s.stop = append(s.stop, func() error {
		cancel()
		return <-done
	})
	synctest.Wait()
	return nil
}

// open opens and runs the journal of one group.
func (s *simSite) open(g *simGroup) error {
	j, err := journal.Open(g.name, journal.Options{FS: s.disk.FS(), Create: &g.id, Sync: s.mode, SegmentBytes: 64 << 10, PoolBytes: -1,
		Compress: s.compress, Now: s.now})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- j.Run(ctx) }()
	s.stop = append(s.stop, func() error {
		cancel()
		return errors.Join(<-done, j.Close())
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held[g] = j
	return nil
}

// down ends the life in order.
func (s *simSite) down() error {
	s.settleFloor()
	var errs []error
	for i := len(s.stop) - 1; i >= 0; i-- {
		errs = append(errs, s.stop[i]())
	}
	s.stop, s.rep = nil, nil
	s.mu.Lock()
	clear(s.held)
	s.mu.Unlock()
	clear(s.writers)
	return errors.Join(errs...)
}

// settleFloor remembers what is durable now: what a next life must find.
func (s *simSite) settleFloor() {
	for g, j := range s.held {
		s.floor[g] = j.Branches()
	}
}

// crash ends the life without a word. What was not synced is lost but for so many per
// cent; 100 is a process that is killed.
func (s *simSite) crash(percent int) {
	s.w.net.Unplug(s.address())
	left := s.disk.Loss(percent, rand.New(rand.NewPCG(s.w.seed, uint64(s.age))))
	_ = s.down() // what it does from here on nobody sees
	s.disk = left
}

// crashSoon ends a life whose disk may have lost power by now.
func (s *simSite) crashSoon(percent int) {
	left := s.disk.Lost()
	if left == nil {
		s.crash(percent)
		return
	}
	_ = s.down()
	clear(s.floor) // not known: it died since anybody looked
	s.disk = left
}

func (s *simSite) leads() bool {
	for _, r := range s.roles {
		if r.primary {
			return true
		}
	}
	return false
}

func (s *simSite) setRole(g *simGroup, r simRole) {
	s.mu.Lock()
	defer s.mu.Unlock()
	*s.roles[g] = r
}

func (s *simSite) setBehind(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.behind = d
}

func (s *simSite) alarmed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.alarm
}

// conflicted is how often a conflict over g was told of.
func (s *simSite) conflicted(g *simGroup) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conflicts[g.id]
}

func (s *simSite) forgetConflicts(g *simGroup) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conflicts, g.id)
}
