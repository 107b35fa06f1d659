package site

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/replicator"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// yieldingFor is this site's history for one that is to follow it.
func (l *life) yieldingFor(operator string, dry bool) yielding {
	return yielding{Head: l.j.Head().Epoch, Branches: l.j.Branches(), Operator: operator, DryRun: dry}
}

// reprotectPlan says what peers that went another way would leave to follow this site.
func (l *life) reprotectPlan(ctx context.Context, d *control.Decision, q control.DecisionRequest) error {
	what := "reprotect " + d.Group
	r := l.roleNow()
	if !r.Role.Captures() {
		return fault.New(fault.NotPrimary, what, "the group is %s here", r.Stage()).Advise("Run the command at the site that is primary.")
	}
	if r.Role == recovery.Uncommitted {
		d.Refused = append(d.Refused, uncommittedHere)
	}
	if q.Peer != "" && !slices.Contains(l.cfg.Peers, q.Peer) {
		return fault.New(fault.PeerUnknown, what, "%s is no peer of the group", q.Peer)
	}
	for _, peer := range l.cfg.Peers {
		if q.Peer != "" && q.Peer != peer {
			continue
		}
		l.planPeer(ctx, d, peer, r)
	}
	return nil
}

// planPeer says how a peer comes to follow this site.
func (l *life) planPeer(ctx context.Context, d *control.Decision, peer string, r recovery.Reign) {
	if l.follows(peer) {
		d.Following = append(d.Following, peer)
		return
	}
	once, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	h, err := ask[heads](once, l, peer, topicHeads, struct{}{})
	if err != nil {
		d.Away = append(d.Away, peer)
		d.Steps = append(d.Steps, fmt.Sprintf("%s: does not answer; it leaves its own history when it is back, and follows", peer))
		return
	}
	if !l.halts(peer) {
		d.Steps = append(d.Steps, fmt.Sprintf("%s: is %s there, and follows by itself", peer, h.Stage))
		return
	}
	y, err := ask[yielded](once, l, peer, topicYield, l.yieldingFor("", true))
	if err != nil {
		d.Refused = append(d.Refused, fmt.Sprintf("%s does not follow: %v", peer, err))
		return
	}
	l.tellSides(d, peer, h, y.Common.Seq, l.site.cfg.Site)
	d.Steps = append(d.Steps, fmt.Sprintf("%s: leaves %d records after #%d.%d, which stay there as branch #%d.%d, kept and readable", peer, y.Beyond, y.Number, y.Common.Seq, h.Number, h.Head.Seq),
		fmt.Sprintf("%s: is sent what differs since that record, and nothing else", peer))
	if !recovery.CanFollow(l.j.Lineage(), y.Common.Position, h.Newest) {
		d.Steps = append(d.Steps, fmt.Sprintf("here: a new epoch goes on from #%d.%d, above epoch %d of %s; clients wait meanwhile", y.Number, y.Common.Seq, h.Newest, peer))
		if r := l.reigning(); r != nil && r.tracker != nil {
			d.Warnings = append(d.Warnings, "the machine's disks are read once more: a gap until that is done")
		}
	}
}

// follows reports that frames flow to a peer.
func (l *life) follows(peer string) bool {
	for _, lag := range l.site.repl.Lags() {
		if lag.Identity == l.id && lag.Direction == replicator.Outbound && lag.Peer == peer {
			return lag.State == replicator.StateStreaming || lag.State == replicator.StateCatchingUp
		}
	}
	return false
}

// tellSides shows both histories of a divergence.
func (l *life) tellSides(d *control.Decision, peer string, h heads, common journal.Seq, kept string) {
	numbers := epochNumbers(l.j)
	ours := l.j.Head()
	own := control.Side{Site: l.site.cfg.Site, Role: string(l.roleNow().Role), Kept: kept == l.site.cfg.Site, Head: fmt.Sprintf("#%d.%d", ours.Number, ours.Seq), Beyond: uint64(ours.Seq - common)}
	for _, b := range l.j.Branches() {
		own.History = append(own.History, branchOf(b))
	}
	for _, b := range h.Branches {
		numbers[b.ID] = b.Number
	}
	theirs := control.Side{Site: peer, Role: string(h.Role), Kept: kept == peer, Head: fmt.Sprintf("#%d.%d", numbers[h.Head.Epoch], h.Head.Seq), Beyond: uint64(h.Head.Seq - common)}
	for _, b := range h.Branches {
		theirs.History = append(theirs.History, branchOf(b))
	}
	d.Sides = append(d.Sides, own, theirs)
}

// protectKey is where the site log keeps the peers that are to follow this site.
const protectKey = "reprotect/orders"

// protecting is who is to follow.
type protecting map[string]followOrder

// followOrder is about the divergence that a person saw, and no later one: a peer that
// has followed since, and was failed over to then, is not to leave what it does now.
type followOrder struct {
	Operator string      `json:"operator,omitempty"`
	Upto     journal.Seq `json:"upto"`             // this site's head then: the histories part before it
	Newest   uint64      `json:"newest,omitempty"` // the peer's highest epoch then; 0: it did not answer
}

// errOtherDivergence says that a remembered order is void.
var errOtherDivergence = errors.New("the peer's history parts from this one at another place than when it was decided about")

// void is whether an order is about another divergence than the one that there is: common
// is where the histories part now, newest the peer's highest epoch. It is pure.
func (o followOrder) void(common journal.Seq, newest uint64) bool {
	return common > o.Upto || o.Newest != 0 && newest > o.Newest
}

// reprotect has the peers follow, or remembers that they are to when they are back: all of
// them, or the one that only says. What was decided about others before stays then.
func (l *life) reprotect(ctx context.Context, d *control.Decision, operator, only string) error {
	if err := l.orders.Lock(ctx); err != nil { // two that ask a peer at once hear of one another's success as a refusal
		return fmt.Errorf("wait for a peer that is being asked to follow: %w", err)
	}
	defer l.orders.Unlock()
	wanted, others := protecting{}, protecting{}
	if only != "" {
		if _, err := l.j.Recall(protectKey, &others); err != nil {
			return fmt.Errorf("recall who is to follow: %w", err)
		}
	}
	for _, peer := range l.cfg.Peers {
		if (only == "" || only == peer) && !slices.Contains(d.Following, peer) {
			wanted[peer] = l.followOrderFor(ctx, peer, operator)
		}
	}
	return l.orderToFollow(ctx, d, wanted, others)
}

func (l *life) followOrderFor(ctx context.Context, peer, operator string) followOrder {
	o := followOrder{Operator: operator, Upto: l.j.Head().Seq}
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	if h, err := ask[heads](ctx, l, peer, topicHeads, struct{}{}); err == nil {
		o.Newest = h.Newest
	}
	return o
}

// orderToFollow makes wanted durable beside others, and has those follow that are there.
func (l *life) orderToFollow(ctx context.Context, d *control.Decision, wanted, others protecting) error {
	remember := func() error {
		all := maps.Clone(others)
		maps.Copy(all, wanted)
		if err := l.j.Remember(protectKey, all); err != nil {
			return fmt.Errorf("remember who is to follow: %w", err)
		}
		return nil
	}
	if err := remember(); err != nil {
		return err
	}
	l.site.o.passes("who is to follow is remembered")
	d.Away = nil
	for _, peer := range slices.Sorted(maps.Keys(wanted)) {
		if done, err := l.haveFollow(ctx, peer, wanted[peer]); err != nil || !done {
			if errors.Is(err, replicator.ErrDeclined) {
				return err
			}
			d.Away = append(d.Away, peer)
			continue
		}
		delete(wanted, peer) // it holds once
		d.Following = append(d.Following, peer)
	}
	slices.Sort(d.Following)
	return remember()
}

// haveFollow asks a peer to leave its own history for this site's, as a person decided.
func (l *life) haveFollow(ctx context.Context, peer string, o followOrder) (done bool, err error) {
	if l.follows(peer) {
		return true, nil
	}
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	h, err := ask[heads](ctx, l, peer, topicHeads, struct{}{})
	if err != nil {
		return false, err
	}
	if h.Stage == recovery.StageLeft { // it has left already and waits for us
		return true, nil
	}
	if !l.halts(peer) {
		return false, nil // no session has compared the histories yet
	}
	y, err := ask[yielded](ctx, l, peer, topicYield, l.yieldingFor("", true))
	if err != nil {
		return false, err
	}
	if o.void(y.Common.Seq, h.Newest) {
		return false, errOtherDivergence
	}
	if _, err := ask[yielded](ctx, l, peer, topicYield, l.yieldingFor(o.Operator, false)); err != nil {
		return false, err
	}
	l.site.o.Log.Warn("peer leaves its history and follows", "group", l.cfg.Ref(), "peer", peer, "operator", o.Operator)
	return true, nil
}

// protect carries out, beside a reign, what was decided about peers that were away.
func (l *life) protect(ctx context.Context) {
	for ; ctx.Err() == nil; _ = pauseFor(ctx, protectLook) {
		if l.roleNow().Role == recovery.Primary {
			l.protectNow(ctx)
		}
	}
}

// protectNow asks who is to follow and does not yet, one after the other: a person who
// decides meanwhile waits for one answer at most.
func (l *life) protectNow(ctx context.Context) {
	var wanted protecting
	if ok, err := l.j.Recall(protectKey, &wanted); !ok || err != nil {
		return
	}
	for _, peer := range slices.Sorted(maps.Keys(wanted)) {
		if l.orders.Lock(ctx) != nil {
			return
		}
		l.protectFrom(ctx, peer)
		l.orders.Unlock()
	}
}

// protectFrom asks one that is still to follow; l.orders is held.
func (l *life) protectFrom(ctx context.Context, peer string) {
	var wanted protecting
	if _, err := l.j.Recall(protectKey, &wanted); err != nil {
		return
	}
	order, ok := wanted[peer]
	if !ok { // somebody else has seen to it
		return
	}
	done, err := l.haveFollow(ctx, peer, order)
	if errors.Is(err, errOtherDivergence) {
		l.site.o.Log.Error("an earlier decision about a peer is void", "group", l.cfg.Ref(), "peer", peer, "operator", order.Operator, "err", err)
		done, err = true, nil
	}
	if err != nil && !errors.Is(err, replicator.ErrNotConnected) && ctx.Err() == nil {
		l.site.o.Log.Info("peer does not follow yet", "group", l.cfg.Ref(), "peer", peer, "err", err)
	}
	if !done {
		return
	}
	delete(wanted, peer)
	if err := l.j.Remember(protectKey, wanted); err != nil {
		l.site.o.Log.Warn("remember who is to follow", "group", l.cfg.Ref(), "err", err)
	}
}

// patient is a lock whose waiters may give up.
type patient chan struct{}

func newPatient() patient { return make(patient, 1) }

func (p patient) Lock(ctx context.Context) error {
	select {
	case p <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (p patient) TryLock() bool {
	select {
	case p <- struct{}{}:
		return true
	default:
		return false
	}
}

func (p patient) Unlock() { <-p }

const protectLook = 500 * time.Millisecond

// resolvePlan says what it means to keep one of two histories.
func (l *life) resolvePlan(ctx context.Context, d *control.Decision, q control.DecisionRequest) error {
	what := "resolve " + d.Group
	self := l.site.cfg.Site
	if q.Keep == self {
		if l.roleNow().Role == recovery.Uncommitted {
			d.Steps = append(d.Steps, "commit: the failover here is the trunk")
		}
		if err := l.reprotectPlan(ctx, d, control.DecisionRequest{Group: q.Group, Peer: q.Peer}); err != nil {
			return err
		}
		d.Refused = slices.DeleteFunc(d.Refused, func(s string) bool { return l.roleNow().Role == recovery.Uncommitted && s == uncommittedHere })
		return nil
	}
	if !slices.Contains(l.cfg.Peers, q.Keep) {
		return fault.New(fault.PeerUnknown, what, "%q is neither this site nor a peer of the group", q.Keep)
	}
	if !l.halts(q.Keep) {
		d.Refused = append(d.Refused, "no divergence from "+q.Keep+" is known")
		return nil
	}
	once, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	h, err := ask[heads](once, l, q.Keep, topicHeads, struct{}{})
	if err != nil {
		return err
	}
	_, y, err := l.leaving(h, q.Keep, q.Operator)
	if err != nil {
		return err
	}
	l.tellSides(d, q.Keep, h, y.Common.Seq, q.Keep)
	if since, _, err := l.givenUp(ctx, journal.Point{Position: y.Common.Position, Number: y.Number}, l.j.Head()); err == nil { // else it is not known
		d.Loss = lossOf(since, l.volumeNames())
	}
	if h.Role != recovery.Primary { // else a rollback there would leave nobody to reign
		d.Refused = append(d.Refused, fmt.Sprintf("the group is %s at %s: commit the failover there first, or resolve there", h.Role, q.Keep))
	}
	if err := l.machineIsOff(ctx); err != nil {
		d.Refused = append(d.Refused, err.Error())
	}
	d.Steps = append(d.Steps, fmt.Sprintf("leave: the %d records here after #%d.%d are a branch, kept and readable", y.Beyond, y.Number, y.Common.Seq),
		fmt.Sprintf("follow: this site is a replica of %s from there on", q.Keep))
	return nil
}

// uncommittedHere is why a reprotect is refused.
const uncommittedHere = "the failover here is not committed: failover commit makes it the trunk"

// resolve keeps one of two histories: the other site leaves its own.
func (l *life) resolve(ctx context.Context, d *control.Decision, q control.DecisionRequest) error {
	if q.Keep == l.site.cfg.Site {
		if l.roleNow().Role == recovery.Uncommitted {
			if err := l.commit(q.Operator); err != nil {
				return err
			}
		}
		return l.reprotect(ctx, d, q.Operator, q.Peer)
	}
	once, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	h, err := ask[heads](once, l, q.Keep, topicHeads, struct{}{})
	if err != nil {
		return err
	}
	if h.Role != recovery.Primary {
		return fault.New(fault.RoleForbids, "resolve "+d.Group, "the group is %s at %s now", h.Role, q.Keep)
	}
	left, _, err := l.leaving(h, q.Keep, q.Operator)
	if err != nil {
		return err
	}
	if err := l.leaveFor(left); err != nil {
		return err
	}
	d.Following = []string{l.site.cfg.Site}
	return nil
}
