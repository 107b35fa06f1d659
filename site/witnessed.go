package site

import (
	"context"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// witnessedKey is where the site log keeps the promotion of the last takeover that nobody
// ordered whose machine ran.
const witnessedKey = "witness/started"

// startWitnessed does beside a reign what a takeover by right of the witness has left to
// do: its machine is started if that had failed, or the daemon died before. That takes the
// right, which this site has still or again; without it the machine stays off, and that is
// said. Once it ran nobody starts it again here: somebody may have switched it off.
func (l *life) startWitnessed(ctx context.Context, _ *reign) {
	if l.guard == nil || l.cfg.Machine == nil {
		return
	}
	p, ok, err := recovery.Newest(l.j)
	var ran cbt.ID
	if err == nil {
		_, err = l.j.Recall(witnessedKey, &ran)
	}
	if err != nil {
		l.site.o.Log.Error("look for a takeover by the witness", "group", l.cfg.Ref(), "err", err)
		return
	}
	if !ok || p.Order.Operator != witnessOperator || p.Order.Machine == "" || p.ID != l.roleNow().Promotion || p.ID == ran {
		return
	}
	defer l.startWaits("", "")
	said := ""
	for wait := askFirst; ctx.Err() == nil; {
		over, why, err := l.startUnordered(ctx, p.ID)
		if over || ctx.Err() != nil {
			return
		}
		longest := bootEvery
		if err != nil {
			why, longest = err.Error(), renewLast
		}
		l.startWaits(p.Order.Machine, why)
		if why != "" && why != said {
			l.site.o.Log.Warn("machine of a takeover by the witness is not started yet", "group", l.cfg.Ref(), "machine", p.Order.Machine, "why", why)
			said = why
		}
		wait = min(2*wait, longest)
		_ = pauseFor(ctx, wait) // the loop sees that ctx ended
	}
}

// startUnordered does one round; over: nothing is left to do. why is what it waits for,
// empty while a failover is under way, which starts the machine itself.
func (l *life) startUnordered(ctx context.Context, promotion cbt.ID) (over bool, why string, err error) {
	what := "start the machine of " + l.cfg.Ref()
	if l.failsOver() {
		return false, "", nil
	}
	switch err := l.machineGone(ctx, what); {
	case fault.Is(err, fault.NotReplica): // it runs
		err = l.j.Remember(witnessedKey, promotion)
		return err == nil, "", err
	case err != nil:
		return false, "", err
	}
	if why := l.notUnattended(ctx); why != "" {
		return false, why, nil
	}
	if !l.claimIdle() {
		return false, "", nil
	}
	defer l.releaseFailover()
	q := control.FailoverRequest{Group: l.cfg.Ref(), At: l.roleNow().At, Operator: witnessOperator}
	c, err := l.resumption(ctx, q)
	if fault.Is(err, fault.NotReplica) && l.roleNow().Role != recovery.Uncommitted {
		return true, "", nil // a person has decided on it
	}
	if err != nil || c == nil {
		return c == nil && err == nil, "", err
	}
	done, err := l.resume(ctx, q, c, func(control.Progress) {})
	if !done.Started {
		return false, "", err
	}
	if err != nil { // it runs; that it is not well is the log's to say
		l.site.o.Log.Error("machine of a takeover by the witness is not well", "group", l.cfg.Ref(), "err", err)
	}
	err = l.j.Remember(witnessedKey, promotion)
	return err == nil, "", err
}

// notUnattended is why a machine must not be started now that nobody ordered to be; "": it
// may.
func (l *life) notUnattended(ctx context.Context) string {
	if c := l.conflict(); c.why != "" {
		return "a peer has another history: " + c.why
	}
	if !l.guard.holds() {
		return "there is no right of the witness to run it"
	}
	return notStartedBy(l.cfg.Peers, false, func(peer string) (heads, error) {
		once, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		return ask[heads](once, l, peer, topicHeads, struct{}{})
	})
}

func (l *life) failsOver() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failover
}

// claimIdle is claimFailover without its wait, and disturbs no upkeep.
func (l *life) claimIdle() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failover {
		return false
	}
	l.failover = true
	return true
}
