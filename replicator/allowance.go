package replicator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/novacron/afterimage/journal"
)

// allowance is what may be sent to one peer, or of one group, in a second: what its
// timetable says, unless a person set something else, for a while or until changed.
type allowance struct {
	*throttle

	mu    sync.Mutex // guards all below
	table Timetable
	burst int64
	set   *Limit    // by a person
	until time.Time // of set; zero: no end
	rate  int64     // in force
}

func newAllowance(now func() time.Time, table Timetable, burst int64, set *SetLimit) *allowance {
	a := &allowance{throttle: newThrottle(now, 0, burst), table: table, burst: burst, rate: -1}
	if set != nil {
		a.set, a.until = &Limit{BytesPerSecond: set.BytesPerSecond}, set.Until
	}
	a.apply(now())
	return a
}

// apply puts what rules now in force, and says when to look again; zero: never.
func (a *allowance) apply(now time.Time) time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.set != nil && !a.until.IsZero() && !now.Before(a.until) {
		a.set = nil
	}
	rate, until := a.table.At(now)
	if a.set != nil {
		rate, until = a.set.BytesPerSecond, a.until
	}
	if rate != a.rate {
		a.rate = rate
		a.throttle.set(rate, a.burst)
	}
	return until
}

// change sets or lifts a person's limit.
func (a *allowance) change(l Limit, now time.Time) {
	a.mu.Lock()
	a.set, a.until = &l, time.Time{}
	if l.For > 0 {
		a.until = now.Add(l.For)
	}
	if l.Schedule {
		a.set = nil
	}
	if l.BurstBytes != a.burst {
		a.burst, a.rate = l.BurstBytes, -1
	}
	a.mu.Unlock()
	a.apply(now)
}

// schedule replaces the timetable.
func (a *allowance) schedule(t Timetable, now time.Time) {
	a.mu.Lock()
	a.table = t
	a.mu.Unlock()
	a.apply(now)
}

// Limit is a change of what may be sent in a second.
type Limit struct {
	Peer           string           // of all that goes to it
	Group          journal.Identity // unless zero: of all that goes out of the group, instead
	BytesPerSecond int64            // 0: no limit
	BurstBytes     int64            // 0: an eighth of a second's worth
	For            time.Duration    // then the timetable rules again; 0: until it is changed
	Schedule       bool             // the timetable rules again at once
}

// SetLimit is a limit that was set by a person before, as a new peer or group begins with.
type SetLimit struct {
	BytesPerSecond int64     // 0: no limit
	Until          time.Time // then the timetable rules; zero: it is until it is changed
}

// Allowed is what may be sent in a second now.
type Allowed struct {
	BytesPerSecond int64     // 0: no limit
	Set            bool      // by a person, not by the timetable
	Until          time.Time // when something else may rule; zero: not known
	Schedule       string    // the timetable
}

// ErrUnknownPeer: no such peer is configured.
var ErrUnknownPeer = errors.New("no such peer")

// allowanceOf is the one that l is about.
func (r *Replicator) allowanceOf(l Limit) (*allowance, error) {
	if l.Group != (journal.Identity{}) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if a := r.groupLimits[l.Group]; a != nil {
			return a, nil
		}
		return nil, ErrUnknownGroup
	}
	for _, p := range r.peersNow() {
		if p.Name == l.Peer {
			return p.allowance, nil
		}
	}
	return nil, fmt.Errorf("%w: %s", ErrUnknownPeer, l.Peer)
}

// Limit changes a limit at once, for what is under way too.
func (r *Replicator) Limit(l Limit) (Allowed, error) {
	a, err := r.allowanceOf(l)
	if err != nil {
		return Allowed{}, fmt.Errorf("limit what is sent: %w", err)
	}
	a.change(l, r.o.Now())
	select {
	case r.limited <- struct{}{}:
	default: // it will look anyway
	}
	return a.allowed(r.o.Now()), nil
}

// Allowed is what may be sent to a peer, or of a group.
func (r *Replicator) Allowed(peer string, group journal.Identity) (Allowed, error) {
	a, err := r.allowanceOf(Limit{Peer: peer, Group: group})
	if err != nil {
		return Allowed{}, fmt.Errorf("look up limit: %w", err)
	}
	return a.allowed(r.o.Now()), nil
}

func (a *allowance) allowed(now time.Time) Allowed {
	until := a.apply(now)
	a.mu.Lock()
	defer a.mu.Unlock()
	return Allowed{BytesPerSecond: a.rate, Set: a.set != nil, Until: until, Schedule: a.table.String()}
}

// SetLimit changes the limit of bytes per second sent to a peer, at once; 0 lifts it.
func (r *Replicator) SetLimit(peer string, bytesPerSecond, burstBytes int64) error {
	_, err := r.Limit(Limit{Peer: peer, BytesPerSecond: bytesPerSecond, BurstBytes: burstBytes})
	return err
}

// limitLoop follows the timetables. It looks at least once a minute: clocks are set,
// and hours come twice.
func (r *Replicator) limitLoop(ctx context.Context) error {
	for {
		now := r.o.Now()
		next := now.Add(time.Minute)
		r.mu.Lock()
		var all []*allowance
		for _, a := range r.groupLimits {
			all = append(all, a)
		}
		r.mu.Unlock()
		for _, p := range r.peersNow() {
			all = append(all, p.allowance)
		}
		for _, a := range all {
			if until := a.apply(now); !until.IsZero() && until.Before(next) {
				next = until
			}
		}
		if err := sleepUnless(ctx, max(next.Sub(now), time.Millisecond), r.limited); err != nil {
			return err
		}
	}
}

// scheduled is the timetable of a peer: the one it has, or its constant limit.
func (p Peer) scheduled() Timetable {
	if !p.Limits.IsZero() || p.LimitBytesPerSecond == 0 {
		return p.Limits
	}
	return Timetable{text: fmt.Sprintf("%dB", p.LimitBytesPerSecond), zone: time.UTC, rulings: []ruling{{0, p.LimitBytesPerSecond}}}
}

// limitGroups gives every group that is sent its allowance. mu is held.
func (r *Replicator) limitGroupsLocked(groups []Group) {
	wanted := make(map[journal.Identity]*allowance)
	for _, g := range groups {
		id := g.Source.Identity()
		a := cmp.Or(wanted[id], r.groupLimits[id])
		if a == nil {
			a = newAllowance(r.o.Now, g.Limits, 0, g.Set)
		} else {
			a.schedule(g.Limits, r.o.Now())
		}
		wanted[id] = a
	}
	r.groupLimits = wanted
}
