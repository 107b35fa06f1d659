package replicator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/replicator/transport"
)

// receiver takes a peer's groups over one connection that the peer dialled.
type receiver struct {
	*link

	opens struct {
		sync.Mutex // guards all below
		byNumber   map[uint64]*inbound
	}
}

func newReceiver(l *link) *receiver {
	v := &receiver{link: l}
	v.opens.byNumber = map[uint64]*inbound{}
	return v
}

// run takes groups until the connection or ctx ends. What has come by the end of the
// connection is still appended.
func (v *receiver) run(ctx context.Context) error {
	serving := ctx
	g, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, func() { closeLink(v.conn, context.Cause(ctx)) })
	defer stop()
	var sessions sync.WaitGroup
	defer sessions.Wait()
	handle := func(_ context.Context, m message) error { return v.handle(serving, m, &sessions) }
	g.Go(func() error { return v.link.run(ctx, handle, v.measured) })
	g.Go(func() error { return v.laneLoop(ctx) })
	g.Go(func() error { return v.refreshLoop(ctx) })
	err := g.Wait()
	for _, in := range v.live() {
		in.cutOff(&arrivalError{err})
	}
	return err
}

// live are the openings that have not ended.
func (v *receiver) live() []*inbound {
	v.opens.Lock()
	defer v.opens.Unlock()
	return slices.Collect(maps.Values(v.opens.byNumber))
}

func (v *receiver) find(open uint64, id journal.Identity) *inbound {
	v.opens.Lock()
	defer v.opens.Unlock()
	if in := v.opens.byNumber[open]; in != nil && in.id == id {
		return in
	}
	return nil
}

// handle takes a message about a group in; it must not block.
func (v *receiver) handle(ctx context.Context, m message, sessions *sync.WaitGroup) error {
	switch b := m.body.(type) {
	case *openGroup:
		return v.open(ctx, m.envelope, b, sessions)
	case *heartbeat:
		if in := v.find(m.open, m.group); in != nil {
			in.heartbeat(b, v.r.o.Now(), v.offsetNow())
		}
	case *offer:
		if in := v.find(m.open, m.group); in != nil {
			select {
			case in.offers <- b:
			default:
				return fmt.Errorf("handle offer: a second one for opening %d: %w", m.open, ErrProtocol)
			}
		}
	case *refuse:
		if in := v.find(m.open, m.group); in != nil {
			in.refused(b)
		}
	default:
		return fmt.Errorf("handle message %d: not for a replica: %w", b.kind(), ErrProtocol)
	}
	return nil
}

func (v *receiver) open(ctx context.Context, e envelope, b *openGroup, sessions *sync.WaitGroup) error {
	v.opens.Lock()
	defer v.opens.Unlock()
	if e.open == 0 || v.opens.byNumber[e.open] != nil {
		return fmt.Errorf("open group: number %d is taken: %w", e.open, ErrProtocol)
	}
	if len(v.opens.byNumber) >= v.r.o.MaxGroups {
		v.send(e.open, e.group, &refuse{code: CodeBusy, text: fmt.Sprintf("more than %d groups at once", v.r.o.MaxGroups)})
		return nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	in := &inbound{receiver: v, number: e.open, id: e.group, tenant: b.tenant, group: b.group, cancel: cancel,
		theirs: site{b.branches, b.head}, relayed: b.relayed, offers: make(chan *offer, 1), done: make(chan struct{}), wake: make(chan struct{}, 1)}
	in.asking, in.askNoMore = context.WithCancel(ctx)
	in.data = newAssembly(v.r.o.WindowBytes, &v.r.faults, func(t taken) { in.send(in.number, in.id, &t) })
	v.opens.byNumber[e.open] = in
	sessions.Go(func() {
		defer cancel(nil)
		defer context.AfterFunc(ctx, func() { in.data.stop(context.Cause(ctx)) })()
		in.run(ctx)
		in.data.stop(ErrWithdrawn) // what comes yet is for nobody
		v.opens.Lock()
		defer v.opens.Unlock()
		delete(v.opens.byNumber, e.open)
	})
	return nil
}

func (v *receiver) measured(o offset) {
	v.opens.Lock()
	defer v.opens.Unlock()
	for _, in := range v.opens.byNumber {
		if p := in.progressNow(); p != nil {
			p.measured(o)
		}
	}
}

// laneLoop takes the pieces of every lane to the openings that they belong to. Lanes
// beyond those that this site takes are cancelled: a piece in a lane that nobody reads
// would hold its group up for ever, one of a lane that is gone comes over another.
func (v *receiver) laneLoop(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	most := semaphore.NewWeighted(int64(v.r.o.MaxConnections + 1))
	g.Go(func() error {
		for {
			from, err := v.conn.NextLane(ctx)
			if err != nil {
				return fmt.Errorf("accept lane: %w", err)
			}
			if !most.TryAcquire(1) {
				v.r.o.Log.Debug("lane refused", "peer", v.peer.Name, "taken", v.r.o.MaxConnections+1)
				from.Cancel()
				continue
			}
			stop := context.AfterFunc(ctx, from.Cancel)
			g.Go(func() error {
				defer most.Release(1)
				defer stop()
				return v.drain(from)
			})
		}
	})
	return g.Wait()
}

// drain takes in what a lane carries. How a lane ends is the source's affair, which
// sends what is missing over another one; what no correct source sends ends the session.
func (v *receiver) drain(from transport.ReceiveLane) error {
	defer from.Cancel()
	head := make([]byte, pieceHeaderBytes)
	for {
		h, err := readPieceHeader(from, head)
		if err == nil {
			err = v.piece(from, h)
		}
		switch {
		case errors.Is(err, ErrProtocol):
			return err
		case err != nil:
			v.r.o.Log.Debug("lane ended", "peer", v.peer.Name, "err", err)
			return nil
		}
	}
}

// piece takes in one piece. One that nobody waits for is passed over.
func (v *receiver) piece(from transport.ReceiveLane, h pieceHeader) error {
	in := v.find(h.open, h.group)
	news := false
	if in != nil {
		var err error
		if news, err = in.data.wants(h.position, h.bytes); err != nil {
			return err
		}
	}
	if !news {
		if _, err := io.CopyN(io.Discard, from, int64(h.bytes)); err != nil || in == nil {
			return err
		}
		in.data.passed(h.bytes)
		return nil
	}
	b := takeBuffer(h.bytes)
	if _, err := io.ReadFull(from, b); err != nil {
		giveBuffer(b)
		return err
	}
	return in.data.put(h.position, b)
}

// refreshLoop asks again, after every Refresh, whether the groups may come in.
func (v *receiver) refreshLoop(ctx context.Context) error {
	for {
		refreshed := v.r.refreshSignal()
		for _, in := range v.live() {
			replica, err := v.r.o.Receive(v.peer.Name, in.id, in.tenant, in.group)
			current := in.replicaNow()
			switch {
			case current == nil: // still opening: it asks by itself
			case err != nil:
				in.cancel(err)
			case replica != current:
				in.cancel(ErrSuperseded)
			}
		}
		select {
		case <-refreshed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// supersededFor is how long a session that was superseded may still append.
const supersededFor = time.Second

// claim makes in the one session that appends to its group, and waits until the
// one before it has ended; that one's frames are cut off, so it ends soon. One of the same
// peer appends first what has come whole, which would only come again.
func (r *Replicator) claim(in *inbound) error {
	r.mu.Lock()
	if err := r.barredLocked(in); err != nil {
		r.mu.Unlock()
		return err
	}
	before := r.receiving[in.id]
	r.receiving[in.id] = in
	r.mu.Unlock()
	if before == nil {
		return nil
	}
	if before.peer.Name == in.peer.Name {
		before.cutOff(ErrSuperseded)
		patience := time.AfterFunc(min(supersededFor, r.o.HandshakeTimeout), func() { before.cancel(ErrSuperseded) })
		defer patience.Stop()
	} else {
		before.cancel(ErrSuperseded)
	}
	<-before.done
	return nil
}

func (r *Replicator) release(in *inbound) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.receiving[in.id] == in {
		delete(r.receiving, in.id)
	}
}

// inboundProgress is the progress of a peer's group, kept over its sessions.
func (r *Replicator) inboundProgress(in *inbound) *progress {
	r.mu.Lock()
	defer r.mu.Unlock()
	k := inKey{in.peer.Name, in.id}
	if r.inbound[k] == nil {
		r.inbound[k] = newProgress(r.clock, &r.faults, Inbound, in.peer.Name, in.tenant, in.group, in.id)
	}
	return r.inbound[k]
}

// forget drops the progress of a group that no longer comes in.
func (r *Replicator) forget(in *inbound) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if k := (inKey{in.peer.Name, in.id}); r.sources[in.id] == r.inbound[k] {
		delete(r.sources, in.id)
	}
	delete(r.inbound, inKey{in.peer.Name, in.id})
	delete(r.held, inKey{in.peer.Name, in.id})
}

// refusalOf is the code for an error of Options.Receive.
func refusalOf(err error) Code {
	switch {
	case errors.Is(err, ErrUnknownGroup):
		return CodeUnknownGroup
	case errors.Is(err, ErrNotReplica):
		return CodeNotReplica
	case errors.Is(err, ErrSuperseded):
		return CodeSuperseded
	case errors.Is(err, ErrWithdrawn):
		return CodeWithdrawn
	case errors.Is(err, ErrSourced):
		return CodeSourced
	case errors.Is(err, errInFrame):
		return CodeInFrame
	}
	return CodeAppend
}
