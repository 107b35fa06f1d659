package site

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/replicator"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// promotion asks a replica's life to reign.
type promotion struct {
	from   journal.Position
	record reignRecord
	done   chan outcome // takes one; buffered
}

type outcome struct {
	reign *reign
	err   error
}

// PlanFailover implements control.API.
func (s *Site) PlanFailover(ctx context.Context, q control.FailoverRequest) (control.Plan, error) {
	what := "plan a failover of " + q.Group
	g, err := s.group(q.Group)
	if err != nil {
		return control.Plan{}, err
	}
	if !s.running() {
		return control.Plan{}, fault.New(fault.NeedsDaemon, what, "a failover is done by the daemon of the replica's site")
	}
	l, release, err := g.use()
	if err != nil {
		return control.Plan{}, err
	}
	defer release()
	plan, _, err := l.plan(ctx, q)
	return plan, explain(what, err)
}

// plan resolves a failover to this site.
func (l *life) plan(ctx context.Context, q control.FailoverRequest) (control.Plan, journal.Point, error) {
	what := "plan a failover of " + l.cfg.Ref()
	p := control.Plan{Group: l.cfg.Ref(), At: q.At, Peers: []control.PlanPeer{}}
	if r := l.roleNow().Role; r.captures() {
		return p, journal.Point{}, fault.New(fault.NotReplica, what, "the group is %s here already", r)
	}
	head := l.j.Head()
	if head.Position.IsZero() {
		return p, journal.Point{}, fault.New(fault.NotReplica, what, "nothing of the group has arrived here yet")
	}
	pt, err := resolve(ctx, l.j, q.At)
	if err != nil {
		return p, pt, err
	}
	if err := l.j.WaitDurable(ctx, pt.Position); err != nil {
		return p, pt, err
	}
	p.Point, p.Epoch = pointOf(pt), head.Number+1
	lags := l.site.lagsOf(l.group)
	if p.Loss, err = l.loss(ctx, pt, head, lags); err != nil {
		return p, pt, err
	}
	l.judge(&p, q, head, lags)
	l.steps(&p, q)
	p.Digest = digest(p)
	return p, pt, nil
}

// judge asks what speaks against the failover.
func (l *life) judge(p *control.Plan, q control.FailoverRequest, head journal.Head, lags []replicator.Lag) {
	for _, name := range l.cfg.Peers {
		e := control.PlanPeer{Name: name, Reachable: l.site.peers.get(name).connections > 0}
		for _, lag := range lags {
			if lag.Peer != name {
				continue
			}
			e.Reachable = e.Reachable || lag.Connected
			e.Seq = uint64(lag.Head.Seq)
			for _, b := range l.j.Branches() {
				if b.ID == lag.Head.Epoch {
					e.Epoch = b.Number
				}
			}
			switch {
			case lag.State == replicator.StateStreaming && silent(lag):
				p.Warnings = append(p.Warnings, fmt.Sprintf("peer %s is the primary; its session is silent for %.1f s", name, lag.RPO.Seconds()))
			case lag.State == replicator.StateStreaming:
				p.Refused = append(p.Refused, fmt.Sprintf("peer %s is the primary and is in session with this site", name))
			case lag.Connected && lag.Head.Seq > head.Seq && lag.Head.Epoch == head.Epoch:
				p.Refused = append(p.Refused, fmt.Sprintf("peer %s holds %d newer records", name, lag.Head.Seq-head.Seq))
			}
		}
		p.Peers = append(p.Peers, e)
	}
	p.Warnings = append(p.Warnings, "nobody has proven that the old primary is off; unreachable is not off")
	if l.cfg.Machine == nil && !q.NoMachine {
		p.Warnings = append(p.Warnings, "the configuration names no machine: the disks are served, and nothing is started")
	}
}

// silent reports that no heartbeat came for several of their intervals though
// nothing is left to be taken: the source has stopped, or the link has.
func silent(lag replicator.Lag) bool {
	return lag.Known && lag.Records == 0 && lag.RPO > 2*time.Second
}

// loss counts what the new primary will not have. What was held here and lies
// after the point is counted exactly; what the source is known to have beyond that by
// its newest head, in records, which are at least the writes.
func (l *life) loss(ctx context.Context, pt journal.Point, head journal.Head, lags []replicator.Lag) (control.Loss, error) {
	loss := control.Loss{Volumes: []control.VolumeLoss{}}
	now := l.site.o.Now()
	dropped, err := l.dropped(ctx, pt, head)
	if err != nil {
		return loss, err
	}
	last := pt.Time
	for _, d := range dropped {
		loss.Writes += d.Writes
		loss.Bytes += d.Bytes
	}
	if loss.Writes > 0 {
		last = head.Time
	}
	loss.Volumes = dropped
	for _, lag := range lags {
		if lag.Direction != replicator.Inbound || !lag.Known {
			continue
		}
		loss.Known = true
		loss.Unheard = lag.RPO.Seconds()
		if lag.Records > 0 {
			loss.Writes += lag.Records
			loss.Bytes += lag.Bytes
			last = now
			if lag.State == replicator.StateDisconnected && lag.Since.Before(now) {
				last = lag.Since // it wrote no later than we could have heard of it
			}
		}
	}
	if last.After(pt.Time) {
		loss.Seconds = last.Sub(pt.Time).Seconds()
	}
	return loss, nil
}

// dropped counts the writes held here after pt, by volume.
func (l *life) dropped(ctx context.Context, pt journal.Point, head journal.Head) ([]control.VolumeLoss, error) {
	volumes, err := headVolumes(l.j)
	if err != nil {
		return nil, err
	}
	count := map[cbt.VolumeID]*control.VolumeLoss{}
	for _, v := range volumes {
		count[v.ID] = &control.VolumeLoss{Volume: v.Name}
	}
	if pt.Seq < head.Seq {
		err = l.j.Replay(ctx, pt.Position, func(_ journal.Seq, ev cbt.Event) error {
			if c := count[ev.Volume]; c != nil && ev.Kind != cbt.EventFill {
				c.Writes++
				c.Bytes += ev.Extent.Length
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("count what is lost: %w", err)
		}
	}
	out := []control.VolumeLoss{}
	for _, v := range volumes {
		out = append(out, *count[v.ID])
	}
	return out, nil
}

// steps says what will be done, in order.
func (l *life) steps(p *control.Plan, q control.FailoverRequest) {
	p.Steps = []string{
		"take no more records from " + orNobody(strings.Join(l.cfg.Peers, ", ")),
		fmt.Sprintf("begin epoch %d at point #%d.%d, durably", p.Epoch, p.Point.Epoch, p.Point.Seq),
		"become the group's primary here, uncommitted",
		"serve the disks as they were at the point; their writes are journaled in the new epoch",
	}
	if m := l.cfg.Machine; m != nil && !q.NoMachine {
		p.Machine = m.Name
		p.Steps = append(p.Steps, fmt.Sprintf("start machine %s (%s) and wait until it answers", m.Name, m.Binary))
	}
}

func orNobody(s string) string {
	if s == "" {
		return "nobody"
	}
	return s
}

// digest names what a plan would do, without what changes by itself as time goes by.
func digest(p control.Plan) string {
	p.Digest, p.Loss, p.Warnings, p.Peers = "", control.Loss{Writes: p.Loss.Writes, Bytes: p.Loss.Bytes}, nil, nil
	b, err := json.Marshal(p)
	if err != nil {
		panic(err) // strings and numbers always marshal
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}

// Failover implements control.API. It goes on to its end even if the caller goes
// away: half a promotion helps nobody.
func (s *Site) Failover(ctx context.Context, q control.FailoverRequest, progress func(control.Progress)) (control.FailedOver, error) {
	what := "fail over " + q.Group
	began := s.o.Now()
	g, err := s.group(q.Group)
	if err != nil {
		return control.FailedOver{}, err
	}
	if !s.running() {
		return control.FailedOver{}, fault.New(fault.NeedsDaemon, what, "a failover is done by the daemon of the replica's site")
	}
	l, release, err := g.use()
	if err != nil {
		return control.FailedOver{}, err
	}
	defer release()
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	defer context.AfterFunc(l.ctx, func() { cancel(errDetached) })()
	out := control.FailedOver{Times: map[string]float64{}, Exports: []control.Export{}, Unfenced: true}
	plan, pt, err := l.plan(ctx, q)
	if err != nil {
		return out, explain(what, err)
	}
	out.Plan = plan
	if q.Expect != "" && q.Expect != plan.Digest {
		return out, fault.New(fault.PlanStale, what, "since the plan was shown the point or the loss has changed").With(plan)
	}
	if len(plan.Refused) > 0 && !q.Force {
		return out, fault.New(fault.PrimaryAlive, what, "%s", strings.Join(plan.Refused, "; ")).With(plan)
	}
	timed := func(name string, f func() error) error {
		progress(control.Progress{Step: name})
		from := s.o.Now()
		err := f()
		out.Times[name] = s.o.Now().Sub(from).Seconds()
		return err
	}
	err = timed("promote", func() error {
		return l.promoteAt(ctx, pt, reignRecord{Role: uncommitted, Unfenced: true, Operator: q.Operator, From: pt.Position, At: q.At})
	})
	if err != nil {
		return out, explain(what, err)
	}
	for _, d := range l.reigning().disks {
		out.Exports = append(out.Exports, control.Export{Volume: d.volume.Name, Size: d.volume.Size, URI: nbdURI("unix", s.cfg.NBD, g.exportName(d.volume.Name))})
	}
	out.Epoch = l.reigning().writer.Epoch().Number
	if plan.Machine != "" {
		if err := timed("start machine", func() error { return l.startMachine(ctx, &out) }); err != nil {
			var known *fault.Error
			if !errors.As(err, &known) {
				err = fault.Wrap(fault.MachineTrouble, what, err)
			}
			return out, err
		}
	}
	out.RTOSeconds = s.o.Now().Sub(began).Seconds()
	s.o.Log.Warn("group failed over", "group", g.cfg.Ref(), "epoch", out.Epoch, "point", pt.String(), "lost_writes", out.Loss.Writes, "rto_seconds", out.RTOSeconds, "operator", q.Operator, "forced", q.Force, "unfenced", true)
	return out, nil
}

// promoteAt makes the waiting life reign from pt.
func (l *life) promoteAt(ctx context.Context, pt journal.Point, rec reignRecord) error {
	l.mu.Lock()
	busy := l.promoted
	l.promoted = true
	l.mu.Unlock()
	if busy {
		return fault.New(fault.OperationBusy, "promote "+l.cfg.Ref(), "a failover of it is under way")
	}
	p := promotion{from: pt.Position, record: rec, done: make(chan outcome, 1)}
	limit := time.NewTimer(time.Minute)
	defer limit.Stop()
	select {
	case l.promote <- p:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-limit.C:
		return errors.New("the group does not take up the promotion")
	}
	select {
	case o := <-p.done:
		return o.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
