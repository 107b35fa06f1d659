package replicator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/novacron/afterimage/journal"
)

// inbound is one opening of a group by a peer.
type inbound struct {
	*receiver
	number        uint64
	id            journal.Identity
	tenant, group string
	theirs        site // the source's history
	relayed       bool // the source is a relay
	cancel        context.CancelCauseFunc
	asking        context.Context // for questions to the source; ends with what comes
	askNoMore     context.CancelFunc
	data          *assembly // what the opening carries
	offers        chan *offer
	done          chan struct{} // closed when nothing is appended any more
	wake          chan struct{} // there is something to acknowledge
	blocks        *heldBlocks   // used by whoever reads frames, once accepted

	mu       sync.Mutex // guards all below
	progress *progress  // nil until accepted
	replica  Replica    // nil until accepted
	appended journal.Cursor
	durable  journal.Cursor
	heard    int64 // newest heartbeat's moment
	reading  bool  // frames are being read
	cut      error // nothing comes any more; nil: it may
}

func (in *inbound) progressNow() *progress {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.progress
}

func (in *inbound) replicaNow() Replica {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.replica
}

// run judges the opening, and takes frames until ctx ends or something fails.
func (in *inbound) run(ctx context.Context) {
	defer close(in.done)
	replica, err := in.judge()
	if err != nil {
		in.refuse(replica, err)
		return
	}
	if err := in.r.claim(in); err != nil {
		in.r.forget(in)
		in.refuse(replica, err)
		return
	}
	defer in.r.release(in)
	// What another session appended in the meantime counts.
	if replica, err = in.judge(); err == nil && ctx.Err() == nil {
		err = in.stream(ctx, replica)
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	in.end(replica, err)
}

// cutOff says that nothing more comes. Frames that have come whole, in order, are
// appended yet; whatever else the opening waits for, it ends at once. An answer of the
// source, which a frame may lack, would come over a connection that is as good as lost.
func (in *inbound) cutOff(err error) {
	in.askNoMore()
	in.mu.Lock()
	reading := in.reading
	if in.cut == nil {
		in.cut = err
	}
	in.mu.Unlock()
	if reading && !in.r.faults.dropArrived {
		in.data.runOut(err)
	} else {
		in.cancel(err)
	}
}

// readFrames says that frames are being read from now on, unless nothing comes.
func (in *inbound) readFrames() error {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.reading = true
	return in.cut
}

// settled waits until what was appended of an opening that was cut off is durable: the
// next one goes on behind that.
func (in *inbound) settled(ctx context.Context, replica Replica) {
	in.mu.Lock()
	cut, appended := in.cut != nil, in.appended
	in.mu.Unlock()
	if cut && !appended.IsZero() {
		_ = replica.WaitDurable(ctx, appended.Position) // else it comes again
	}
}

// judge asks whether the group may come in, and compares histories. The replica is
// returned beside an error too, when there is one, as evidence.
func (in *inbound) judge() (Replica, error) {
	replica, err := in.r.o.Receive(in.peer.Name, in.id, in.tenant, in.group)
	primary := errors.Is(err, ErrNotReplica) && replica != nil
	if err != nil && !primary {
		return nil, err
	}
	if replica.Identity() != in.id {
		return nil, fmt.Errorf("open group %s/%s: the journal here is another group's: %w", in.tenant, in.group, ErrUnknownGroup)
	}
	ours := siteOf(replica)
	v, verr := replicaVerdict(ours, in.theirs, primary)
	if verr != nil {
		return replica, verr
	}
	if in.relayed && !primary && v.relation.Kind == journal.PeerBehind && !in.r.faults.behindIsLost {
		return replica, fmt.Errorf("%w: this site holds more of it than the relay", ErrSourced)
	}
	// A source that is behind may have lost history. Or it wrote since it called, and a relay
	// brought that here meanwhile: it judges our answer by what it has then, and
	// refuses if it has lost something.
	behind := (in.relayed || !primary) && v.relation.Kind == journal.PeerBehind && !in.r.faults.behindIsLost
	if v.conflict && !behind && !in.r.faults.forkUnchecked {
		return replica, newConflict(in.peer.Name, in.tenant, in.group, in.id, v, ours, in.theirs)
	}
	if primary {
		return replica, err
	}
	from := resumeAt(v.relation.Common, replica.Head().Durable)
	if in.r.faults.cursorUnbound {
		from = replica.Head().Durable
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.appended, in.durable = from, from
	return replica, nil
}

// siteOf reads the head first, so that its epoch is among the branches.
func siteOf(replica Replica) site {
	head := replica.Head().Epoch
	return site{replica.Branches(), head}
}

// refuse tells the peer, with our history, why the group does not come in.
func (in *inbound) refuse(replica Replica, err error) {
	no := &refuse{code: refusalOf(err), text: clipText(err.Error(), maxTextBytes)}
	var conflict *Conflict
	var damage *journal.DamageError
	switch {
	case errors.As(err, &conflict):
		no.code = CodeConflict
		in.r.o.Log.Error("replication halted", "group", in.tenant+"/"+in.group, "peer", in.peer.Name, "err", err)
		in.r.o.Events.Conflict(conflict)
		in.r.inboundProgress(in).enter(StateHalted, err)
	case errors.As(err, &damage):
		no.code = CodeDamage
	}
	if replica != nil {
		ours := siteOf(replica)
		no.head, no.branches = ours.head, ours.branches
	}
	in.send(in.number, in.id, no)
}

// end reports why a session ended, and tells the peer what it does not know yet.
func (in *inbound) end(replica Replica, err error) {
	p := in.progressNow()
	var refused *RefusedError
	var conflict *Conflict
	var lost *arrivalError
	switch {
	case errors.As(err, &refused), errors.As(err, &lost) && !errors.Is(err, ErrSuperseded), errors.Is(err, context.Canceled):
		// The source ended it, or the connection did.
	default:
		if errors.Is(err, journal.ErrLowerEpoch) {
			ours := siteOf(replica)
			if v, verr := replicaVerdict(ours, in.theirs, false); verr == nil && v.conflict {
				err = newConflict(in.peer.Name, in.tenant, in.group, in.id, v, ours, in.theirs)
			}
		}
		in.refuse(replica, err)
	}
	if errors.Is(err, ErrNotReplica) || errors.Is(err, ErrUnknownGroup) || errors.Is(err, ErrWithdrawn) {
		in.r.forget(in)
	}
	if p == nil {
		return
	}
	if !errors.As(err, &conflict) && !errors.Is(err, ErrSuperseded) {
		p.enter(StateDisconnected, err)
	}
	in.r.o.Log.Info("group no longer received", "group", in.tenant+"/"+in.group, "peer", in.peer.Name, "err", err)
	in.r.o.Events.Ended(in.peer.Name, Inbound, in.tenant, in.group, err)
}

// stream accepts the group and appends its frames.
func (in *inbound) stream(ctx context.Context, replica Replica) error {
	p := in.r.inboundProgress(in)
	in.mu.Lock()
	in.replica, in.progress = replica, p
	from := in.durable
	in.mu.Unlock()
	p.begin(from)
	in.r.sourced(in.id, p)
	p.measured(in.offsetNow())
	ours := siteOf(replica)
	in.r.o.Events.Streaming(in.peer.Name, Inbound, in.tenant, in.group, from)
	in.blocks = in.r.heldBy(in)
	in.tellTakes(replica)
	in.send(in.number, in.id, &accept{head: ours.head, durable: from, branches: ours.branches, window: in.data.window})
	opened := ctx
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return in.ackLoop(ctx, replica, from.Position) })
	g.Go(func() error {
		select {
		case <-in.data.begun:
			return in.frames(ctx, replica, in.data)
		case of := <-in.offers:
			return in.land(ctx, replica, of)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
	err := g.Wait()
	in.settled(opened, replica)
	return err
}

// arrivalError marks an error of the connection, not of the journal.
type arrivalError struct{ err error }

func (e *arrivalError) Error() string { return "receive frame: " + e.err.Error() }
func (e *arrivalError) Unwrap() error { return e.err }

// frames appends what arrives, in order.
func (in *inbound) frames(ctx context.Context, replica Replica, data io.Reader) error {
	p := in.progressNow()
	if err := in.readFrames(); err != nil {
		return err
	}
	frames := &unbundler{r: data, moved: p.carried}
	for {
		var h frameHeader
		err := frames.begin()
		if err == nil {
			h, err = readFrameHeader(frames, in.r.o.MaxFrameBytes)
		}
		if errors.Is(err, ErrProtocol) {
			return err
		}
		if err != nil {
			return &arrivalError{err}
		}
		a := in.arrivalOf(ctx, replica, h, frames)
		at, dup, err := replica.AppendFrame(ctx, a, h.bytes, h.chain)
		switch {
		case errors.Is(a.err, ErrProtocol):
			return a.err
		case a.err != nil:
			return &arrivalError{a.err}
		case errors.Is(err, journal.ErrNotContiguous) && in.within(h):
			return fmt.Errorf("append frame %d..%d: %w: %w", h.first, h.last, errInFrame, err)
		case err != nil:
			return fmt.Errorf("append frame %d..%d: %w", h.first, h.last, err)
		case a.left != 0:
			return fmt.Errorf("append frame %d..%d: %d bytes left over: %w", h.first, h.last, a.left, ErrProtocol)
		case dup:
			at = journal.Cursor{Position: journal.Position{Epoch: h.epoch, Seq: h.last}, Chain: h.chain}
		case at.Seq != h.last || at.Epoch != h.epoch:
			return fmt.Errorf("append frame %d..%d: it reaches %v: %w", h.first, h.last, at.Position, ErrProtocol)
		}
		if !dup {
			in.keep(replica, a)
		}
		p.frame(h.bytes)
		in.mu.Lock()
		in.appended = at
		in.mu.Unlock()
		in.poke()
	}
}

// errInFrame: the replica stands at a record within a frame, as one does that began with
// a point (journal.OpenPast). A delta brings it on to a frame's end.
var errInFrame = errors.New("the replica ends within it, and needs a delta first")

// within reports that what is held ends within a frame.
func (in *inbound) within(h frameHeader) bool {
	at := in.appendedNow()
	return at.Epoch == h.epoch && h.first <= at.Seq && at.Seq < h.last
}

func (in *inbound) appendedNow() journal.Cursor {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.appended
}

// poke wakes ackLoop.
func (in *inbound) poke() {
	select {
	case in.wake <- struct{}{}:
	default:
	}
}

// ackLoop acknowledges what is durable here, the newest of it at once: while it
// waits for the disk, more is appended. from is what was durable when the session began.
func (in *inbound) ackLoop(ctx context.Context, replica Replica, from journal.Position) error {
	lineage := in.theirs.lineage()
	waited := from // not what is appended by now: frames may be ahead of this loop's start
	for {
		select {
		case <-in.wake:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if appended := in.appendedNow(); appended.Position != waited {
			if !in.r.faults.ackEarly {
				if err := replica.WaitDurable(ctx, appended.Position); err != nil {
					return fmt.Errorf("wait until seq %d is durable: %w", appended.Seq, err)
				}
			}
			waited = appended.Position
			in.mu.Lock()
			in.durable = clip(lineage, in.theirs.head, appended)
			in.mu.Unlock()
		}
		in.mu.Lock()
		durable, heard, p := in.durable, in.heard, in.progress
		in.mu.Unlock()
		if in.r.faults.ackUnseen {
			durable.Position = p.snapshot().Head
		}
		if p.stored(durable) {
			in.r.o.Events.Durable(in.peer.Name, Inbound, in.tenant, in.group, durable)
		}
		clock := in.r.clock
		in.out.put(typeAck, in.number, func() message {
			a := &ack{durable: durable, heard: heard, at: clock.nanos(clock.now())}
			return message{envelope{open: in.number, group: in.id}, a}
		})
	}
}

// heartbeat takes in what the source held; it is answered with an acknowledgement.
func (in *inbound) heartbeat(h *heartbeat, arrived time.Time, o offset) {
	in.mu.Lock()
	p := in.progress
	in.heard = max(in.heard, h.at)
	in.mu.Unlock()
	if p == nil {
		return
	}
	p.heard(h, arrived, o)
	in.poke()
}

// refused ends the opening as the source wants it.
func (in *inbound) refused(no *refuse) {
	if no.code != CodeConflict {
		in.cancel(&RefusedError{Peer: in.peer.Name, Code: no.code, Text: no.text})
		return
	}
	replica := in.replicaNow()
	if replica == nil {
		return // our own judgement says the same
	}
	ours, theirs := siteOf(replica), site{no.branches, no.head}
	v, err := replicaVerdict(ours, theirs, false)
	if err != nil {
		in.cancel(err)
		return
	}
	in.cancel(newConflict(in.peer.Name, in.tenant, in.group, in.id, v, ours, theirs))
}
