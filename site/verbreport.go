package site

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/recovery/evidence"
	"github.com/novacron/afterimage/site/control"
)

// What planned verbs leave as evidence: a handover one report at each of its sites, a
// decision one where it was made.

// verbPlan is what a verb is about: a record at which nothing is lost.
func (l *life) verbPlan(at journal.Position) recovery.Plan {
	p := recovery.Plan{Tenant: l.cfg.Tenant, Group: l.cfg.Name, Identity: l.id, Site: l.site.cfg.Site, At: "latest", Fence: recovery.FenceProven, Loss: recovery.Loss{Known: true}, Made: l.site.o.Now()}
	p.Point = journal.Point{Position: at, Number: epochNumbers(l.j)[at.Epoch]}
	if known, err := pointAt(l.ctx, l.j, p.Point.Number, at.Seq); err == nil {
		p.Point = known
	}
	return p
}

// reportGiven writes the giver's report.
func (l *life) reportGiven(ctx context.Context, h *recovery.Handover, epoch uint64, steps []recovery.StepTime) (string, error) {
	o := recovery.Outcome{Plan: l.verbPlan(h.Head.Position), Operator: h.Operator, Reign: l.roleNow(), Began: h.Since, Steps: steps}
	r := recovery.NewReport(o, l.site.o.Now())
	r.Verb, r.Title, r.Chain = "planned", fmt.Sprintf("Planned failover of %s from %s to %s", l.cfg.Name, l.site.cfg.Site, h.To), h.Head.Chain
	r.RPO = l.measured("out")
	r.Checks = []recovery.Check{
		{Claim: "both histories ended at the same record when the role changed", Held: true, Detail: fmt.Sprintf("record %s, chain %s", h.Head.Position, h.Head.Chain)},
		{Claim: h.To + " took the role", Held: true, Detail: fmt.Sprintf("in epoch %d", epoch)},
	}
	return l.site.writeReport(r, evidence.Handover, l.cfg.Ref(), l.verbBase("handover", h.ID.Short()))
}

// reportTaken writes the taker's.
func (l *life) reportTaken(ctx context.Context, p recovery.Promotion, o recovery.Outcome) (string, error) {
	r := recovery.NewReport(o, l.site.o.Now())
	r.Verb, r.Title = "planned", fmt.Sprintf("Planned failover of %s from %s to %s", l.cfg.Name, p.Order.Giver, l.site.cfg.Site)
	r.RPO = l.measured("in")
	r.Checks = []recovery.Check{{Claim: "it goes on at the record at which " + p.Order.Giver + " ended", Held: l.j.Lineage().Holds(p.Order.Point), Detail: "record " + p.Order.Point.String()}}
	if o.Machine != nil {
		if m, ok, err := l.machineHere(ctx); err == nil && ok {
			r.Console = m.Look(ctx)
		}
	}
	return l.site.writeReport(r, evidence.Handover, l.cfg.Ref(), l.verbBase("handover", p.Order.Handover.Short()))
}

// reportDecision writes what a person, or a policy, decided. before is the role until then.
func (l *life) reportDecision(d control.Decision, operator string, before recovery.Reign, began time.Time) (string, error) {
	at := before.From
	if at.IsZero() {
		at = l.j.Head().Position
	}
	now := l.site.o.Now()
	o := recovery.Outcome{Plan: l.verbPlan(at), Operator: operator, Reign: l.roleNow(), Began: began}
	// How the old primary was fenced is the failover's before, and no better for the decision.
	o.Plan.Fence, o.Unfenced, o.Plan.Loss.Known = cmp.Or(before.Fence, recovery.FenceUnknown), before.Unfenced, d.Loss != nil
	o.Steps = []recovery.StepTime{{Name: recovery.StepName(d.Verb), Began: began, Seconds: now.Sub(began).Seconds(), Detail: strings.Join(d.Steps, "; ")}}
	r := recovery.NewReport(o, now)
	r.Verb, r.Title, r.Chain = d.Verb, fmt.Sprintf("%s of %s at %s", d.Verb, l.cfg.Name, l.site.cfg.Site), before.Chain
	if d.Loss != nil {
		g := recovery.GivenUp{Seconds: d.Loss.Seconds, Writes: d.Loss.Writes, Bytes: d.Loss.Bytes}
		for _, v := range d.Loss.Volumes {
			g.Volumes = append(g.Volumes, recovery.VolumeLoss{Volume: v.Volume, Writes: v.Writes, Bytes: v.Bytes})
		}
		r.Outcome.Plan.Loss = recovery.Loss{Known: d.Loss.Known, Seconds: g.Seconds, Writes: g.Writes, Bytes: g.Bytes, GivenUp: g}
	}
	r.Decided = &recovery.Decided{Away: d.Away}
	for _, side := range d.Sides { // what is left here is d.Loss, where that could be told
		if !side.Kept && (d.Loss == nil || side.Site != l.site.cfg.Site) {
			r.Decided.Left = append(r.Decided.Left, recovery.LeftThere{Site: side.Site, Head: side.Head, Records: side.Beyond})
		}
	}
	for _, peer := range slices.Sorted(slices.Values(d.Following)) {
		r.Checks = append(r.Checks, recovery.Check{Claim: peer + " follows", Held: true})
	}
	return l.site.writeReport(r, evidence.Decision, l.cfg.Ref(), l.verbBase(d.Verb, began.UTC().Format("20060102-150405.000")))
}

func (l *life) verbBase(verb, mark string) string {
	return fmt.Sprintf("%s-%s-%s-%s", l.cfg.Tenant, l.cfg.Name, verb, mark)
}

// measured is how old this site's copy was within the last hour, of the peer that was
// measured most often; of a source, how old its peers' copies were.
func (l *life) measured(direction string) recovery.RPO {
	out := recovery.RPO{}
	for _, peer := range l.cfg.Peers {
		m := l.site.rpo.tell(rpoKey{l.cfg.Tenant, l.cfg.Name, peer, direction}, l.site.o.Now())
		if m != nil && m.Samples-m.Unknown > out.Samples {
			out = recovery.RPO{Samples: m.Samples - m.Unknown, P50: m.P50, P99: m.P99, Max: m.Max}
		}
	}
	out.Target = time.Duration(l.cfg.RPO).Seconds()
	return out
}

// failoverChecks are what a failover was to come to.
func (l *life) failoverChecks(o recovery.Outcome) []recovery.Check {
	at := o.Plan.Point.Position
	checks := []recovery.Check{{Claim: "the new epoch goes on at the point", Held: o.Stands() && l.j.Lineage().Holds(at), Detail: "record " + at.String()}}
	if o.Plan.Machine != "" {
		checks = append(checks, recovery.Check{Claim: "machine " + o.Plan.Machine + " runs from it", Held: o.Machine != nil && o.Failed == ""})
	}
	return checks
}
