package site

import (
	"context"
	"sync"
	"time"

	"github.com/novacron/afterimage/recovery/evidence"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
)

// rehearsal is what is known of a group's drills.
type rehearsal struct {
	held  time.Time // of the newest one that held; zero: none ever did
	tried time.Time // of the newest one
}

// rehearsed is what the evidence has of a group's drills.
func rehearsed(ref string, entries []evidence.Entry) (r rehearsal) {
	for _, e := range entries {
		if e.Kind != evidence.Drill || !e.Of(ref) {
			continue
		}
		r.tried = e.Time
		if e.Held {
			r.held = e.Time
		}
	}
	return r
}

// nextDrill is when a scheduled drill begins: so that the objective is never missed if
// it holds, at its quiet time where one is given, else a tenth of the span early. One
// that did not hold is repeated at the next quiet time, else after a tenth of the span,
// an hour at most. One that is overdue begins at the next quiet time, else now. It is
// pure; now's zone is that of the quiet time.
func nextDrill(c config.Drill, r rehearsal, since, now time.Time) time.Time {
	every := time.Duration(c.Every)
	from := since
	if r.held.After(from) {
		from = r.held
	}
	quiet := c.At != ""
	next := from.Add(every - every/10)
	if quiet {
		next = quietBefore(c.At, from.Add(every).In(now.Location()))
		if !next.After(from) {
			next = quietAfter(c.At, from.Add(every).In(now.Location()))
		}
	}
	if !r.tried.Before(next) { // it was tried for that, and did not hold
		next = r.tried.Add(min(every/10, time.Hour))
		if quiet {
			next = quietAfter(c.At, next.In(now.Location()))
		}
	}
	switch {
	case !next.Before(now):
		return next
	case quiet:
		return quietAfter(c.At, now)
	}
	return now
}

// quietBefore is the newest quiet time that is not after t.
func quietBefore(at config.Clock, t time.Time) time.Time {
	if q := at.On(t); !q.After(t) {
		return q
	}
	return at.On(t.AddDate(0, 0, -1))
}

// quietAfter is the first quiet time that is not before t.
func quietAfter(at config.Clock, t time.Time) time.Time {
	if q := at.On(t); !q.Before(t) {
		return q
	}
	return at.On(t.AddDate(0, 0, 1))
}

// drillDue is when the group's next scheduled drill begins; zero: none is scheduled
// here. A site rehearses what it would take over, so not what it runs.
func (s *Site) drillDue(g *group, role string, since time.Time) time.Time {
	if g.cfg.Drill == nil || g.cfg.Machine == nil || role != string(config.Replica) {
		return time.Time{}
	}
	now := s.o.Now()
	if zone, err := time.LoadLocation(g.cfg.TZ); err == nil && g.cfg.TZ != "" {
		now = now.In(zone)
	}
	r := rehearsed(g.cfg.Ref(), s.measured())
	s.mu.Lock()
	if t := s.tried[g.cfg.Ref()]; t.After(r.tried) {
		r.tried = t
	}
	s.mu.Unlock()
	return nextDrill(*g.cfg.Drill, r, since, now)
}

// lookForDrills is how often the clock is looked at again while a drill is waited for:
// it may be set, the machine may sleep, and a person may rehearse meanwhile.
const lookForDrills = time.Minute

// scheduleDrills begins drills at their times until ctx ends, one at a time.
func (s *Site) scheduleDrills(ctx context.Context) {
	var groups sync.WaitGroup
	for _, g := range s.groups {
		if g.cfg.Drill != nil && g.cfg.Machine != nil {
			groups.Go(func() { s.scheduleDrillsOf(ctx, g) })
		}
	}
	groups.Wait()
}

func (s *Site) scheduleDrillsOf(ctx context.Context, g *group) {
	for {
		due := s.dueNow(ctx, g)
		span := lookForDrills
		if !due.IsZero() {
			span = min(span, max(due.Sub(s.o.Now()), 0))
		}
		wait := time.NewTimer(span)
		select {
		case <-ctx.Done():
			wait.Stop()
			return
		case <-wait.C:
		}
		if due.IsZero() || s.o.Now().Before(due) {
			continue
		}
		s.drilling.Lock()
		s.drillBySchedule(ctx, g)
		s.drilling.Unlock()
	}
}

// dueNow asks the group what it is here, and when its next drill is.
func (s *Site) dueNow(ctx context.Context, g *group) time.Time {
	l, release, err := g.await(ctx)
	if err != nil {
		return time.Time{}
	}
	defer release()
	r := l.roleNow()
	return s.drillDue(g, string(r.Role), r.Since)
}

func (s *Site) drillBySchedule(ctx context.Context, g *group) {
	if ctx.Err() != nil {
		return
	}
	s.mu.Lock()
	s.tried[g.cfg.Ref()] = s.o.Now()
	s.mu.Unlock()
	_, err := s.TestFailover(ctx, control.DrillRequest{Group: g.cfg.Ref(), At: "latest", Operator: "schedule"}, func(control.Progress) {})
	if err != nil && ctx.Err() == nil {
		s.o.Log.Error("scheduled drill failed", "group", g.cfg.Ref(), "err", err)
	}
}
