package site

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/recovery/witness"
	"github.com/novacron/afterimage/replicator"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// A replica takes over by itself when all of this holds: no primary sends to it; the
// lease has ended, and who took it last is a peer that did not give it back, so that its
// watchdog has paused its machines; the newest history here is that site's; nobody was
// promised that nothing is taken over; it was heard within rpo and a ttl of when it may
// have had the lease last; what is known to be lost is within the group's rpo. What it
// wrote after it was last heard is not known to anybody, and lost beside that.

// topicHold asks not to take over for a while → holding.
const topicHold = "witness/hold"

// holdQuery is a primary whose witness does not answer.
type holdQuery struct {
	TTL time.Duration `json:"ttl"`
}

// holding is the promise.
type holding struct {
	Until time.Duration `json:"for"` // from when it was asked
}

// holdsOff promises a peer that nothing is taken over here for ttl.
func (l *life) holdsOff(q holdQuery) (holding, error) {
	if r := l.roleNow(); r.Role.Captures() {
		return holding{}, declined("the group is %s here", r.Role)
	}
	u := l.guard
	if q.TTL <= 0 || u != nil && q.TTL != u.ttl {
		return holding{}, declined("the ttl of the witness is %s there", q.TTL)
	}
	if u == nil { // a person decides here
		return holding{q.TTL}, nil
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.taking || u.right != nil {
		return holding{}, declined("the group is being taken over here")
	}
	if until := time.Now().Add(q.TTL); until.After(u.until) {
		u.until = until
	}
	u.heldAt = l.site.o.Now()
	return holding{q.TTL}, nil
}

// peersPromise is nil once every peer has promised to take nothing over for ttl.
func (u *guardian) peersPromise(ctx context.Context, ttl time.Duration) error {
	l, release, err := u.g.use()
	if err != nil {
		return err
	}
	defer release()
	said := make(chan error, len(u.g.cfg.Peers))
	for _, peer := range u.g.cfg.Peers {
		go func() {
			a, err := ask[holding](ctx, l, peer, topicHold, holdQuery{ttl})
			if err == nil && a.Until < ttl {
				err = errors.New("it promises less than was asked for")
			}
			if err != nil {
				err = fmt.Errorf("%s does not promise to hold off: %w", peer, err)
			}
			said <- err
		}()
	}
	var errs []error
	for range u.g.cfg.Peers {
		errs = append(errs, <-said)
	}
	return errors.Join(errs...)
}

// standBy takes the group over if everything says so.
func (u *guardian) standBy(ctx context.Context, l *life, r recovery.Reign) {
	if time.Now().Before(u.again) {
		return
	}
	limit, cancel := context.WithTimeout(ctx, u.ttl)
	defer cancel()
	last, err := u.mayTake(limit, l, r)
	if err != nil {
		u.setWhy(err.Error())
		return
	}
	if last == "" {
		u.setWhy("")
		return
	}
	u.takeOver(ctx, l, last)
}

func (u *guardian) setWhy(why string) {
	u.mu.Lock()
	u.why = why
	u.mu.Unlock()
}

// mayTake is who lost the group, if it may be taken over now; empty while all is well; an
// error is why it would not be taken over.
func (u *guardian) mayTake(ctx context.Context, l *life, r recovery.Reign) (string, error) {
	if r.Stage() != recovery.StageReplica || !r.Stood.IsZero() {
		return "", fmt.Errorf("the group is %s here, or was given up", r.Stage())
	}
	if c := l.conflict(); c.why != "" {
		return "", fmt.Errorf("a peer has another history: %s", c.why)
	}
	holder, held, err := u.w.Holder(ctx, u.g.id.Group)
	if err != nil || held { // who cannot be asked about may hold it
		u.mu.Lock()
		u.heldAt = u.site().o.Now()
		u.mu.Unlock()
	}
	if err != nil {
		return "", fmt.Errorf("the witness does not answer: %w", err)
	}
	if held {
		return "", u.permits(ctx, l, holder)
	}
	last, err := u.w.Last(ctx, u.g.id.Group)
	switch {
	case err != nil:
		return "", fmt.Errorf("the witness does not answer: %w", err)
	case last == "":
		return "", errors.New("no site runs the group by right of the witness")
	}
	if err := mayFollow(l, u.site().cfg.Site, last, u.recall().Taking); err != nil {
		return "", err
	}
	for _, lag := range u.site().lagsGoing(u.g, replicator.Inbound) {
		flows := lag.State == replicator.StateStreaming || lag.State == replicator.StateCatchingUp
		if flows && lag.Connected && !lag.Relayed && !silent(lag) {
			return "", fmt.Errorf("%s sends still, though its lease has ended", lag.Peer)
		}
	}
	u.mu.Lock()
	until := u.until
	u.mu.Unlock()
	if born := u.born.Add(u.ttl); born.After(until) { // what an earlier life promised holds
		until = born
	}
	if wait := time.Until(until); wait > 0 {
		return "", fmt.Errorf("%s was promised that nothing is taken over yet", last)
	}
	return last, u.permits(ctx, l, last)
}

// mayFollow is nil if who had the right last is the peer whose history this site has, or
// this site itself, in the middle of taking over from that one.
func mayFollow(l *life, own, last, taking string) error {
	if last == own {
		if taking == "" {
			return errors.New("this site itself had the right last, and gave it to nobody: a person decides")
		}
		last = taking
	}
	if !slices.Contains(l.cfg.Peers, last) {
		return fmt.Errorf("%s had the right, and is no peer of the group here", last)
	}
	head := l.j.Head().Epoch
	for _, b := range l.j.Branches() {
		if b.ID == head && b.Site == last {
			return nil
		}
	}
	return fmt.Errorf("%s had the right, and the newest history here is not its own: a person decides", last)
}

// permits is nil if the group's objective permits a failover as things are.
func (u *guardian) permits(ctx context.Context, l *life, primary string) error {
	head := l.j.Head()
	if head.Position.IsZero() {
		return errors.New("nothing of the group has arrived here yet")
	}
	_, source := l.heard(u.site().o.Now(), head, epochNumbers(l.j))
	rpo := time.Duration(u.g.cfg.RPO)
	if source == nil {
		return fmt.Errorf("no head of %s was ever heard: how much would be lost is not known", primary)
	}
	u.mu.Lock()
	unheard := u.heldAt.Sub(source.Heard)
	u.mu.Unlock()
	if unheard > rpo+u.ttl {
		return fmt.Errorf("%s was not heard for %s while it may have run the group, the objective is %s: a person decides", primary, unheard.Round(time.Second), rpo)
	}
	if lost := source.Time.Sub(head.Time); source.Head.Seq > head.Seq && lost > rpo {
		return fmt.Errorf("%s would be lost, the objective is %s: a person decides", lost.Round(time.Millisecond), rpo)
	}
	return nil
}

// takeOver takes the lease and fails over. One that does not come about is given back to
// who had it.
func (u *guardian) takeOver(ctx context.Context, l *life, last string) {
	u.mu.Lock()
	if time.Now().Before(u.until) { // promised in the meantime
		u.mu.Unlock()
		return
	}
	u.taking = true
	u.mu.Unlock()
	defer func() {
		u.mu.Lock()
		u.taking = false
		u.mu.Unlock()
	}()
	from := last
	if own := u.site().cfg.Site; last == own {
		from = u.recall().Taking
	} else if err := u.amend(func(k *guardKept) { k.Taking = last }); err != nil {
		u.refuse(err)
		return
	}
	may := func(now string, _ int64) error {
		if now != last {
			return fmt.Errorf("%w: %q took it since", errTakenSince, now)
		}
		return nil
	}
	if err := u.take(ctx, witness.Saved{}, may, l.roleNow().Promotion); err != nil {
		u.again = time.Now().Add(u.ttl / 16)
		u.refuse(errors.Join(err, u.untake(ctx, from)))
		return
	}
	s := u.site()
	s.o.Log.Warn("the primary's lease has ended: this site takes the group over", "group", u.g.cfg.Ref(), "primary", last)
	q := control.FailoverRequest{Group: u.g.cfg.Ref(), At: "latest", Operator: witnessOperator}
	done, err := s.Failover(ctx, q, func(control.Progress) {})
	if !promotes(l) { // else the next turn writes down which reign it is
		u.end(ctx, from)
	}
	if err != nil {
		u.setWhy("it was tried: " + err.Error())
		s.o.Log.Error("automatic failover", "group", u.g.cfg.Ref(), "err", err)
		u.again = time.Now().Add(u.ttl / 2) // nothing changes so soon
		return
	}
	s.o.Log.Warn("automatic failover done", "group", u.g.cfg.Ref(), "epoch", done.Epoch, "lost_seconds", done.Loss.Seconds, "report", done.Report)
}

// untake has the witness name from, not this site, as who had the right last, if it does
// name this site. Until it has, this site goes on taking over from that one.
func (u *guardian) untake(ctx context.Context, from string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), u.ttl/2)
	defer cancel()
	if err := u.w.Hand(ctx, u.g.id.Group, u.site().cfg.Site, from); err != nil {
		return err
	}
	return u.amend(func(k *guardKept) { k.Taking = "" })
}

// witnessOperator is who is written down for a failover that nobody ordered.
const witnessOperator = "witness"

// unattended refuses a plan that loses more than the group's rpo where nobody ordered it.
func (l *life) unattended(what string, plan recovery.Plan, q control.FailoverRequest) error {
	rpo := time.Duration(l.cfg.RPO)
	if q.Operator != witnessOperator || plan.Loss.Known && plan.Loss.Seconds <= rpo.Seconds() {
		return nil
	}
	return fault.New(fault.NotFenced, what, "%.3f s would be lost (known: %v), the objective is %s: a person decides", plan.Loss.Seconds, plan.Loss.Known, rpo).With(planOf(plan))
}
