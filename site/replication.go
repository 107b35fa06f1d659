package site

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/replicator"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
)

// idleTimeout is when a session without a sign of life is over. Keep-alives come
// thrice as often; a dead primary must not look alive for long.
const idleTimeout = 5 * time.Second

// newReplicator wires the groups to the peers that have a pin.
func (s *Site) newReplicator() (*replicator.Replicator, error) {
	o := replicator.Options{Site: s.cfg.Site, Identity: s.self(), Listen: s.cfg.Listen, Groups: s.outbound, Receive: s.inbound,
		HeartbeatInterval: s.o.Heartbeat, IdleTimeout: idleTimeout, Now: s.o.Now, Log: s.o.Log.With("part", "replicator"), Events: s.replicatorEvents()}
	o.Inviting, o.Join = s.pairs.inviting, s.joining
	o.Consult, o.Talks = s.consulted, s.talks
	o.Successor, o.Confirmed, o.Seen = s.succeeded, s.nextKeyConfirmed, s.keySeen
	var err error
	if o.Peers, err = s.pairedPeers(); err != nil {
		return nil, err
	}
	return replicator.New(o)
}

// pairedPeers are the peers whose keys are known.
func (s *Site) pairedPeers() ([]replicator.Peer, error) {
	var out []replicator.Peer
	for _, p := range s.cfg.Peers {
		if p = s.pairs.of(p); p.Pin == "" {
			s.o.Log.Warn("peer is not paired: it has no pin", "peer", p.Name)
			continue
		}
		pin, err := replicator.ParsePin(p.Pin)
		if err != nil {
			return nil, err
		}
		limits, err := config.Timetable(p.BWLimit, p.TZ)
		if err != nil {
			return nil, err
		}
		carrier, err := replicator.ParseCarrier(p.Transport)
		if err != nil {
			return nil, err
		}
		packing, err := replicator.ParsePacking(p.Pack)
		if err != nil {
			return nil, err
		}
		var also []replicator.Pin
		if next := s.pairs.nextOf(p.Name); !next.IsZero() {
			also = []replicator.Pin{next}
		}
		out = append(out, replicator.Peer{Name: p.Name, Address: p.Address, Pin: pin, AlsoPins: also, Limits: limits, LimitBytesPerSecond: int64(p.Limit),
			Set: s.pairs.limited(limitKey(p.Name, "")), Carrier: carrier, Packing: packing, MaxConnections: int(p.Connections)})
	}
	return out, nil
}

// replicates reports whether there is anybody to call or to be called by: a site
// alone opens no UDP socket.
func (s *Site) replicates() bool {
	return s.cfg.Listen != "" || len(s.cfg.Peers) > 0
}

// outbound is the groups that this site sends: those that it reigns over, and those
// that it receives and is to relay.
func (s *Site) outbound() []replicator.Group {
	var out []replicator.Group
	for _, g := range s.groups {
		g.mu.Lock()
		l := g.life
		g.mu.Unlock()
		if l == nil {
			continue
		}
		to, relay := l.audience()
		paired := slices.DeleteFunc(slices.Clone(to), func(name string) bool {
			p, ok := s.cfg.Peer(name)
			return !ok || s.pairs.of(p).Pin == ""
		})
		if len(paired) > 0 {
			limits, err := config.Timetable(g.cfg.BWLimit, g.cfg.TZ)
			if err != nil { // checked with the configuration; zones do not go away
				s.o.Log.Error("group is sent without its limit", "group", g.cfg.Ref(), "err", err)
			}
			out = append(out, replicator.Group{Tenant: g.cfg.Tenant, Name: g.cfg.Name, Source: guard{l: l}, Peers: paired, Coalesce: s.coalesce(),
				Limits: limits, Set: s.pairs.limited(limitKey("", g.cfg.Ref())), Weight: int(g.cfg.Priority), Relay: relay})
		}
	}
	return out
}

// audience is who gets the group from this site as things are, and whether it sends on
// what it receives itself.
func (l *life) audience() (peers []string, relay bool) {
	if l.roleNow().Role.Captures() {
		return l.cfg.Peers, false
	}
	return l.lent.with(l.cfg.Relay), true
}

// coalesce is, by peer, how far behind it may be before it gets a delta.
func (s *Site) coalesce() map[string]time.Duration {
	out := make(map[string]time.Duration)
	for _, p := range s.cfg.Peers {
		if p.Coalesce != nil {
			out[p.Name] = time.Duration(p.Coalesce.Behind)
		}
	}
	return out
}

// inbound is the journal for a group that a peer wants to send.
func (s *Site) inbound(peer string, id journal.Identity, tenant, name string) (replicator.Replica, error) {
	for _, g := range s.groups {
		if g.cfg.Tenant != tenant || g.cfg.Name != name || g.id != id {
			continue
		}
		if !slices.Contains(g.cfg.Peers, peer) {
			break
		}
		g.mu.Lock()
		l := g.life
		g.mu.Unlock()
		if l == nil {
			return nil, fmt.Errorf("group %s is not open", g.cfg.Ref())
		}
		if r := l.roleNow().Role; r.Captures() {
			return guard{l: l, from: peer}, fmt.Errorf("%w: it is %s here", replicator.ErrNotReplica, r)
		}
		return guard{l: l, from: peer}, nil
	}
	return nil, fmt.Errorf("%w: %s/%s", replicator.ErrUnknownGroup, tenant, name)
}

// guard lends a life's journal to the replicator: every call counts as a user, so
// that the journal is not closed under it, and ends with the life.
type guard struct {
	l    *life
	from string // of a replica: who sends
}

var (
	_ replicator.Source       = guard{}
	_ replicator.BlockReplica = guard{}
)

func (g guard) enter(ctx context.Context) (context.Context, func(), error) {
	g.l.mu.Lock()
	defer g.l.mu.Unlock()
	if g.l.closing {
		return nil, nil, journal.ErrClosed
	}
	g.l.users.Add(1)
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(g.l.ctx, func() { cancel(errDetached) })
	return ctx, func() { stop(); cancel(nil); g.l.users.Done() }, nil
}

func (g guard) Identity() journal.Identity { return g.l.j.Identity() }

// Head is the journal's, but for a branch that was left.
func (g guard) Head() journal.Head {
	h, _ := g.l.shown(g.l.j.Head(), nil)
	return h
}

// Branches are the journal's, but for what was left.
func (g guard) Branches() []journal.Branch {
	_, b := g.l.shown(g.l.j.Head(), g.l.j.Branches())
	return b
}

func (g guard) AppendFrame(ctx context.Context, r io.Reader, bytes int64, claimed journal.Chain) (journal.Cursor, bool, error) {
	ctx, leave, err := g.enter(ctx)
	if err != nil {
		return journal.Cursor{}, false, err
	}
	defer leave()
	if g.l.roleNow().Role.Captures() {
		return journal.Cursor{}, false, replicator.ErrNotReplica
	}
	at, dup, err := g.l.j.AppendFrame(ctx, r, bytes, claimed)
	return at, dup, g.l.stuck(err)
}

func (g guard) NewestFrame() journal.FramePlace { return g.l.j.NewestFrame() }

func (g guard) ReadFrame(at journal.FramePlace, p []byte, off int64) error {
	_, leave, err := g.enter(context.Background())
	if err != nil {
		return err
	}
	defer leave()
	return g.l.j.ReadFrame(at, p, off)
}

func (g guard) WaitDurable(ctx context.Context, p journal.Position) error {
	ctx, leave, err := g.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	return g.l.j.WaitDurable(ctx, p)
}

func (g guard) Stream(ctx context.Context, after journal.Position) (replicator.Frames, error) {
	ctx, leave, err := g.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	frames, err := g.l.j.Stream(ctx, after)
	if err != nil {
		return nil, err
	}
	return &guardedFrames{guard: g, frames: frames}, nil
}

// guardedFrames also guards the reading of a frame's bytes, which the next call
// or Close ends.
type guardedFrames struct {
	guard
	frames *journal.Stream
	leave  func()
}

func (f *guardedFrames) release() {
	if f.leave != nil {
		f.leave()
		f.leave = nil
	}
}

func (f *guardedFrames) Next(ctx context.Context) (journal.Frame, error) {
	f.release()
	ctx, leave, err := f.enter(ctx)
	if err != nil {
		return journal.Frame{}, err
	}
	frame, err := f.frames.Next(ctx)
	if err != nil {
		leave()
		return frame, err
	}
	f.leave = leave
	return frame, nil
}

func (f *guardedFrames) Close() error {
	f.release()
	return f.frames.Close()
}

// peerBook is what is known of the peers' connections.
type peerBook struct {
	mu    sync.Mutex // guards known
	known map[string]*peerState
}

type peerState struct {
	connections int
	err         string    // of the newest failure
	heard       time.Time // when the newest connection ended; zero while connected or never
}

func newPeerBook(c *config.Config) *peerBook {
	b := &peerBook{known: map[string]*peerState{}}
	for _, p := range c.Peers {
		b.known[p.Name] = &peerState{}
	}
	return b
}

func (b *peerBook) change(name string, f func(*peerState)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if p := b.known[name]; p != nil {
		f(p)
	}
}

func (b *peerBook) get(name string) peerState {
	b.mu.Lock()
	defer b.mu.Unlock()
	if p := b.known[name]; p != nil {
		return *p
	}
	return peerState{}
}

func (s *Site) replicatorEvents() replicator.Events {
	log := s.o.Log.With("part", "replicator")
	return replicator.Events{
		Listening: func(addr net.Addr) {
			s.mu.Lock()
			s.addr = addr
			s.mu.Unlock()
			log.Info("replicator listens", "address", addr.String())
		},
		Connected: func(peer string, addr net.Addr, dialled bool) {
			s.peers.change(peer, func(p *peerState) { p.connections++; p.err = "" })
			log.Info("peer connected", "peer", peer, "address", addr.String(), "dialled", dialled)
		},
		Disconnected: func(peer string, dialled bool, err error) {
			s.peers.change(peer, func(p *peerState) {
				p.connections = max(0, p.connections-1)
				p.heard = s.o.Now()
				if err != nil {
					p.err = err.Error()
				}
			})
		},
		Streaming: func(peer string, d replicator.Direction, tenant, group string, from journal.Cursor) {
			log.Info("stream flows", "peer", peer, "direction", d.String(), "group", tenant+"/"+group, "from", from.Position.String())
			s.halt(peer, tenant, group, halt{})
		},
		Ended: func(peer string, d replicator.Direction, tenant, group string, err error) {
			log.Info("stream ended", "peer", peer, "direction", d.String(), "group", tenant+"/"+group, "err", err)
		},
		Conflict: func(c *replicator.Conflict) {
			log.Error("histories exclude each other", "peer", c.Peer, "group", c.Tenant+"/"+c.Group, "err", c)
			s.halt(c.Peer, c.Tenant, c.Group, haltOf(c))
		},
	}
}

// halt is why nothing of a group flows to or from a peer any more.
type halt struct {
	kind string // control.Halt words
	why  string // empty: it flows
}

func haltOf(c *replicator.Conflict) halt {
	h := halt{kind: control.HaltSplitBrain, why: c.Error()}
	if errors.Is(c, replicator.ErrHistoryLost) {
		h.kind = control.HaltHistoryLost
	}
	return h
}

// halt notes a conflict with a peer, or its end.
func (s *Site) halt(peer, tenant, name string, h halt) {
	for _, g := range s.groups {
		if g.cfg.Tenant == tenant && g.cfg.Name == name {
			g.mu.Lock()
			if h.why == "" {
				delete(g.halted, peer)
			} else {
				g.halted[peer] = h
			}
			g.mu.Unlock()
		}
	}
}

// conflict is why the group is halted, for all peers together; a split brain is
// the graver kind. It is empty while the group is not halted.
func (g *group) conflict() halt {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out halt
	var all []string
	for _, peer := range slices.Sorted(maps.Keys(g.halted)) {
		h := g.halted[peer]
		all = append(all, h.why)
		if out.kind != control.HaltSplitBrain {
			out.kind = h.kind
		}
	}
	out.why = strings.Join(all, "; ")
	return out
}

// lagsOf is the replicator's lags of a group: of those who get it from a primary; of
// the one whom a replica has it from.
func (s *Site) lagsOf(g *group) []replicator.Lag {
	if g.roleIfOpen().Captures() {
		return s.lagsGoing(g, replicator.Outbound)
	}
	return s.lagsGoing(g, replicator.Inbound)
}

// lagsGoing is the replicator's lags of a group, in one direction.
func (s *Site) lagsGoing(g *group, way replicator.Direction) []replicator.Lag {
	if s.repl == nil {
		return nil
	}
	var out []replicator.Lag
	for _, l := range s.repl.Lags() {
		if l.Identity == g.id && l.Direction == way {
			out = append(out, l)
		}
	}
	return out
}

func (g *group) roleIfOpen() recovery.Role {
	g.mu.Lock()
	l := g.life
	g.mu.Unlock()
	if l == nil {
		return recovery.Role(g.cfg.Role)
	}
	return l.roleNow().Role
}
