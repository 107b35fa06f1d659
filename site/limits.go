package site

import (
	"context"
	"fmt"
	"time"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/replicator"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// Limit implements control.API. What is set lasts no longer than this process: the
// configuration says what rules after a restart.
func (s *Site) Limit(_ context.Context, q control.LimitRequest) (control.Limited, error) {
	what := "limit peer " + q.Peer
	l := replicator.Limit{Peer: q.Peer, BytesPerSecond: q.BytesPerSecond, For: time.Duration(q.ForSeconds * float64(time.Second)), Schedule: q.Schedule}
	if q.Group != "" {
		g, err := s.group(q.Group)
		if err != nil {
			return control.Limited{}, err
		}
		what, l.Group = "limit group "+g.cfg.Ref(), g.id
	}
	if q.BytesPerSecond < 0 || l.For < 0 {
		return control.Limited{}, fault.New(fault.ConfigValue, what, "a limit of %d bytes a second for %v", q.BytesPerSecond, l.For)
	}
	if !s.running() || s.repl == nil {
		return control.Limited{}, fault.New(fault.NeedsDaemon, what, "a limit is of what is being sent")
	}
	a, err := s.repl.Limit(l)
	if err != nil {
		return control.Limited{}, explain(what, err)
	}
	s.o.Log.Info("limit changed", "peer", q.Peer, "group", q.Group, "bytes_per_second", a.BytesPerSecond, "until", a.Until)
	return limitedOf(q.Peer, q.Group, a), nil
}

func limitedOf(peer, group string, a replicator.Allowed) control.Limited {
	return control.Limited{Peer: peer, Group: group, BytesPerSecond: a.BytesPerSecond, Set: a.Set, Until: a.Until, Schedule: a.Schedule}
}

// limitOf is what may be sent to a peer now.
func (s *Site) limitOf(peer string) control.Limited {
	if s.repl != nil {
		if a, err := s.repl.Allowed(peer, journal.Identity{}); err == nil {
			return limitedOf(peer, "", a)
		}
	}
	out := control.Limited{Peer: peer}
	if p, ok := s.cfg.Peer(peer); ok {
		out.BytesPerSecond, out.Schedule = int64(p.Limit), p.BWLimit
		if p.Limit > 0 {
			out.Schedule = fmt.Sprint(p.Limit)
		}
	}
	return out
}

// carried says what carries the session with a peer. Where each end has begun one, it
// is the session that this site began.
func (s *Site) carried(e *control.Peer) {
	if !s.running() || s.repl == nil {
		return
	}
	for _, x := range s.repl.Sessions() {
		if x.Peer == e.Name && (e.Transport == "" || x.Dialled) {
			e.Transport, e.TransportWhy, e.Connections, e.RTTSeconds = x.Transport, x.Why, x.Connections, x.RTT.Seconds()
		}
	}
}
