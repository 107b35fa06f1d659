package replicator

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/novacron/afterimage/journal"
)

// stream opens g at the peer once and sends its frames until that ends. flowed
// says whether the peer took the group.
func (s *sender) stream(ctx context.Context, g *outgroup) (flowed bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ours := site{head: g.Source.Head().Epoch} // before the branches, so that it is among them
	ours.branches = g.Source.Branches()
	o := &opening{group: g, epoch: ours.head, lineage: ours.lineage(), replies: make(chan message, 4), acked: make(chan struct{}, 1), cancel: cancel}
	s.register(o)
	defer s.unregister(o)

	id := g.Source.Identity()
	s.send(o.number, id, &openGroup{tenant: g.Tenant, group: g.Name, head: ours.head, branches: ours.branches, relayed: g.Relay})
	reply, err := s.reply(ctx, o)
	if err != nil {
		return false, err
	}
	if no, ok := reply.(*refuse); ok {
		return false, s.refusal(g, ours, no)
	}
	yes := reply.(*accept)
	theirs := site{yes.branches, yes.head}
	if ours.branches = g.Source.Branches(); g.Source.Head().Epoch != ours.head {
		s.send(o.number, id, &refuse{code: CodeSuperseded, text: errReopen.Error()})
		return false, errReopen
	} // else the replica may hold, by way of another site, what was written since we called
	v, err := sourceVerdict(ours, theirs)
	if err == nil && v.conflict && !s.r.faults.forkUnchecked {
		err = s.conflict(g, v, ours, theirs)
	}
	if err != nil {
		s.send(o.number, id, &refuse{code: CodeConflict, text: clipText(err.Error(), maxTextBytes), head: ours.head, branches: ours.branches})
		return false, err
	}
	from := resumeAt(v.relation.Common, yes.durable)
	if s.r.faults.cursorUnbound {
		from = yes.durable
	} else if from, err = o.bound(from); err != nil {
		s.send(o.number, id, &refuse{code: CodeProtocol, text: clipText(err.Error(), maxTextBytes)})
		return false, err
	}
	g.progress.begin(from)
	o.mu.Lock()
	o.flowing, o.sent = true, from.Seq
	o.mu.Unlock()
	s.r.o.Events.Streaming(s.peer.Name, Outbound, g.Tenant, g.Name, from)
	if err := s.heartbeat(o); err != nil {
		return true, err
	}

	if yes.window < maxPieceBytes {
		return true, fmt.Errorf("open group at %s: a window of %d bytes: %w", s.peer.Name, yes.window, ErrProtocol)
	}
	data := s.lanes.flow(o.number, id, g.Weight, min(yes.window, s.r.o.WindowBytes))
	defer data.end(ErrWithdrawn)
	defer data.stopWith(ctx)()
	if g.within.CompareAndSwap(true, false) && s.takesDeltas(g) {
		err = &behindError{cause: errInFrame}
	} else {
		err = s.watchedFrames(ctx, o, from, ours, data)
	}
	var behind *behindError
	if errors.As(err, &behind) && ctx.Err() == nil {
		err = s.delta(ctx, o, from.Position, behind.newest, data)
		var no *RefusedError
		if behind.newest && errors.As(err, &no) {
			g.whole.Store(s.r.o.Now().Add(refusedDeltaWait).UnixNano())
		}
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if no := (*RefusedError)(nil); errors.As(err, &no) && no.Code == CodeInFrame {
		g.within.Store(true)
	}
	if code := endCode(err); code != CodeNone {
		s.send(o.number, id, &refuse{code: code, text: clipText(err.Error(), maxTextBytes)})
	}
	return true, err
}

// bound is where a replica says that it goes on, if that is a record of what is sent here:
// by whatever it says it gets what it may have and nothing else.
func (o *opening) bound(from journal.Cursor) (journal.Cursor, error) {
	if from.Seq == 0 {
		return journal.Cursor{}, nil
	}
	if !o.knows(from.Position) {
		return from, fmt.Errorf("open group: the replica goes on from record %s, which is none of this history: %w", from.Position, ErrProtocol)
	}
	return from, nil
}

// watchedFrames sends frames until that ends or the peer refuses them.
func (s *sender) watchedFrames(ctx context.Context, o *opening, from journal.Cursor, ours site, data *flow) error {
	watching, stop := context.WithCancel(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		s.watch(watching, o, ours)
	}()
	err := s.frames(ctx, o, from, ours.lineage(), data)
	stop()
	<-watched
	return err
}

// endCode is what the peer must hear about the end of an opening, if anything.
func endCode(err error) Code {
	var refused *RefusedError
	var conflict *Conflict
	var read *readError
	switch {
	case errors.Is(err, ErrProtocol):
		return CodeProtocol
	case errors.As(err, &refused), errors.As(err, &conflict):
		return CodeNone // it said so itself
	case errors.Is(err, ErrWithdrawn):
		return CodeWithdrawn
	case errors.Is(err, errReopen):
		return CodeSuperseded
	case errors.As(err, &read), errors.Is(err, ErrNotDurable):
		return CodeLocal
	}
	return CodeNone
}

func (s *sender) register(o *opening) {
	s.opens.Lock()
	defer s.opens.Unlock()
	s.opens.last++
	o.number = s.opens.last
	s.opens.byNumber[o.number] = o
}

func (s *sender) unregister(o *opening) {
	s.opens.Lock()
	defer s.opens.Unlock()
	delete(s.opens.byNumber, o.number)
}

func (s *sender) reply(ctx context.Context, o *opening) (body, error) {
	timer := time.NewTimer(s.r.o.OpenTimeout)
	defer timer.Stop()
	select {
	case m := <-o.replies:
		return m.body, nil
	case <-timer.C:
		return nil, fmt.Errorf("open group at %s: no answer within %v: %w", s.peer.Name, s.r.o.OpenTimeout, ErrStalled)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// watch ends the opening when the peer refuses it in the middle.
func (s *sender) watch(ctx context.Context, o *opening, ours site) {
	select {
	case m := <-o.replies:
		if no, ok := m.body.(*refuse); ok {
			o.cancel(s.refusal(o.group, ours, no))
			return
		}
		o.cancel(fmt.Errorf("handle reply: second Accept: %w", ErrProtocol))
	case <-ctx.Done():
	}
}

// refusal is the error that a Refuse stands for; a conflict is judged by the
// evidence in it.
func (s *sender) refusal(g *outgroup, ours site, no *refuse) error {
	if no.code != CodeConflict {
		return &RefusedError{Peer: s.peer.Name, Code: no.code, Text: no.text}
	}
	theirs := site{no.branches, no.head}
	v, err := sourceVerdict(ours, theirs)
	if err != nil {
		return err
	}
	return s.conflict(g, v, ours, theirs)
}

func (s *sender) conflict(g *outgroup, v verdict, ours, theirs site) *Conflict {
	return newConflict(s.peer.Name, g.Tenant, g.Name, g.Source.Identity(), v, ours, theirs)
}

func newConflict(peer, tenant, group string, id journal.Identity, v verdict, ours, theirs site) *Conflict {
	c := &Conflict{Peer: peer, Tenant: tenant, Group: group, Identity: id, Kind: v.relation.Kind, Common: v.relation.Common,
		Ours: ours.branches, Theirs: theirs.branches, OursHead: ours.head, TheirsHead: theirs.head}
	if v.lost {
		c.Cause = ErrHistoryLost
	}
	return c
}

// frames sends durable frames after from until ctx ends or something fails.
func (s *sender) frames(ctx context.Context, o *opening, from journal.Cursor, lineage journal.Lineage, data *flow) error {
	g := o.group
	frames, err := g.Source.Stream(ctx, from.Position)
	if err != nil {
		return &readError{err}
	}
	defer frames.Close()
	f, err := frames.Next(ctx)
	if err := s.reaches(g, f, err); err != nil {
		return err
	}
	packing := s.newPacking(o, from.Seq)
	whole, err := s.follow(ctx, packing, frames, f, from.Seq, lineage, data)
	var unreadable *readError
	if errors.As(err, &unreadable) || errors.Is(err, ErrNotDurable) {
		err = errors.Join(err, packing.deliver(ctx, data, whole))
	}
	return err
}

// follow sends f, which goes on after a seq, and the frames behind it. It gives the last
// record of those that are written, or wait in a bundle, whole.
func (s *sender) follow(ctx context.Context, packing *packing, frames Frames, f journal.Frame, after journal.Seq, lineage journal.Lineage, data *flow) (whole journal.Seq, err error) {
	o, g := packing.o, packing.o.group
	for {
		if !o.knows(f.First) {
			return after, errReopen // an epoch has begun since the peer was told of the history
		}
		if err := s.admissible(g, f, after+1, lineage); err != nil {
			return after, err
		}
		last := clip(lineage, o.epoch, journal.Cursor{Position: f.Last}).Seq
		o.mu.Lock()
		o.sent = last
		o.mu.Unlock()
		more := followed(frames)
		if err := packing.send(ctx, data, f, more); err != nil {
			return after, err
		}
		after = last
		if !more {
			data.push()
		}
		if f, err = packing.next(ctx, frames); err != nil {
			return after, &readError{err}
		}
		if s.tooFar(g, f) {
			return after, errReopen // with a delta
		}
	}
}

// followed reports that frames has another one at once, where it can tell.
func followed(frames Frames) bool {
	f, ok := frames.(interface{ More() bool })
	return ok && f.More()
}

// reaches is err, met where the first frame of an opening was looked for, or that the
// replica needs a delta in its place.
func (s *sender) reaches(g *outgroup, f journal.Frame, err error) error {
	switch {
	case errors.Is(err, journal.ErrReclaimed) && s.takesDeltas(g):
		return &behindError{cause: err}
	case err != nil:
		return &readError{err}
	}
	if s.tooFar(g, f) {
		return &behindError{newest: true, cause: fmt.Errorf("the peer lacks what is older than %v", g.Coalesce[s.peer.Name])}
	}
	return nil
}

// refusedDeltaWait is how long a peer that refused a delta gets all frames instead.
const refusedDeltaWait = time.Hour

// tooFar reports that a peer that is yet to get f is better brought on by a delta.
func (s *sender) tooFar(g *outgroup, f journal.Frame) bool {
	limit, now := g.Coalesce[s.peer.Name], s.r.o.Now()
	return limit > 0 && now.Sub(f.FirstTime) > limit && s.takesDeltas(g) && now.UnixNano() >= g.whole.Load()
}

// limits are those of what is sent of g to the peer.
func (s *sender) limits(g *outgroup) throttles {
	return throttles{g.allowance.throttle, s.peer.allowance.throttle}
}

// admissible holds what a source offers against promises 9 and 10: nothing is sent
// that power loss could take back here, and nothing is left out.
func (s *sender) admissible(g *outgroup, f journal.Frame, next journal.Seq, l journal.Lineage) error {
	if durable := g.Source.Head().Durable; !covers(l, durable.Position, f.Last) && !s.r.faults.sendUndurable {
		return fmt.Errorf("send frame %d..%d: durable up to %d: %w", f.First.Seq, f.Last.Seq, durable.Seq, ErrNotDurable)
	}
	if f.First.Seq > next || f.Last.Seq < next || f.Bytes <= 0 || f.Bytes > s.r.o.MaxFrameBytes {
		return &readError{fmt.Errorf("frame %d..%d of %d bytes, want seq %d", f.First.Seq, f.Last.Seq, f.Bytes, next)}
	}
	return nil
}
