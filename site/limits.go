package site

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/replicator"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// keptLimit is a limit that a person set, as it is kept beside the peers' keys: it outlives
// the process, up to its end.
type keptLimit struct {
	BytesPerSecond int64     `json:"bytes_per_second"`
	Until          time.Time `json:"until"` // zero: until it is changed
}

// limitKey is what a limit is kept by: a group's, or else a peer's.
func limitKey(peer, group string) string {
	if group != "" {
		return "group " + group
	}
	return "peer " + peer
}

// limit keeps what was set, or forgets it where the timetable rules again.
func (p *pairing) limit(key string, set *keptLimit) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	was := maps.Clone(p.kept.Limits)
	if p.kept.Limits == nil {
		p.kept.Limits = map[string]keptLimit{}
	}
	maps.DeleteFunc(p.kept.Limits, func(_ string, l keptLimit) bool { return !l.Until.IsZero() && !p.now().Before(l.Until) })
	if set == nil {
		delete(p.kept.Limits, key)
	} else {
		p.kept.Limits[key] = *set
	}
	err := p.keepLocked()
	if err != nil {
		p.kept.Limits = was
	}
	return err
}

// limited is what was set, nil where nothing was or its time is over.
func (p *pairing) limited(key string) *replicator.SetLimit {
	p.mu.Lock()
	defer p.mu.Unlock()
	l, ok := p.kept.Limits[key]
	if !ok || !l.Until.IsZero() && !p.now().Before(l.Until) {
		return nil
	}
	return &replicator.SetLimit{BytesPerSecond: l.BytesPerSecond, Until: l.Until}
}

// Limit implements control.API. What is set outlives this process.
func (s *Site) Limit(_ context.Context, q control.LimitRequest) (control.Limited, error) {
	what, key := "limit peer "+q.Peer, limitKey(q.Peer, "")
	l := replicator.Limit{Peer: q.Peer, BytesPerSecond: q.BytesPerSecond, For: time.Duration(q.ForSeconds * float64(time.Second)), Schedule: q.Schedule}
	if q.Group != "" {
		g, err := s.group(q.Group)
		if err != nil {
			return control.Limited{}, err
		}
		what, key, l.Group = "limit group "+g.cfg.Ref(), limitKey("", g.cfg.Ref()), g.id
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
	var set *keptLimit
	if a.Set {
		set = &keptLimit{BytesPerSecond: a.BytesPerSecond, Until: a.Until}
	}
	if err := s.pairs.limit(key, set); err != nil {
		return control.Limited{}, explain(what+" beyond the life of this process", err)
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
