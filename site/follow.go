package site

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/novacron/afterimage/recovery"
)

// follow is a replica's part until ctx ends or a failover crowns it. Beside it goes on
// what its role has left to do: a handover that the peer has not taken yet, a history
// that is to be followed from an earlier record.
func (l *life) follow(ctx context.Context) (*coronation, error) {
	beside, stop := context.WithCancel(ctx)
	var work sync.WaitGroup
	defer work.Wait()
	defer stop()
	work.Go(func() { l.settle(beside) })
	select {
	case <-ctx.Done():
		return nil, nil
	case c := <-l.crowned:
		return &c, nil
	}
}

// settle does what the role has left to do.
func (l *life) settle(ctx context.Context) {
	for wait := askFirst; ctx.Err() == nil; wait = min(2*wait, askLast) {
		var err error
		switch l.roleNow().Stage() {
		case recovery.StageCeded:
			err = l.give(ctx)
		case recovery.StageLeft:
			err = l.followAnew(ctx)
		case recovery.StagePrimary: // the handover was withdrawn
			l.next()
			return
		default:
			return
		}
		if err != nil && ctx.Err() == nil {
			l.site.o.Log.Warn("decision not carried out yet", "group", l.cfg.Ref(), "stage", l.roleNow().Stage(), "err", err)
			if pauseFor(ctx, wait) != nil {
				return
			}
		}
	}
}

// renewing asks to be let follow from a record that both hold.
type renewing struct {
	recovery.Left
}

// renewal is the answer: the history leads on from there, is about to, or the answering
// site is a replica that leaves the same branch.
type renewal struct {
	Follows  bool `json:"follows"`
	Renewing bool `json:"renewing"`
	Left     bool `json:"left"`
}

// Pauses of followAnew: between looks whether the history goes on, and between questions.
const (
	arrivalLook = 20 * time.Millisecond
	renewAsk    = 500 * time.Millisecond
	renewLast   = 30 * time.Second
)

// followAnew asks whoever may be the primary to lead on from the record in common, and
// returns once that has arrived. Replicas that followed what was left here are told.
func (l *life) followAnew(ctx context.Context) error {
	left := *l.roleNow().Left
	asked, wait := time.Time{}, renewAsk
	for {
		if head := l.j.Head().Epoch; !left.Holds(head) {
			r, err := l.patiently(ctx, func(r recovery.Reign) (recovery.Reign, error) { return r.Follow(head, l.site.o.Now()) })
			if err == nil || r.Stage() != recovery.StageLeft {
				l.site.o.Log.Warn("another history is followed", "group", l.cfg.Ref(), "from", left.Common.Position.String(), "left", left.Head.String())
				return nil
			}
			return err
		}
		if now := time.Now(); now.Sub(asked) > wait {
			if !asked.IsZero() {
				wait = min(2*wait, renewLast)
			}
			l.askToRenew(ctx, left)
			asked = time.Now()
		}
		if err := pauseFor(ctx, arrivalLook); err != nil {
			return err
		}
	}
}

func (l *life) askToRenew(ctx context.Context, left recovery.Left) {
	for _, peer := range l.cfg.Peers {
		once, cancel := context.WithTimeout(ctx, askLimit)
		a, err := ask[renewal](once, l, peer, topicRenew, renewing{left})
		cancel()
		if err != nil && !errors.Is(err, context.Canceled) {
			l.site.o.Log.Info("peer does not lead on yet", "group", l.cfg.Ref(), "peer", peer, "err", err)
			continue
		}
		if a.Follows || a.Renewing {
			l.site.repl.Refresh() // it need not wait until a refused session is tried again
		}
	}
}
