package replicator

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/replicator/transport"
)

// Replicator moves records of groups to peers, and takes those of peers. All
// methods are safe for concurrent use.
type Replicator struct {
	o        Options
	shown    atomic.Pointer[self]
	clock    lifeClock
	instance cbt.ID
	faults   faults
	draws    func(what string) func(n int64) int64 // of a backoff; a simulation's seed says it

	mu        sync.Mutex // guards all below
	peers     []*peer    // as configured
	addr      net.Addr
	by        carriers // while Run runs
	outbound  map[outKey]*outgroup
	inbound   map[inKey]*progress
	receiving map[journal.Identity]*inbound  // the session that appends
	sources   map[journal.Identity]*progress // whose session was the last to append
	refreshed chan struct{}                  // closed by Refresh
	held      map[inKey]*heldBlocks          // of groups that come in
	tables    uint64                         // the last number of such a table
	misses    uint64                         // references that were not held, in all of them
	successor Pin                            // that is announced
	links     []*link                        // that questions can be asked over, the newest last

	groupLimits map[journal.Identity]*allowance // of those that are sent
	limited     chan struct{}                   // wakes limitLoop
}

// faults are mistakes that tests of this package plant, to see them caught.
type faults struct {
	ackEarly        bool // acknowledge before durable at the replica
	sourceClockOnly bool // compute the replica's lag from the source's clock alone
	sendUndurable   bool // send before fdatasync
	anyOrder        bool // hand on pieces in whatever order they came
	noPacking       bool // know nothing of packed frames
	staleBlocks     bool // take for a referenced block whatever lies in its place
	ackUnseen       bool // acknowledge what the source says it has
	forkUnchecked   bool // stream over a fork, and into a reign
	cursorUnbound   bool // go on where the replica says, whatever the histories have in common
	relayOwnClock   bool // a relay's heartbeats carry its own moments
	behindIsLost    bool // take a relay that is behind for a source that lost history
	relayUnmarked   bool // a relay speaks as if it were the primary
	anySource       bool // a relay takes over from whoever sends the group
	dropArrived     bool // drop what has come of a session that is cut off
	keepLeft        bool // count what the replica holds of a branch that the source has left
}

type outKey struct {
	peer string
	id   journal.Identity
}

type inKey outKey

// outgroup is one group for one peer.
type outgroup struct {
	Group
	progress  *progress
	allowance *allowance // of the group, whoever gets it

	within atomic.Bool  // the peer ends within a frame: the next opening carries a delta
	sent   sentBlocks   // of the one opening that streams it
	whole  atomic.Int64 // until when, our clock, frames are sent however far behind the peer is: it refused a delta
}

// New checks o. It starts nothing and opens nothing.
func New(o Options) (*Replicator, error) {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("configure replicator: %w", err)
	}
	cert, err := o.Identity.certificate()
	if err != nil {
		return nil, err
	}
	r := &Replicator{o: o, clock: newLifeClock(o.Now), instance: cbt.NewID(), refreshed: make(chan struct{}),
		outbound: map[outKey]*outgroup{}, inbound: map[inKey]*progress{}, receiving: map[journal.Identity]*inbound{}, sources: map[journal.Identity]*progress{}, held: map[inKey]*heldBlocks{}, limited: make(chan struct{}, 1)}
	r.shown.Store(&self{cert, o.Identity.Pin()})
	for _, p := range o.Peers {
		r.peers = append(r.peers, r.newPeer(p))
	}
	return r, nil
}

// backoff is the one of what is tried again and again.
func (r *Replicator) backoff(what string) backoff {
	b := backoff{first: r.o.RetryFirst, limit: r.o.RetryLimit}
	if r.draws != nil {
		b.draw = r.draws(what)
	}
	return b
}

// Run replicates until ctx ends, then returns nil; it returns an error when it
// cannot listen. It owns every goroutine of the package.
func (r *Replicator) Run(ctx context.Context) error {
	known := func(p Pin) bool { return r.peerByPin(p) != nil }
	by, err := r.openCarriers(r.o.forTransport(listenTLS(func() tls.Certificate { return r.self().cert }, known, r.o.Inviting, r.unpinned)))
	if err != nil {
		return err
	}
	defer by.close() // nil, or of sockets that nobody uses any more
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.by = nil
	}()
	r.mu.Lock()
	r.addr, r.by = by[0].Addr(), by
	r.mu.Unlock()
	r.o.Events.Listening(by[0].Addr())
	r.Refresh()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return r.sampleLoop(ctx) })
	g.Go(func() error { return r.limitLoop(ctx) })
	for _, t := range by {
		g.Go(func() error { return r.acceptLoop(ctx, t) })
	}
	g.Go(func() error { return r.dialPeers(ctx, by) })
	r.checkBuffers(by[0]) // after the transport asked the kernel for its wish
	<-ctx.Done()
	err = g.Wait()
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	return err
}

func (r *Replicator) unpinned(err *PinError) {
	r.o.Log.Warn("caller refused", "address", err.Address, "pin", err.Seen.String(), "err", err)
	r.o.Events.Unpinned(err)
}

// checkBuffers says so when the kernel grants a transport smaller buffers than it wants.
func (r *Replicator) checkBuffers(by transport.Transport) {
	b, ok := by.(interface {
		Buffers() (receive, send int, err error)
	})
	if !ok {
		return
	}
	receive, send, err := b.Buffers()
	if err != nil {
		r.o.Log.Warn("UDP buffers unknown", "err", err)
		return
	}
	if min(receive, send) >= wantUDPBufferBytes {
		return
	}
	hint := fmt.Sprintf("sysctl -w net.core.rmem_max=%d net.core.wmem_max=%d", wantUDPBufferBytes, wantUDPBufferBytes)
	r.o.Log.Warn("UDP buffers are small, packets may be lost", "receive", receive, "send", send, "hint", hint)
	r.o.Events.SmallBuffers(receive, send, wantUDPBufferBytes, hint)
}

// Addr is where Run listens and dials from; nil before that.
func (r *Replicator) Addr() net.Addr {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.addr
}

// Refresh looks at Options.Groups and Options.Receive again: groups came, went or
// changed their role. It also ends the waits of refused and halted groups. It does
// not wait for the effect; a journal whose epoch has risen fences by itself.
func (r *Replicator) Refresh() {
	groups := r.o.Groups()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.limitGroupsLocked(groups)
	wanted := map[outKey]*outgroup{}
	for _, g := range groups {
		for _, name := range g.Peers {
			k := outKey{name, g.Source.Identity()}
			old := r.outbound[k]
			if old != nil && old.Source == g.Source && old.Relay == g.Relay && old.Coalesce[name] == g.Coalesce[name] {
				wanted[k] = old
				continue
			}
			p := newProgress(r.clock, &r.faults, Outbound, name, g.Tenant, g.Name, k.id)
			wanted[k] = &outgroup{Group: g, progress: p, allowance: r.groupLimits[k.id]}
		}
	}
	r.outbound = wanted
	close(r.refreshed)
	r.refreshed = make(chan struct{})
}

// Lags are all groups, with every peer, in both directions, sorted by name. Groups
// that a peer sends appear once it has opened them in this process's life.
func (r *Replicator) Lags() []Lag {
	r.mu.Lock()
	var out []*outgroup
	var in []*progress
	for _, g := range r.outbound {
		out = append(out, g)
	}
	for _, p := range r.inbound {
		in = append(in, p)
	}
	r.mu.Unlock()
	var lags []Lag
	for _, g := range out {
		g.sample(r) // what was written since the last heartbeat counts
		lags = append(lags, g.progress.snapshot())
	}
	for _, p := range in {
		lags = append(lags, p.snapshot())
	}
	slices.SortFunc(lags, func(a, b Lag) int {
		return cmp.Or(strings.Compare(a.Tenant, b.Tenant), strings.Compare(a.Group, b.Group),
			cmp.Compare(a.Direction, b.Direction), strings.Compare(a.Peer, b.Peer))
	})
	return lags
}

// sampleLoop keeps the sources' ledgers while peers are away, so that a
// catch-up is told from the moment that each record was written.
func (r *Replicator) sampleLoop(ctx context.Context) error {
	tick := time.NewTicker(r.o.HeartbeatInterval)
	defer tick.Stop()
	for {
		for _, g := range r.groupsFor("") {
			g.sample(r)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// sample notes the head. The clock is read first: what is captured before that
// moment is at or before the head read after it.
func (g *outgroup) sample(r *Replicator) (int64, journal.Head) {
	if g.Relay {
		return g.sampleRelayed(r)
	}
	at := r.clock.nanos(r.clock.now())
	head := g.Source.Head()
	g.progress.sampled(at, head, g.Source.Branches)
	return at, head
}

// groupsFor are the groups for one peer; "" for all.
func (r *Replicator) groupsFor(peer string) []*outgroup {
	r.mu.Lock()
	defer r.mu.Unlock()
	var gs []*outgroup
	for k, g := range r.outbound {
		if peer == "" || k.peer == peer {
			gs = append(gs, g)
		}
	}
	return gs
}

// refreshSignal is closed by the next Refresh.
func (r *Replicator) refreshSignal() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.refreshed
}
