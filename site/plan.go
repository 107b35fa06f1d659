package site

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/replicator"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// PlanFailover implements control.API.
func (s *Site) PlanFailover(ctx context.Context, q control.FailoverRequest) (control.Plan, error) {
	l, release, err := s.forFailover(ctx, q)
	if err != nil {
		return control.Plan{}, err
	}
	defer release()
	c, err := l.resumption(ctx, q)
	if err != nil {
		return control.Plan{}, explain("plan a failover of "+q.Group, err)
	}
	if c != nil {
		return c.plan, nil
	}
	plan, err := l.plan(ctx, q)
	told := planOf(plan)
	told.Expected = expectedSeconds(l.cfg.Ref(), s.measured())
	told.Timing = measuredOf(l.cfg.Ref(), s.measured())
	return told, explain("plan a failover of "+q.Group, err)
}

// forFailover gives the life that a failover works on.
func (s *Site) forFailover(ctx context.Context, q control.FailoverRequest) (*life, func(), error) {
	g, err := s.group(q.Group)
	if err != nil {
		return nil, nil, err
	}
	if !s.running() {
		return nil, nil, fault.New(fault.NeedsDaemon, "fail over "+q.Group, "a failover is done by the daemon of the replica's site")
	}
	if _, err := policyOf(q, s.o.Now()); err != nil {
		return nil, nil, err
	}
	if q.Tail != "" && !slices.Contains(g.cfg.Peers, q.Tail) {
		return nil, nil, fault.New(fault.PeerUnknown, "fail over "+q.Group, "the group has no peer %q whose tail could be fetched", q.Tail)
	}
	return g.await(ctx)
}

// plan collects what is known and asks recovery what a failover would mean.
func (l *life) plan(ctx context.Context, q control.FailoverRequest) (recovery.Plan, error) {
	what := "plan a failover of " + l.cfg.Ref()
	if r := l.roleNow().Role; r.Captures() {
		return recovery.Plan{}, fault.New(fault.NotReplica, what, "the group is %s here already", r)
	}
	said := l.askStandings(ctx)
	head := l.j.Head()
	if head.Position.IsZero() {
		return recovery.Plan{}, fault.New(fault.NotReplica, what, "nothing of the group has arrived here yet")
	}
	pt, err := resolve(ctx, l.j, q.At)
	if err != nil {
		return recovery.Plan{}, err
	}
	if err := l.j.WaitDurable(ctx, pt.Position); err != nil {
		return recovery.Plan{}, err
	}
	since, thinned, err := l.givenUp(ctx, pt, head)
	if err != nil {
		return recovery.Plan{}, err
	}
	volumes, err := headVolumes(l.j)
	if err != nil {
		return recovery.Plan{}, err
	}
	in := recovery.Inputs{Tenant: l.cfg.Tenant, Group: l.cfg.Name, Site: l.site.cfg.Site, Identity: l.id, At: q.At, Point: pt, Head: head, Lineage: l.j.Lineage(),
		Since: since, Thinned: thinned, Volumes: volumes, Fence: recovery.FenceUnknown, Now: l.site.o.Now()}
	numbers := epochNumbers(l.j)
	for _, n := range numbers {
		in.HighestEpoch = max(in.HighestEpoch, n)
	}
	in.Peers, in.Source = l.heard(in.Now, head, numbers)
	l.weigh(&in, said, q)
	if m := l.cfg.Machine; m != nil && !q.NoMachine {
		in.Machine, in.Health = m.Name, m.Checked()
		if in.Recorded, err = l.recordedMachines(pt); err != nil {
			return recovery.Plan{}, err
		}
		for _, x := range m.Besides {
			in.Besides = append(in.Besides, x.Name)
		}
	}
	f, err := l.fence(q)
	if err != nil {
		return recovery.Plan{}, err
	}
	if in.Fencing = f.Names(); l.guard.holds() {
		in.Fence, in.Fencing = recovery.FenceLeased, nil
	}
	return recovery.NewPlan(in), nil
}

// givenUp counts what the history here holds beyond pt. Where it was thinned since,
// the number of records comes from their seqs, and the bytes from what differs.
func (l *life) givenUp(ctx context.Context, pt journal.Point, head journal.Head) (since journal.Since, thinned bool, err error) {
	since, err = l.j.Since(ctx, pt.Position)
	if !errors.Is(err, journal.ErrReclaimed) {
		return since, false, err
	}
	changed, err := l.j.Diff(ctx, pt.Position, head.Position)
	if err != nil {
		return since, true, err
	}
	since = journal.Since{First: pt.Time, Last: head.Time}
	if head.Seq > pt.Seq {
		since.Records = uint64(head.Seq - pt.Seq)
	}
	for id, extents := range changed {
		c := journal.Change{Volume: id}
		for _, e := range extents {
			c.Bytes += e.Length
		}
		since.Volumes = append(since.Volumes, c)
	}
	return since, true, nil
}

// heard is what this site knows of the others: who answers, and the newest head of
// the source, which is remembered from before this process where nothing was heard
// since. The source's head is dated like a point is: by its record.
func (l *life) heard(now time.Time, head journal.Head, numbers map[journal.EpochID]uint64) (peers []recovery.PeerHead, source *recovery.SourceHead) {
	lags := l.site.lagsOf(l.group)
	for _, name := range l.cfg.Peers {
		p := recovery.PeerHead{Name: name, Reachable: l.site.peers.get(name).connections > 0}
		var h *recovery.SourceHead
		if i := slices.IndexFunc(lags, func(lag replicator.Lag) bool { return lag.Peer == name }); i >= 0 {
			lag := lags[i]
			p.Reachable = (p.Reachable || lag.Connected) && !silent(lag)
			p.Primary = lag.State == replicator.StateStreaming || lag.State == replicator.StateCatchingUp
			if lag.Relayed { // it answers whether or not the primary that it relays does
				p.Reachable, p.Primary = p.Reachable || lag.Connected, p.Primary && !silent(lag)
			}
			p.Head, p.Number = lag.Head, numbers[lag.Head.Epoch]
			if lag.Known {
				p.Time = now.Add(-lag.RPO)
			}
			h = headOf(lag, numbers)
		}
		if h == nil {
			if h = l.recalled(name); h != nil {
				p.Head, p.Number, p.Time = h.Head, max(h.Number, numbers[h.Head.Epoch]), h.Time
			}
		}
		if h != nil && (source == nil || source.Heard.Before(h.Heard)) {
			source = h
		}
		peers = append(peers, p)
	}
	if source != nil && source.Head.Seq <= head.Seq {
		source.Bytes = 0
	}
	return peers, source
}

// silent reports that no heartbeat came for several of their intervals though
// nothing is left to be taken: the source has stopped, or the link has.
func silent(lag replicator.Lag) bool {
	return lag.State == replicator.StateStreaming && lag.Known && lag.Records == 0 && lag.RPO > 2*time.Second
}

// planOf is a plan as it is told.
func planOf(p recovery.Plan) control.Plan {
	if p.Group == "" {
		return control.Plan{}
	}
	out := control.Plan{Group: p.Tenant + "/" + p.Group, At: p.At, Point: pointOf(p.Point), Epoch: p.NewEpochNumber, Machine: p.Machine, Warnings: p.Warnings, Digest: p.Digest,
		Fence: string(p.Fence), Fencing: p.Fencing, Peers: []control.PlanPeer{}, Steps: []string{}}
	l := p.Loss
	out.Loss = control.Loss{Known: l.Known, Seconds: l.Seconds, Writes: l.Writes, Bytes: l.Bytes, Unheard: l.UnheardSeconds, Volumes: []control.VolumeLoss{},
		NeverArrived: control.NeverArrived{Seconds: l.NeverArrived.Seconds, Records: l.NeverArrived.Records, Bytes: l.NeverArrived.Bytes}}
	for _, v := range l.GivenUp.Volumes {
		out.Loss.Volumes = append(out.Loss.Volumes, control.VolumeLoss{Volume: v.Volume, Writes: v.Writes, Bytes: v.Bytes})
	}
	for _, x := range p.Peers {
		out.Peers = append(out.Peers, control.PlanPeer{Name: x.Name, Reachable: x.Reachable, Primary: x.Primary, Epoch: x.Number, Seq: uint64(x.Head.Seq), Time: x.Time, Relation: x.Relation})
	}
	if t := p.Tail; t != nil {
		out.Tail = &control.PlanTail{Peer: t.Peer, Epoch: t.Number, Seq: uint64(t.Head.Seq), Records: t.Records, Bytes: t.Bytes, Time: t.Time}
	}
	for _, s := range p.Steps {
		out.Steps = append(out.Steps, fmt.Sprintf("%s: %s", s.Name, s.What))
	}
	for _, o := range p.Refused {
		out.Refused = append(out.Refused, o.Text)
	}
	return out
}

// refusal gives the code of the gravest objection.
func refusal(what string, p recovery.Plan, err error) error {
	var r *recovery.RefusedError
	var unproven *recovery.UnprovenError
	if errors.As(err, &unproven) {
		return unfenced(what, unproven)
	}
	if !errors.As(err, &r) {
		return explain(what, err)
	}
	code := fault.NotFenced
	for _, o := range r.Reasons {
		switch o.Code {
		case recovery.ObjectionPrimary:
			code = fault.PrimaryAlive
		case recovery.ObjectionAhead, recovery.ObjectionApart:
			if code == fault.NotFenced {
				code = fault.PeerAhead
			}
		}
	}
	return fault.Wrap(code, what, err).With(planOf(p))
}
