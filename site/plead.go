package site

import (
	"context"
	"errors"
	"fmt"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/replicator"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// A handover that is asked for at a replica: it has the primary begin one, by an id that it
// chose, and asks how far that is until this site reigns or knows that it will not.

// pleading asks the primary to hand the group over to the asker, or how far that is.
type pleading struct {
	ID      cbt.ID                  `json:"id,omitzero"` // of the handover; the asker chose it
	Request control.HandoverRequest `json:"request"`
	DryRun  bool                    `json:"dry_run,omitempty"`
}

// pleaded is how far a handover is.
type pleaded struct {
	ID    cbt.ID               `json:"id"`
	Plan  control.HandoverPlan `json:"plan"`
	Over  bool                 `json:"over"`
	Error string               `json:"error,omitempty"`
	Out   control.HandedOver   `json:"out"`
	Known bool                 `json:"known"`
}

// pleaded begins a handover to peer, who asked for it.
func (l *life) pleaded(peer string, q pleading) (pleaded, error) {
	q.Request.To, q.Request.Group = peer, l.cfg.Ref()
	ctx, cancel := context.WithTimeout(l.ctx, askLimit)
	defer cancel()
	if q.DryRun {
		plan, err := l.handoverPlan(ctx, q.Request)
		return pleaded{Plan: plan}, declinedBy(err)
	}
	_, release, err := l.group.use() // startMove's
	if err != nil {
		return pleaded{}, err
	}
	m, plan, err := l.beginMove(ctx, q.ID, q.Request, func(control.Progress) {})
	if err != nil {
		release()
		return pleaded{Plan: plan}, declinedBy(err)
	}
	go func() {
		defer release()
		l.startMove(m, plan)
	}()
	return pleaded{ID: m.id, Plan: plan, Known: true}, nil
}

func declinedBy(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", replicator.ErrDeclined, err)
}

// movesOf tells how far a handover of this process is.
func (g *group) movesOf(id cbt.ID) pleaded {
	m := g.moveOf(id)
	if m == nil {
		return pleaded{ID: id}
	}
	out := pleaded{ID: id, Known: true}
	select {
	case <-m.over:
		out.Over, out.Out = true, m.out
		if m.err != nil {
			out.Error = m.err.Error()
		}
	default:
	}
	return out
}

// plead asks the peer that is primary to hand the group over to this site.
func (l *life) plead(ctx context.Context, q control.HandoverRequest, dry bool) (pleaded, error) {
	if q.To != "" && q.To != l.site.cfg.Site {
		return pleaded{}, fault.New(fault.NotPrimary, "hand over "+l.cfg.Ref(), "the group is a replica here: to hand it to %s, ask there or at the primary", q.To)
	}
	if r := l.roleNow(); r.Stage() == recovery.StageCeded {
		return pleaded{}, fault.New(fault.HandoverTrouble, "hand over "+l.cfg.Ref(), "%s", l.cededText(r.Handover)).Advise("%s", l.cededAdvice(r.Handover))
	}
	primary, err := l.primaryOf(ctx)
	if err != nil {
		return pleaded{}, err
	}
	if q.Expect != "" && dry {
		q.Expect = ""
	}
	p, err := ask[pleaded](ctx, l, primary, topicPlease, pleading{Request: q, DryRun: dry})
	if err != nil {
		return p, fault.Wrap(fault.HandoverTrouble, "hand over "+l.cfg.Ref(), err)
	}
	return p, nil
}

// primaryOf is the peer that says that it is the group's primary.
func (l *life) primaryOf(ctx context.Context) (string, error) {
	var errs []error
	for _, peer := range l.cfg.Peers {
		once, cancel := context.WithTimeout(ctx, askLimit)
		h, err := ask[heads](once, l, peer, topicHeads, struct{}{})
		cancel()
		if err == nil && h.Role.Captures() {
			return peer, nil
		}
		errs = append(errs, err)
	}
	return "", fault.Wrap(fault.PeerUnreachable, "find the primary of "+l.cfg.Ref(), errors.Join(append(errs, errors.New("no peer says that it is primary"))...)).
		Advise("A planned failover needs the primary. If it is lost, failover unplanned.")
}

// pleadAndWait has the primary hand over and waits until this site reigns, or knows
// that it will not.
func (l *life) pleadAndWait(ctx context.Context, q control.HandoverRequest, progress func(control.Progress)) (control.HandedOver, error) {
	what := "hand over " + l.cfg.Ref()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(l.ctx, func() { cancel(errDetached) })() // the journal is not held open for it
	p, err := l.plead(ctx, q, true)
	if err != nil {
		return control.HandedOver{}, err
	}
	out := control.HandedOver{HandoverPlan: p.Plan}
	id := cbt.NewID()
	_, err = ask[pleaded](ctx, l, p.Plan.From, topicPlease, pleading{ID: id, Request: q})
	if errors.Is(err, replicator.ErrDeclined) {
		return out, fault.Wrap(fault.HandoverTrouble, what, err)
	}
	progress(control.Progress{Step: "asked " + p.Plan.From + " to hand over"}) // an answer that was lost says nothing
	unknown := 0
	for {
		if err := pauseFor(ctx, askFirst); err != nil {
			return out, err
		}
		t, err := l.taken(id)
		if err != nil {
			return out, err
		}
		once, cancel := context.WithTimeout(ctx, askLimit)
		now, err := ask[pleaded](once, l, p.Plan.From, topicProgress, pleading{ID: id})
		cancel()
		switch {
		case err != nil && t.Taken, err == nil && !now.Known && t.Taken:
			out.Epoch = t.Epoch
			return out, nil
		case err != nil:
			continue
		case now.Over && now.Error != "":
			return out, fault.New(fault.HandoverTrouble, what, "%s", now.Error)
		case now.Over:
			now.Out.HandoverPlan = p.Plan
			return now.Out, nil
		case !now.Known:
			if unknown++; unknown > maxUnknown {
				return out, fault.New(fault.HandoverTrouble, what, "%s knows nothing of it: it was restarted, or never heard", p.Plan.From).
					Advise("group show tells who is primary; repeat the command if it is not this site.")
			}
		}
	}
}

// maxUnknown is how often a primary may say that it knows nothing of a handover before
// that is believed: the question that began it may still be on its way.
const maxUnknown = 50
