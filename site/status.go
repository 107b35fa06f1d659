package site

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/replicator"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// Status implements control.API.
func (s *Site) Status(ctx context.Context) (control.Status, error) {
	s.mu.Lock()
	since, addr := s.since, s.addr
	s.mu.Unlock()
	st := control.Status{Site: s.cfg.Site, Daemon: control.NotRunning, Pin: knownPin(s.cfg), NBD: s.cfg.NBD, Metrics: s.cfg.Metrics, Listen: s.cfg.Listen,
		Time: s.o.Now(), Groups: []control.Group{}, Peers: []control.Peer{}}
	if s.running() {
		st.Daemon, st.PID, st.Since, st.Pin = control.Running, os.Getpid(), since, s.self().Pin().String()
		if addr != nil {
			st.Listen = addr.String()
		}
	}
	if how := s.o.File.Changed(); how != "" {
		st.Notices = append(st.Notices, control.Notice{Level: control.Warning, Text: fmt.Sprintf("%s %s", s.o.File.Path, how), Hint: configHint})
	}
	for _, g := range s.groups {
		st.Groups = append(st.Groups, s.groupStatus(ctx, g))
	}
	pairs, unread := s.pairs, ""
	if pairs == nil { // what the daemon keeps is read without it; where it cannot be read, nothing is known
		var err error
		if pairs, err = openPairing(s.cfg, s.o.Now); err != nil {
			unread = err.Error()
		}
	}
	for _, p := range s.cfg.Peers {
		if pairs != nil {
			p = pairs.of(p)
		}
		e := control.Peer{Name: p.Name, Address: p.Address, Pin: p.Pin, State: "unknown"}
		e.Limited = s.limitOf(p.Name)
		e.Limit = e.Limited.BytesPerSecond
		known := s.peers.get(p.Name)
		switch {
		case p.Pin == "" && unread != "":
			e.Error = unread
		case p.Pin == "":
			e.State = "unpaired"
		case !s.running():
		case known.connections > 0:
			e.State = "connected"
		default:
			e.State, e.Error = "disconnected", known.err
		}
		var lags []control.Lag
		for _, g := range st.Groups {
			for _, l := range g.Lags {
				if l.Peer == p.Name {
					lags = append(lags, l)
				}
			}
		}
		e.Groups, e.RPOSeconds = len(lags), worstRPO(lags)
		s.carried(&e)
		st.Peers = append(st.Peers, e)
	}
	return st, nil
}

// configHint is what makes a change of the configuration count.
const configHint = "The daemon goes by what it read: look at it with config check, then start the daemon again"

// groupStatus is a group's line; what cannot be told is left at zero, and a
// journal that cannot be read makes the line say why.
func (s *Site) groupStatus(ctx context.Context, g *group) control.Group {
	line := control.Group{Tenant: g.cfg.Tenant, Name: g.cfg.Name, Role: string(g.cfg.Role), State: control.StateStopped,
		RPOTarget: time.Duration(g.cfg.RPO).Seconds(), Quota: int64(g.cfg.Quota)}
	l, release, err := s.look(g)
	if err != nil {
		g.explainState(&line, err, s.running())
		return line
	}
	defer release()
	r := l.roleNow()
	h := l.j.Head()
	line.Role, line.Since = string(r.Role), r.Since
	line.Epoch, line.EpochID, line.Seq, line.Durable = h.Number, h.Epoch.String(), uint64(h.Seq), uint64(h.Durable.Seq)
	line.Chain = h.Durable.Chain.String()
	usage := l.j.Usage()
	line.JournalBytes = usage.Used
	upkeep, holds, failure := g.upkeep.look()
	leap := 0.0
	if upkeep.Last != nil {
		leap = upkeep.Last.ClockLeap
	}
	line.Notices = notices(usage.Used, int64(g.cfg.Quota), g.cfg.Warn, holds, len(l.j.Damages()), leap, failure)
	if lost, unknown, err := l.j.SiteLogLoss(); err == nil && unknown {
		line.Notices = append(line.Notices, siteLogNotice(lost))
	}
	line.Notices = append(line.Notices, l.suspicionNotices(s.o.Now())...)
	line.Notices = append(line.Notices, objectiveNotices(g.cfg, s.measured(), line.Since, s.o.Now())...)
	line.NextDrill = s.drillDue(g, line.Role, line.Since)
	line.Notices = append(line.Notices, l.bootNotices()...)
	line.Notices = append(line.Notices, l.owedNotices()...)
	line.Notices = append(line.Notices, l.startNotices()...)
	line.Notices = append(line.Notices, l.cededNotices()...)
	line.Notices = append(line.Notices, g.guard.notices(l.roleNow().Role.Captures())...)
	if s.ledgerErr != nil {
		f := fault.Of(explain("open the ledger of reports", s.ledgerErr))
		line.Notices = append(line.Notices, control.Notice{Level: control.Alarm, Code: string(f.Code), Text: f.Why, Hint: f.Advice()})
	}
	s.mu.Lock()
	unvouched := s.unvouched
	s.mu.Unlock()
	if unvouched != "" {
		line.Notices = append(line.Notices, control.Notice{Level: control.Alarm, Code: string(fault.EvidenceShortened), Text: "the ledger of reports: " + unvouched, Hint: "It was rewritten, or restored from an older copy; keep both sites' ledgers"})
	}
	for _, text := range s.leftover {
		line.Notices = append(line.Notices, control.Notice{Level: control.Alarm, Code: string(fault.DrillLeft), Text: "left-over " + text, Hint: "End the process, remove the directory; the daemon tries again when it starts"})
	}
	if h.Epoch.IsZero() {
		line.EpochID, line.Chain = "", ""
	}
	for _, lag := range s.lagsOf(g) {
		x := lagOf(lag)
		line.Lags = append(line.Lags, x)
		line.BehindWrites, line.BehindBytes = max(line.BehindWrites, x.BehindWrites), max(line.BehindBytes, x.BehindBytes)
	}
	own := len(line.Lags) // what follows is of those to whom this site sends on
	if !r.Role.Captures() {
		for _, lag := range s.lagsGoing(g, replicator.Outbound) {
			line.Lags = append(line.Lags, lagOf(lag))
		}
	}
	halted := g.conflict()
	// Asked before the spans: the reverse could take the last life's open end for
	// that of a reign that begins in between.
	reigns := l.reigning() != nil
	spans, err := l.j.Spans(ctx)
	if err != nil {
		for i := range line.Lags {
			line.Lags[i].RPOSeconds = nil
		}
		g.explainState(&line, err, s.running())
		return line
	}
	window(ctx, &line, l.j, spans)
	line.State, line.Detail = stateOf(r.Role, spans, line.Lags[:own], l.volumeStates())
	growing := len(spans) > 0 && spans[len(spans)-1].Open && (!r.Role.Captures() || line.State == control.StateSynced && reigns)
	for i, x := range line.Lags {
		line.Lags[i].RPOSeconds = sinceLastPoint(x.RPOSeconds, growing, line.LastPoint, s.o.Now())
	}
	line.RPOSeconds = worstRPO(line.Lags[:own])
	line.Notices = append(line.Notices, rpoNotices(g.cfg, line)...)
	l.tellPause(&line)
	l.tellPlugs(&line)
	l.tellGuests(&line)
	switch {
	case !s.running():
		line.State, line.Detail = control.StateStopped, ""
	case r.Role.Captures() && !reigns: // the last life's interval is over, its successor has not begun
		line.State, line.Detail = control.StateStarting, ""
	case halted.why != "":
		line.State, line.Detail, line.Halt = control.StateHalted, halted.why, halted.kind
	}
	return line
}

// explainState says why nothing is known of a group.
func (g *group) explainState(line *control.Group, err error, running bool) {
	f := fault.Of(explain("look at group "+g.cfg.Ref(), err))
	switch {
	case f.Code == fault.JournalAbsent:
		line.Detail = "no journal yet"
		return
	case running:
		line.State = control.StateFailed
		g.mu.Lock()
		if g.failure == nil {
			line.State = control.StateStarting
		} else {
			f = g.failure
		}
		g.mu.Unlock()
	}
	line.Detail = f.Why
	if line.State != control.StateStarting {
		line.Error = f
	}
}

// stateOf judges a group from where its points end, its streams and its volumes.
// It is pure.
func stateOf(r recovery.Role, spans []journal.Span, lags []control.Lag, volumes []cbt.VolumeStatus) (state, detail string) {
	if !r.Captures() {
		for _, l := range lags {
			if l.State == replicator.StateStreaming.String() {
				return control.StateReceiving, pointless(spans)
			}
		}
		for _, l := range lags {
			if l.State == replicator.StateCatchingUp.String() {
				return control.StateReceiving, "no new points arrive until a delta has landed"
			}
		}
		for _, l := range lags {
			if l.Error != "" {
				return control.StateWaiting, l.Error
			}
		}
		return control.StateWaiting, ""
	}
	// A volume that is not synced comes before an interval that looks open: the
	// break may not be on record yet.
	state = control.StateStarting
	if n := len(spans); n > 0 && spans[n-1].Open {
		state = control.StateSynced
	}
	for _, v := range volumes {
		if v.State == cbt.StateSynced && v.Mode == cbt.ModeCycles { // all of a machine's are
			state = control.StateCycles
			detail = fmt.Sprintf("%s: %d so far, %d gave none", v.Mode.Effect(), v.Cycles.Points, v.Cycles.Refused)
		}
	}
	for _, v := range volumes {
		switch v.State {
		case cbt.StateSynced:
		case cbt.StateSyncing, cbt.StateAttaching:
			if state != control.StateGap {
				state = control.StateSyncing
				detail = ""
				if v.Mode == cbt.ModeDelta || v.Mode == cbt.ModeFull {
					detail = v.Volume.Name + ": " + v.Mode.Effect()
				}
			}
		default:
			state = control.StateGap
			detail = v.Volume.Name + ": " + string(v.Cause)
			if v.Detail != "" {
				detail += ": " + v.Detail
			}
		}
	}
	return state, detail
}

// pointless says that frames flow which are no points; empty while they are.
func pointless(spans []journal.Span) string {
	n := len(spans)
	switch {
	case n == 0:
		return "no point has arrived yet"
	case spans[n-1].Open:
		return ""
	case spans[n-1].Ended == "":
		return "no new points arrive"
	}
	return "no new points arrive: " + string(spans[n-1].Ended)
}

// window fills in from when to when there are points.
func window(ctx context.Context, line *control.Group, j *journal.Journal, spans []journal.Span) {
	if len(spans) == 0 {
		return
	}
	first, err := pointAt(ctx, j, spans[0].Number, spans[0].First.Seq)
	if err != nil {
		return
	}
	last, err := pointAt(ctx, j, 0, spans[len(spans)-1].Last.Seq)
	if err != nil {
		return
	}
	line.OldestPoint, line.LastPoint, line.WindowSeconds = first.Time, last.Time, last.Time.Sub(first.Time).Seconds()
}

func lagOf(l replicator.Lag) control.Lag {
	x := control.Lag{Peer: l.Peer, Direction: l.Direction.String(), State: l.State.String(), BehindWrites: l.Records, BehindBytes: l.Bytes,
		Durable: uint64(l.Durable.Seq), Moved: l.BytesMoved, MovedFor: l.JournalBytes}
	if l.Known {
		s := l.RPO.Seconds()
		x.RPOSeconds = &s
	}
	if l.Err != nil {
		x.Error = l.Err.Error()
	}
	return x
}

// sinceLastPoint is what an RPO towards a peer is worth. Being level with a history
// that has stopped to grow protects nobody: outside an interval the loss reaches
// back to the last point, and without one it is unknown. It is pure.
func sinceLastPoint(rpo *float64, growing bool, last, now time.Time) *float64 {
	if rpo == nil || growing {
		return rpo
	}
	if last.IsZero() {
		return nil
	}
	age := max(*rpo, now.Sub(last).Seconds())
	return &age
}

// worstRPO is the largest; nil when there is none or one is unknown.
func worstRPO(lags []control.Lag) *float64 {
	var w *float64
	for _, l := range lags {
		if l.RPOSeconds == nil {
			return nil
		}
		w = worse(w, l.RPOSeconds)
	}
	return w
}

func worse(a, b *float64) *float64 {
	if a == nil || b != nil && *b > *a {
		return b
	}
	return a
}
