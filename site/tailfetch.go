package site

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// A tail comes over the replication that is there: the peer that holds it sends the group
// to who asked, as a relay does, until told that it has all, or not asked any more.
//
//	asker                                 peer
//	tail {send}, again and again  ──────▶ lend: the asker is among those it sends to
//	              ◀────── frames, as of any source ──────
//	tail {done}                   ──────▶ it is not any more

// Bounds of a fetch.
const (
	lendLasts   = 10 * time.Second // after the newest question
	lendAgain   = time.Second
	tailStall   = 15 * time.Second // without a record
	tailLimit   = 10 * time.Minute // altogether, where nobody said
	tailFarewel = 2 * time.Second
)

// lending is the peers to which a replica sends for a while what it holds.
type lending struct {
	mu    sync.Mutex // guards until
	until map[string]time.Time
}

func (b *lending) begin(peer string) (fresh bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	fresh = now.After(b.until[peer])
	if b.until == nil {
		b.until = map[string]time.Time{}
	}
	b.until[peer] = now.Add(lendLasts)
	return fresh
}

func (b *lending) end(peer string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.until, peer)
}

// with is peers and those that are lent to.
func (b *lending) with(peers []string) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := slices.Clone(peers)
	for peer, until := range b.until {
		if time.Now().Before(until) && !slices.Contains(out, peer) {
			out = append(out, peer)
		}
	}
	return out
}

// lend sends what is here to a peer for a while; why it does not.
func (l *life) lend(peer string) (bool, string) {
	switch r := l.roleNow(); {
	case r.Role.Captures(): // it is sent to anyway
		return true, ""
	case r.Stage() != recovery.StageReplica:
		return false, fmt.Sprintf("the group is %s at %s", r.Stage(), l.site.cfg.Site)
	}
	if p, ok := l.site.cfg.Peer(peer); !ok || p.Address == "" {
		return false, fmt.Sprintf("%s knows no address of %s, and who sends has to call", l.site.cfg.Site, peer)
	}
	if l.lent.begin(peer) {
		l.site.o.Log.Info("what is held here is sent to a peer that asked for it", "group", l.cfg.Ref(), "peer", peer)
		l.site.repl.Refresh()
	}
	return true, ""
}

// tailOf is the step of a failover that fetches a plan's tail; then the plan is made anew.
func (l *life) tailOf(plan recovery.Plan, q control.FailoverRequest, progress func(control.Progress)) func(context.Context) (recovery.Plan, string, error) {
	return func(ctx context.Context) (recovery.Plan, string, error) {
		what := "fetch the tail of " + l.cfg.Ref()
		limit := tailLimit
		if q.TailSeconds > 0 {
			limit = time.Duration(q.TailSeconds * float64(time.Second))
		}
		fetching, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not all arrived within %v", limit))
		err := l.fetchTail(fetching, *plan.Tail, progress)
		cancel()
		if err != nil {
			return plan, "", fault.Wrap(fault.TailTrouble, what, err).With(planOf(plan))
		}
		anew := q
		anew.At, anew.WithoutTail, anew.Tail = atAnew(q.At, plan), true, "" // what is there still is not promised any more
		now, err := l.plan(ctx, anew)
		if err != nil {
			return plan, "", err
		}
		now.At, now.Fence, now.Fencing = plan.At, plan.Fence, plan.Fencing
		now.Tail, now.WithoutTail, now.Steps = plan.Tail, false, plan.Steps
		if err := l.j.Remember(planKey, keptAs(now, plan)); err != nil {
			return plan, "", err
		}
		return now, fmt.Sprintf("%d records from %s; the history here ends at #%d.%d", plan.Tail.Records, plan.Tail.Peer, plan.Tail.Number, plan.Tail.Head.Seq), nil
	}
}

// atAnew is what was asked for, once the history is another one: the latest moves with
// it, a time stays the one that it was when the plan was made, and any other point stays
// the record that was shown.
func atAnew(at string, p recovery.Plan) string {
	if strings.HasPrefix(at, "latest") {
		return at
	}
	if when, ok := timeIn(at, p.Made); ok {
		return when.Format(time.RFC3339Nano)
	}
	return fmt.Sprintf("#%d.%d", p.Point.Number, p.Point.Seq)
}

// keptAs is a plan under the name by which an earlier form of it was confirmed.
func keptAs(now, confirmed recovery.Plan) recovery.Plan {
	now.Digest, now.Policy = confirmed.Digest, confirmed.Policy
	return now
}

// fetchTail has t's peer send what it holds, and returns when that is durable here.
func (l *life) fetchTail(ctx context.Context, t recovery.Tail, progress func(control.Progress)) error {
	l.noteHeard(map[string]*recovery.SourceHead{}) // once another one sends, the old source is not told of any more
	defer l.endTail(ctx, t.Peer)
	began := l.j.Head().Seq
	at, moved := began, time.Now()
	var asked time.Time
	for {
		head := l.j.Head()
		if l.j.Lineage().Holds(t.Head) {
			return l.j.WaitDurable(ctx, t.Head)
		}
		if head.Seq != at {
			at, moved = head.Seq, time.Now()
		}
		if silent := time.Since(moved); silent > tailStall {
			return fmt.Errorf("no record came from %s for %v: %d of %d arrived", t.Peer, silent.Round(time.Second), at-began, t.Records)
		}
		if time.Since(asked) > lendAgain {
			if err := l.askToSend(ctx, t.Peer); err != nil {
				return err
			}
			asked = time.Now()
			progress(control.Progress{Step: fmt.Sprintf("tail: %d of %d records from %s", at-began, t.Records, t.Peer)})
		}
		if err := pauseFor(ctx, answerLook); err != nil {
			return err
		}
	}
}

func (l *life) askToSend(ctx context.Context, peer string) error {
	l.site.calls.call(peer)
	once, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	a, err := ask[standing](once, l, peer, topicTail, asking{After: l.j.Head().Position, Send: true})
	switch {
	case err != nil:
		return fmt.Errorf("ask %s for its tail: %w", peer, err)
	case !a.Sending:
		return errors.New(a.Why)
	}
	return nil
}

// endTail tells the peer that no more is wanted: from here on it is to follow this site.
func (l *life) endTail(ctx context.Context, peer string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tailFarewel)
	defer cancel()
	if _, err := ask[standing](ctx, l, peer, topicTail, asking{After: l.j.Head().Position, Done: true}); err != nil {
		l.site.o.Log.Info("peer not told that its tail is here; it stops by itself", "group", l.cfg.Ref(), "peer", peer, "err", err)
	}
}
