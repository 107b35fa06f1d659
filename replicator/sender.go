package replicator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/novacron/afterimage/journal"
)

// errReopen ends an opening whose source has begun a new epoch; the next one
// follows at once.
var errReopen = errors.New("source began a new epoch")

// sender replicates this site's groups over one connection that it dialled.
type sender struct {
	*link
	lanes *lanes

	opens struct {
		sync.Mutex // guards all below
		byNumber   map[uint64]*opening
		last       uint64
	}
}

// opening is one attempt to stream one group.
type opening struct {
	number  uint64
	group   *outgroup
	epoch   journal.EpochID // the source's at the start
	lineage journal.Lineage // likewise
	replies chan message    // Accept and Refuse
	cancel  context.CancelCauseFunc
	takes   atomic.Pointer[takes] // what of packed frames the replica takes; nil: nothing
	acked   chan struct{}         // holds a token once the replica holds more

	mu      sync.Mutex // guards all below
	flowing bool
	sent    journal.Seq // newest seq put on the wire, or held by the replica at the start
}

func newSender(l *link) *sender {
	s := &sender{link: l, lanes: newLanes(l.conn, l.r.o, l.peer.MaxConnections)}
	s.lanes.begin(max(int(l.peer.lanes.Load()), lanesFor(l.conn.Stats().MinRTT)))
	s.lanes.chose = func(lanes int) { l.peer.lanes.Store(int32(lanes)) }
	s.opens.byNumber = map[uint64]*opening{}
	return s
}

// run replicates until the connection ends, ctx does, or no group is left.
func (s *sender) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	// Reads of the control stream end only with the connection.
	stop := context.AfterFunc(ctx, func() { closeLink(s.conn, context.Cause(ctx)) })
	defer stop()
	g.Go(func() error { return s.link.run(ctx, s.handle, s.measured) })
	g.Go(func() error { return s.heartbeatLoop(ctx) })
	g.Go(func() error { return s.manage(ctx) })
	g.Go(func() error { return s.lanes.run(ctx) })
	err := g.Wait()
	if errors.Is(err, errNoGroups) {
		return nil
	}
	return err
}

var errNoGroups = errors.New("no group is left for the peer")

// manage runs one goroutine per group and follows Refresh.
func (s *sender) manage(ctx context.Context) error {
	type runner struct {
		cancel context.CancelCauseFunc
		done   chan struct{}
	}
	running := map[*outgroup]runner{}
	stop := func(g *outgroup, cause error) {
		running[g].cancel(cause)
		<-running[g].done
		delete(running, g)
	}
	defer func() {
		for g := range running {
			stop(g, context.Cause(ctx))
		}
	}()
	for {
		refreshed := s.r.refreshSignal()
		wanted := map[*outgroup]bool{}
		for _, g := range s.r.groupsFor(s.peer.Name) {
			wanted[g] = true
		}
		for g := range running {
			if !wanted[g] {
				stop(g, ErrWithdrawn)
			}
		}
		if len(wanted) == 0 && !s.r.o.Talks(s.peer.Name) {
			return errNoGroups
		}
		for g := range wanted {
			if _, ok := running[g]; ok {
				continue
			}
			gctx, cancel := context.WithCancelCause(ctx)
			done := make(chan struct{})
			running[g] = runner{cancel, done}
			go func() {
				defer close(done)
				s.replicate(gctx, g)
			}()
		}
		select {
		case <-refreshed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// replicate opens and streams g again and again until ctx ends.
func (s *sender) replicate(ctx context.Context, g *outgroup) {
	wait := s.r.backoff(s.peer.Name + "/" + g.Name)
	reported := "" // the conflict already told of over this connection
	for {
		refreshed := s.r.refreshSignal()
		g.progress.enter(StateOpening, nil)
		epoch, held := g.Source.Head().Epoch, g.progress.durable()
		flowed, err := s.stream(ctx, g)
		if ctx.Err() != nil {
			g.progress.enter(StateDisconnected, context.Cause(ctx))
			return
		}
		if errors.Is(err, errReopen) {
			continue
		}
		if flowed {
			if g.progress.durable() != held { // else it may be refused over and over
				wait.reset()
			}
			s.r.o.Events.Ended(s.peer.Name, Outbound, g.Tenant, g.Name, err)
		}
		var conflict *Conflict
		if errors.As(err, &conflict) {
			g.progress.enter(StateHalted, err)
			if text := err.Error(); text != reported {
				reported = text
				s.r.o.Log.Error("replication halted", "group", g.Tenant+"/"+g.Name, "peer", s.peer.Name, "err", err)
				s.r.o.Events.Conflict(conflict)
			}
			s.sleepHalted(ctx, g, epoch, refreshed)
			continue
		}
		g.progress.enter(StateRefused, err)
		s.r.o.Log.Warn("group not replicated", "group", g.Tenant+"/"+g.Name, "peer", s.peer.Name, "err", err)
		_ = sleepUnless(ctx, wait.next(), refreshed) // ctx is looked at above
	}
}

// sleepHalted waits until a halted group may have changed: its epoch, the
// configuration, or enough time for the peer's side.
func (s *sender) sleepHalted(ctx context.Context, g *outgroup, epoch journal.EpochID, refreshed <-chan struct{}) {
	tick := time.NewTicker(s.r.o.HeartbeatInterval)
	defer tick.Stop()
	again := time.NewTimer(s.r.o.HaltRetry)
	defer again.Stop()
	for g.Source.Head().Epoch == epoch {
		select {
		case <-tick.C:
		case <-again.C:
			return
		case <-refreshed:
			return
		case <-ctx.Done():
			return
		}
	}
}

// handle takes a message about a group in; it must not block.
func (s *sender) handle(_ context.Context, m message) error {
	s.opens.Lock()
	o := s.opens.byNumber[m.open]
	s.opens.Unlock()
	if o == nil || o.group.Source.Identity() != m.group {
		return nil // of an opening that has ended
	}
	switch b := m.body.(type) {
	case *accept, *refuse, *landingPlace, *landedDelta:
		select {
		case o.replies <- m:
		default:
			return fmt.Errorf("handle reply: more than were asked for: %w", ErrProtocol)
		}
	case *takes:
		o.takes.Store(b)
	case *ack:
		return s.acked(o, b)
	case *taken:
		if f := s.lanes.find(o.number); f != nil {
			return f.heard(b)
		}
	default:
		return fmt.Errorf("handle message %d: not for a source: %w", b.kind(), ErrProtocol)
	}
	return nil
}

func (s *sender) acked(o *opening, a *ack) error {
	o.mu.Lock()
	flowing, sent := o.flowing, o.sent
	o.mu.Unlock()
	if !flowing {
		return nil
	}
	if a.durable.Seq > sent {
		return fmt.Errorf("handle acknowledgement: of seq %d, sent up to %d: %w", a.durable.Seq, sent, ErrProtocol)
	}
	if a.durable.Seq == 0 {
		a.durable = journal.Cursor{} // before the first record
	} else if !o.knows(a.durable.Position) {
		return fmt.Errorf("handle acknowledgement: of record %s, which is none of what was sent: %w", a.durable.Position, ErrProtocol)
	}
	// A heartbeat that is yet to be sent cannot have been heard.
	heard := min(a.heard, s.r.clock.nanos(s.r.o.Now()))
	if o.group.progress.acked(a.durable, heard) {
		select {
		case o.acked <- struct{}{}:
		default:
		}
		s.r.o.Events.Durable(s.peer.Name, Outbound, o.group.Tenant, o.group.Name, a.durable)
	}
	return nil
}

// knows reports that p is a record of the history that the opening sends. What a peer says
// that it holds decides what is kept for it, and what it gets next.
func (o *opening) knows(p journal.Position) bool {
	if p.Epoch == o.epoch { // it grows
		return !slices.ContainsFunc(o.lineage, func(i journal.Interval) bool { return i.Epoch == p.Epoch && p.Seq+1 < i.First })
	}
	return o.lineage.Holds(p)
}

func (s *sender) measured(o offset) {
	for _, g := range s.r.groupsFor(s.peer.Name) {
		g.progress.measured(o)
	}
}

// heartbeatLoop tells the peer of every streaming group's head.
func (s *sender) heartbeatLoop(ctx context.Context) error {
	tick := time.NewTicker(s.r.o.HeartbeatInterval)
	defer tick.Stop()
	for {
		s.opens.Lock()
		var live []*opening
		for _, o := range s.opens.byNumber {
			live = append(live, o)
		}
		s.opens.Unlock()
		for _, o := range live {
			if err := s.heartbeat(o); err != nil {
				return err
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (s *sender) heartbeat(o *opening) error {
	o.mu.Lock()
	flowing := o.flowing
	o.mu.Unlock()
	if !flowing {
		return nil
	}
	at, head := o.group.sample(s.r)
	if head.Epoch != o.epoch {
		o.cancel(errReopen)
		return nil
	}
	s.send(o.number, o.group.Source.Identity(), o.group.progress.heartbeat(at, head))
	if o.group.progress.stalled(s.r.o.StallTimeout) {
		return fmt.Errorf("peer %s took nothing of %s/%s for %v: %w", s.peer.Name, o.group.Tenant, o.group.Name, s.r.o.StallTimeout, ErrStalled)
	}
	return nil
}
