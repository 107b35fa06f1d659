package site

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/replicator"
	"github.com/novacron/afterimage/site/control"
)

// The giver's side of a handover. The life that drains begins no epoch: nobody can
// write, whatever happens, and the head stands still. It gives the role up, durably,
// once the peer has said that it holds all of it; only then is the peer told to take
// over, again and again, until it has, or has said that it never will.
//
//	crash while it drains    → the next life withdraws: nothing was given up
//	crash after it was ceded → the next life asks the peer again

// drainPatience is how long the peer may take to hold all, where nobody said.
const drainPatience = time.Minute

// Pauses between questions to a peer that does not answer.
const (
	askFirst = 20 * time.Millisecond
	askLast  = 2 * time.Second
	askLimit = 10 * time.Second // for one answer
)

// move is a handover that this process carries out.
type move struct {
	id       cbt.ID
	patience time.Duration
	request  control.HandoverRequest
	step     func(control.Progress)
	began    time.Time // when nothing was written any more

	over chan struct{} // closed when it ended
	once sync.Once
	out  control.HandedOver // once over
	err  error

	mu    sync.Mutex // guards times
	times []recovery.StepTime
}

// timed does a step of the handover and keeps what it took.
func (m *move) timed(now func() time.Time, name recovery.StepName, f func() (detail string, err error)) error {
	began := now()
	detail, err := f()
	t := recovery.StepTime{Name: name, Began: began, Seconds: now().Sub(began).Seconds(), Detail: detail, Error: textOf(err)}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.times = append(m.times, t)
	return err
}

func (m *move) steps() []recovery.StepTime {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.times)
}

func (m *move) isOver() bool {
	select {
	case <-m.over:
		return true
	default:
		return false
	}
}

func (m *move) end(out control.HandedOver, err error) {
	m.once.Do(func() {
		m.out, m.err = out, err
		close(m.over)
	})
}

func (g *group) moveOf(id cbt.ID) *move {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.move != nil && g.move.id == id {
		return g.move
	}
	return nil
}

// drain brings a handover that began to where the role is ceded, or takes it back.
// The life is not settled yet: nobody else changes the role.
func (l *life) drain(ctx context.Context, r recovery.Reign) error {
	m := l.moveOf(r.Handover.ID)
	err := errors.New("the daemon was restarted before anything was given up")
	if m != nil {
		err = l.cede(ctx, m, r.Handover)
	}
	if err == nil || ctx.Err() != nil {
		return err
	}
	l.site.o.Log.Warn("handover withdrawn", "group", l.cfg.Ref(), "to", r.Handover.To, "err", err)
	if _, was := l.actClaimed(func(r recovery.Reign) (recovery.Reign, error) { return r.Withdraw(l.site.o.Now()) }); was != nil {
		return was
	}
	if m != nil {
		m.end(control.HandedOver{}, err)
	}
	return nil
}

// cede waits until the peer holds all, has its word for it, and gives the role up.
func (l *life) cede(ctx context.Context, m *move, h *recovery.Handover) error {
	m.began = l.site.o.Now()
	limit, cancel := context.WithTimeoutCause(ctx, m.patience, fmt.Errorf("%s does not hold all after %s", h.To, m.patience))
	defer cancel()
	head := l.j.Head()
	if err := l.j.WaitDurable(limit, head.Position); err != nil {
		return err
	}
	m.step(control.Progress{Step: fmt.Sprintf("drain: wait until %s holds record %s", h.To, head.Position)})
	err := m.timed(l.site.o.Now, recovery.StepDrain, func() (_ string, err error) {
		head, err = l.drained(limit, h.To, head)
		return fmt.Sprintf("%s holds record %s, durably", h.To, head.Position), err
	})
	if err != nil {
		return err
	}
	q := cession{ID: h.ID, Head: head.Durable, Number: l.newestNumber()}
	theirs, err := ask[statement](limit, l, h.To, topicOffer, q)
	switch {
	case err != nil:
		return err
	case theirs.Head != head.Durable:
		return fmt.Errorf("%s says that it ends at %s, this site ends at %s", h.To, theirs.Head.Position, head.Position)
	}
	if err := l.stayedOff(limit); err != nil {
		return fmt.Errorf("look again before the role is given up: %w", err)
	}
	both := fmt.Sprintf("both end at record %s, chain %s", head.Position, head.Durable.Chain.String())
	m.step(control.Progress{Step: "cede: " + both})
	return m.timed(l.site.o.Now, recovery.StepCede, func() (string, error) {
		_, err = l.actClaimed(func(r recovery.Reign) (recovery.Reign, error) {
			return r.Cede(head.Durable, head.Number, l.site.o.Now())
		})
		return both, err
	})
}

// stayedOff is nil if the machine is off still, and nothing of it was missed until the
// disks were shut. The life that drains has none open: it saw nobody start.
func (l *life) stayedOff(ctx context.Context) error {
	if err := l.nobodyRuns(ctx); err != nil {
		return err
	}
	if taps, err := l.tapsAny(); err != nil || !taps {
		return err
	}
	return l.endedWhole(ctx)
}

// drained waits until a peer holds all up to head, and head's chain value is known.
func (l *life) drained(ctx context.Context, to string, head journal.Head) (journal.Head, error) {
	for l.heldAt(to) != head.Position {
		if err := pauseFor(ctx, askFirst); err != nil {
			return head, err
		}
	}
	head = l.j.Head()
	for head.Durable.Position != head.Position { // its chain value is computed behind it
		if err := pauseFor(ctx, askFirst); err != nil {
			return head, err
		}
		head = l.j.Head()
	}
	return head, nil
}

// heldAt is up to where a peer holds our history durably, as it said.
func (l *life) heldAt(peer string) journal.Position {
	for _, lag := range l.site.repl.Lags() {
		if lag.Identity == l.id && lag.Direction == replicator.Outbound && lag.Peer == peer {
			return lag.Durable.Position
		}
	}
	return journal.Position{}
}

// give tells the peer to take over what was ceded until that is settled. It returns
// when it is, whichever way, or when ctx ends.
func (l *life) give(ctx context.Context) error {
	r := l.roleNow()
	h := r.Handover
	m := l.moveOf(h.ID)
	q := cession{ID: h.ID, Head: h.Head, Number: max(h.Number, l.newestNumber()), Operator: h.Operator, NoMachine: h.NoMachine}
	topic, wait := topicTake, askFirst
	var said error
	began := l.site.o.Now()
	for {
		t, err := l.askOnce(ctx, h.To, topic, q)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err == nil && t.Taken:
			return l.given(ctx, m, h, t)
		case err == nil && t.Revoked:
			return l.takenBack(ctx, m, h, said)
		case errors.Is(err, replicator.ErrDeclined):
			topic, said = topicRevoke, err
		}
		l.site.o.Log.Info("handover waits for the peer", "group", l.cfg.Ref(), "to", h.To, "asked", topic, "err", err)
		if m != nil && !m.isOver() && l.site.o.Now().Sub(began) > m.patience { // who asked need not wait for it
			m.end(control.HandedOver{}, &awayError{h.To, err, l.cededAdvice(h)})
		}
		if err := pauseFor(ctx, wait); err != nil {
			return err
		}
		wait = min(2*wait, askLast)
	}
}

func (l *life) askOnce(ctx context.Context, peer, topic string, q cession) (taking, error) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	return ask[taking](ctx, l, peer, topic, q)
}

// given notes that the peer reigns: this site follows it from here on.
func (l *life) given(ctx context.Context, m *move, h *recovery.Handover, t taking) error {
	if err := l.forgetShut(ctx); err != nil {
		return fmt.Errorf("tidy up after what ran here: %w", err)
	}
	if _, err := l.patiently(ctx, func(r recovery.Reign) (recovery.Reign, error) {
		if r.Handover == nil || r.Handover.ID != h.ID {
			return r, fmt.Errorf("%w: another decision was made", recovery.ErrNotNow)
		}
		return r.Given(l.site.o.Now())
	}); err != nil {
		return err
	}
	l.site.o.Log.Warn("group handed over", "group", l.cfg.Ref(), "to", h.To, "epoch", t.Epoch, "record", h.Head.Position.String(), "chain", h.Head.Chain.String())
	if m == nil {
		_, err := l.reportGiven(ctx, h, t.Epoch, nil)
		return err
	}
	out := control.HandedOver{Last: control.Point{Epoch: h.Number, Seq: uint64(h.Head.Seq), Time: l.j.Head().Time}, Chain: h.Head.Chain.String(), Epoch: t.Epoch}
	_ = m.timed(l.site.o.Now, recovery.StepTake, func() (string, error) {
		if !l.awaitServing(ctx, h.To) {
			return fmt.Sprintf("epoch %d at %s; its disks were not seen served yet", t.Epoch, h.To), nil
		}
		out.PauseSeconds = l.site.o.Now().Sub(m.began).Seconds()
		return fmt.Sprintf("epoch %d at %s, its disks are served", t.Epoch, h.To), nil
	})
	out.Times = map[string]float64{}
	for _, s := range m.steps() {
		out.Times[string(s.Name)] = s.Seconds
	}
	var err error
	if out.Report, err = l.reportGiven(ctx, h, t.Epoch, m.steps()); err != nil {
		l.site.o.Log.Error("report of the handover not written", "group", l.cfg.Ref(), "err", err)
	}
	m.end(out, nil)
	return nil
}

// servingLimit is how long a giver waits to see the taker's disks served.
const servingLimit = 30 * time.Second

// awaitServing reports whether the peer's disks take writes, within a while.
func (l *life) awaitServing(ctx context.Context, peer string) bool {
	ctx, cancel := context.WithTimeout(ctx, servingLimit)
	defer cancel()
	for {
		if h, err := ask[heads](ctx, l, peer, topicHeads, struct{}{}); err == nil && h.Serving {
			return true
		}
		if pauseFor(ctx, askFirst) != nil {
			return false
		}
	}
}

// takenBack makes this site the primary again of what the peer will never take.
func (l *life) takenBack(ctx context.Context, m *move, h *recovery.Handover, why error) error {
	if _, err := l.patiently(ctx, func(r recovery.Reign) (recovery.Reign, error) {
		if r.Handover == nil || r.Handover.ID != h.ID {
			return r, fmt.Errorf("%w: another decision was made", recovery.ErrNotNow)
		}
		return r.Withdraw(l.site.o.Now())
	}); err != nil {
		return err
	}
	if why == nil {
		why = fmt.Errorf("%s said that it will never take it", h.To)
	}
	if m != nil {
		m.end(control.HandedOver{}, why)
	}
	return nil
}
