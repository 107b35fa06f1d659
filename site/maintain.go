package site

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// upkeep is how the maintenance of a group stands, across its lives.
type upkeep struct {
	mu      sync.Mutex // guards all below
	status  control.Maintenance
	holds   []control.Hold
	usage   journal.Usage
	told    string // the last failure or warning that was logged
	failure *fault.Error
}

// retentionOf is a group's configuration in the journal's words. It is pure.
func retentionOf(g config.Group) journal.Retention {
	r := journal.Retention{Lock: time.Duration(g.Lock), QuotaBytes: int64(g.Quota)}
	for _, rung := range g.History {
		j := journal.Rung{}
		if rung.Every != config.EveryWrite {
			j.Every = time.Duration(rung.Every)
		}
		if rung.For != config.Ever {
			j.For = time.Duration(rung.For)
		}
		r.Ladder = append(r.Ladder, j)
	}
	for _, w := range g.Warn {
		r.WarnAt = append(r.WarnAt, int(w))
	}
	return r
}

// pressLimit is at how much of its quota a group's history is maintained at once,
// whatever there is to fold and as fast as the disk goes, lest a gap opens while
// there is something to thin.
const pressLimit = config.Percent(80)

// keepUp maintains the group's history on its schedule, and when its quota presses,
// until ctx ends. It never fails: what does is logged, shown and tried again.
func (l *life) keepUp(ctx context.Context) {
	every := time.Duration(l.cfg.Maintenance.Every)
	look := every
	if l.cfg.Quota > 0 {
		look = min(every, time.Second)
	}
	tick := time.NewTicker(look)
	defer tick.Stop()
	next := l.site.o.Now().Add(every)
	var vain patience
	for {
		l.upkeep.note(func(u *upkeep) { u.status.Next = next })
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if r := l.roleNow(); r.Role.Captures() && l.reigning() == nil {
			continue // its disks are being opened, from history that is not referenced yet
		}
		now := l.site.o.Now()
		p, due := calm(l.cfg), !now.Before(next)
		presses := presses(l.j.Usage().Used, int64(l.cfg.Quota))
		if presses {
			p, due = pressed, due || vain.over(now)
		}
		if !due {
			continue
		}
		m, err := l.maintain(ctx, p, func(string, int64, int64) {})
		now = l.site.o.Now()
		next = now.Add(every)
		vain.note(now, presses && err == nil && m.Freed == 0)
	}
}

// patience spaces the attempts to free what could not be freed: it grows old enough to
// be thinned, or is let go of, without a word.
type patience struct {
	next time.Time
	wait time.Duration
}

const patienceFirst, patienceLimit = 2 * time.Second, time.Minute

// over reports that it is time for another attempt.
func (p *patience) over(now time.Time) bool { return !now.Before(p.next) }

// note takes in whether an attempt was in vain.
func (p *patience) note(now time.Time, vain bool) {
	if !vain {
		*p = patience{}
		return
	}
	p.wait = min(max(2*p.wait, patienceFirst), patienceLimit)
	p.next = now.Add(p.wait)
}

// presses reports that a quota is nearly used up. It is pure.
func presses(used, quota int64) bool {
	return quota > 0 && float64(used) >= float64(quota)/100*float64(pressLimit)
}

// pace is how much must have gathered before it is folded, and how fast.
type pace struct {
	foldBytes, bytesPerSecond int64
	trustClock, trustSiteLog  bool
}

// calm is the pace of the schedule: the journal's own measure of enough.
func calm(c config.Group) pace { return pace{bytesPerSecond: int64(c.Maintenance.Rate)} }

// pressed folds whatever there is, as fast as the disk goes.
var pressed = pace{foldBytes: 1}

func (u *upkeep) note(f func(*upkeep)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	f(u)
}

// look is how the upkeep stands.
func (u *upkeep) look() (status control.Maintenance, holds []control.Hold, failure *fault.Error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.status, u.holds, u.failure
}

// maintain thins, folds, merges and frees once. A failover that is under way goes
// first: its point must not be thinned between its plan and its promotion.
func (l *life) maintain(ctx context.Context, p pace, progress func(stage string, done, total int64)) (control.Maintained, error) {
	what := "maintain " + l.cfg.Ref()
	ctx, done, err := l.claimUpkeep(ctx)
	if err != nil {
		return control.Maintained{}, err
	}
	defer done()
	began := l.site.o.Now()
	l.upkeep.note(func(u *upkeep) { u.status.Running = true })
	if err := l.checkpoint(ctx); err != nil { // then their images hold on to more of the past, no more
		l.site.o.Log.Warn("checkpoint disks before maintenance", "group", l.cfg.Ref(), "err", err)
	}
	refs, holds, err := l.references(ctx, began)
	var r journal.Maintained
	if err == nil {
		r, err = l.j.Maintain(ctx, journal.Maintenance{Retention: retentionOf(l.cfg), References: refs, Now: began, BytesPerSecond: p.bytesPerSecond, FoldBytes: p.foldBytes, TrustClock: p.trustClock, TrustSiteLog: p.trustSiteLog, Progress: progress})
	}
	if errors.Is(context.Cause(ctx), errFailoverFirst) {
		err = fault.Wrap(fault.OperationBusy, what, errFailoverFirst)
	}
	out := control.Maintained{Group: l.cfg.Ref(), Time: began, Seconds: l.site.o.Now().Sub(began).Seconds(), Folded: r.Folded, Merged: r.Merged, Written: r.Written, Freed: r.Freed,
		Usage: usageOf(r.Usage), Warning: r.Warning, ClockLeap: r.ClockLeap.Seconds()}
	l.maintained(out, holds, r.Usage, explain(what, err))
	return out, explain(what, err)
}

// checkpoint brings the images of embedded disks to the head.
func (l *life) checkpoint(ctx context.Context) error {
	r := l.reigning()
	if r == nil {
		return nil
	}
	var errs []error
	for _, d := range r.disks {
		if d.checkpoint != nil {
			errs = append(errs, d.checkpoint(ctx))
		}
	}
	return errors.Join(errs...)
}

// maintained notes what came of a maintenance, and logs what is new of it.
func (l *life) maintained(m control.Maintained, holds []control.Hold, usage journal.Usage, err error) {
	log := l.site.o.Log.With("group", l.cfg.Ref())
	u := &l.upkeep
	u.mu.Lock()
	defer u.mu.Unlock()
	u.status.Running = false
	if holds != nil {
		u.holds = holds
	}
	if err != nil {
		f := fault.Of(err)
		if f.Code == fault.OperationBusy || f.Code == fault.Interrupted || f.Code == fault.JournalStopped {
			return // it is done later, or the group says itself what is wrong
		}
		u.status.Totals.Failures++
		u.failure, u.status.Error = f, f
		if u.told != f.Why {
			u.told = f.Why
			log.Error("maintenance failed", "code", f.Code, "err", err)
		}
		l.site.meters.failed(f.Code)
		return
	}
	u.failure, u.status.Error = nil, nil
	u.status.Last, u.usage = &m, usage
	t := &u.status.Totals
	t.Runs++
	t.Folded, t.Merged, t.Written, t.Freed = t.Folded+m.Folded, t.Merged+m.Merged, t.Written+m.Written, t.Freed+m.Freed
	if m.Folded+m.Merged+m.Freed > 0 {
		log.Info("history maintained", "folded", m.Folded, "merged", m.Merged, "written", m.Written, "freed", m.Freed, "segments", m.Segments, "runs", m.Usage.Runs, "used", m.Used, "seconds", m.Seconds)
	}
	if m.Warning != u.told {
		u.told = m.Warning
		if m.Warning != "" {
			log.Warn("history is not as it should be", "used", m.Used, "quota", m.Quota, "warning", m.Warning)
		}
	}
	for _, h := range holds {
		if h.Why != "" {
			log.Debug("peer beyond its hold", "peer", h.Peer, "state", h.State, "why", h.Why)
		}
	}
}

var errFailoverFirst = errors.New("a failover goes first")

// claimUpkeep makes its caller the one that maintains; a failover ends ctx.
func (l *life) claimUpkeep(ctx context.Context) (context.Context, func(), error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failover || l.upkeeping != nil {
		why := "a maintenance of it is under way"
		if l.failover {
			why = "a failover of it is under way"
		}
		return nil, nil, fault.New(fault.OperationBusy, "maintain "+l.cfg.Ref(), "%s", why)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	ended := make(chan struct{})
	l.upkeeping = func() { cancel(errFailoverFirst); <-ended }
	return ctx, func() {
		l.mu.Lock()
		l.upkeeping = nil
		l.mu.Unlock()
		close(ended)
		cancel(nil)
	}, nil
}

// Maintain implements control.API.
func (s *Site) Maintain(ctx context.Context, q control.MaintainRequest, progress func(control.Progress)) (control.Maintained, error) {
	what := "maintain " + q.Group
	g, err := s.group(q.Group)
	if err != nil {
		return control.Maintained{}, err
	}
	if !s.running() {
		return control.Maintained{}, fault.New(fault.NeedsDaemon, what, "history is thinned by the daemon")
	}
	l, release, err := g.await(ctx)
	if err != nil {
		return control.Maintained{}, err
	}
	defer release()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(l.ctx, func() { cancel(errDetached) })()
	if l.roleNow().Role.Captures() && l.reignOf(ctx) == nil {
		return control.Maintained{}, fault.New(fault.GroupFailed, what, "its disks are being opened").Advise("Try again in a moment.")
	}
	if q.DryRun {
		return l.forecast(ctx)
	}
	return l.maintain(ctx, pace{1, int64(l.cfg.Maintenance.Rate), q.TrustClock, q.TrustSiteLog}, func(stage string, done, total int64) {
		progress(control.Progress{Step: stage, Done: done, Total: total, Unit: "steps"})
	})
}

func usageOf(u journal.Usage) control.Usage {
	out := control.Usage{Used: u.Used, Quota: u.Quota, Segments: u.Segments, Runs: u.Runs, SegmentBytes: u.SegmentBytes, RunBytes: u.RunBytes, FramesFrom: uint64(u.FramesFrom.Seq)}
	if u.Oldest != nil {
		p := bare(*u.Oldest)
		out.Oldest = &p
	}
	return out
}

// notices are what somebody should know of the group's history: how full it is,
// who is beyond their hold, how many seconds the clock has leapt, what failed. They are none while all is well.
func notices(used, quota int64, warn []config.Percent, holds []control.Hold, damages int, leap float64, failure *fault.Error) []control.Notice {
	var out []control.Notice
	if leap > 0 {
		out = append(out, control.Notice{Level: control.Warning, Text: fmt.Sprintf("the clock is %v ahead of the time that has passed: no history is thinned", time.Duration(leap*float64(time.Second)).Round(time.Second)),
			Hint: "Set the clock right, or confirm it with group maintain NAME --trust-clock: what its time makes old is thinned for good then"})
	}
	if damages > 0 {
		out = append(out, control.Notice{Level: control.Alarm, Code: string(fault.DamageLeft), Text: fmt.Sprintf("the journal is damaged in %d places; point list shows which points that spoils", damages),
			Hint: "Others stay usable. verify --repair takes the bytes from a peer"})
	}
	passed := config.Percent(0)
	for _, w := range warn {
		if quota > 0 && float64(used) >= float64(quota)/100*float64(w) {
			passed = w
		}
	}
	switch {
	case quota > 0 && used >= quota:
		out = append(out, control.Notice{Level: control.Alarm, Code: string(fault.JournalFull), Text: fmt.Sprintf("the quota of %s is used up; what is written now may open a gap", bytesText(quota)),
			Hint: "Raise quota:, shorten history:, or let pins go"})
	case passed > 0:
		out = append(out, control.Notice{Level: control.Warning, Text: fmt.Sprintf("%d%% of the quota of %s is used; at 100%% history is thinned, then a gap opens", int64(float64(used)/float64(quota)*100), bytesText(quota)),
			Hint: "Raise quota:, shorten history:, or let pins go"})
	}
	for _, h := range holds {
		switch h.State {
		case control.HoldBeyond:
			out = append(out, control.Notice{Level: control.Warning, Text: fmt.Sprintf("peer %s is beyond its hold: %s; what it lacks is kept only as long as the ladder keeps it", h.Peer, h.Why),
				Hint: "Bring the peer back, or raise its hold:"})
		case control.HoldLost:
			out = append(out, control.Notice{Level: control.Alarm, Code: string(fault.HistoryThinned), Text: fmt.Sprintf("peer %s is cut off: %s", h.Peer, h.Why),
				Hint: "Nothing is lost here. explain " + string(fault.HistoryThinned) + " says what to do"})
		}
	}
	if failure != nil {
		out = append(out, control.Notice{Level: control.Alarm, Code: string(failure.Code), Text: "maintenance fails: " + failure.Why, Hint: failure.Advice()})
	}
	return out
}

// siteLogNotice is what to say while it is not known which pins and peers there were.
func siteLogNotice(l journal.SiteLogLoss) control.Notice {
	return control.Notice{Level: control.Warning, Code: string(fault.SiteLogLost), Text: fmt.Sprintf("entries of the site log were lost on %s: no history is thinned", l.Time.Format(timeLayout)),
		Hint: "Look whether pins (point list), role and peers (group show) are as they were, then run group maintain NAME --trust-site-log"}
}

// bytesText is a size as configurations say it, or rounded.
func bytesText(n int64) string {
	if s := config.Bytes(n).String(); n < 1<<20 || strings.HasSuffix(s, "iB") && len(s) < 8 {
		return s
	}
	f, unit := float64(n)/(1<<20), 0
	const units = "MGTPE"
	for ; f >= 1023.95 && unit < len(units)-1; unit++ {
		f /= 1024
	}
	return fmt.Sprintf("%.1f%ciB", f, units[unit])
}
