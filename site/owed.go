package site

import (
	"context"
	"errors"
	"fmt"
	"time"

	tap "github.com/novacron/afterimage/cbt/libvirt"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/recovery/libvirt"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
)

// A machine that an earlier life of the daemon owes a start (of a rewind, of a handover)
// is started unasked, and this site may have been away while another one was promoted.
// So the others are asked first:
//
//	boot: ask, failover: auto  somebody who would know has to tell that no other site
//	                           runs the group, as after a boot of the host (notTold)
//	else                       a peer that answers must not say that it is primary; one
//	                           that does not answer is waited for, for a while (peersPatience)
//
// What this process itself has just stopped or taken over it starts at once.

// peersPatience is how long peers may take to answer after a start of the daemon.
const peersPatience = 5 * time.Second

// untilTold waits until a machine may be started that is owed a start; false: ctx ended.
// Where it runs, and all of several do, there is nothing to wait for.
func (l *life) untilTold(ctx context.Context, r *reign, machine string) bool {
	defer l.startWaits("", "")
	patience := time.NewTimer(l.site.o.peersPatience)
	defer patience.Stop()
	patient, said := true, ""
	for wait := askFirst; ctx.Err() == nil; wait = min(2*wait, bootEvery) {
		if l.goesOn(ctx) {
			return true
		}
		select {
		case <-patience.C:
			patient = false
		default:
		}
		why := l.notStartedFor(ctx, r, patient)
		if why == "" {
			return ctx.Err() == nil
		}
		l.startWaits(machine, why)
		if why != said {
			l.site.o.Log.Warn("machine is not started yet", "group", l.cfg.Ref(), "machine", machine, "why", why)
			said = why
		}
		_ = pauseFor(ctx, wait) // the loop sees that ctx ended
	}
	return false
}

// notStartedFor is why a machine that is owed a start must not be started now; "": it may.
func (l *life) notStartedFor(ctx context.Context, r *reign, patient bool) string {
	if l.cfg.Boot == config.BootAsk || l.cfg.Failover == config.FailoverAuto {
		return l.notTold(r)
	}
	return notStartedBy(l.cfg.Peers, patient, func(peer string) (heads, error) {
		once, cancel := context.WithTimeout(ctx, peersPatience)
		defer cancel()
		return ask[heads](once, l, peer, topicHeads, struct{}{})
	})
}

// notStartedBy is what peers have against it; who is patient waits for all of them to answer.
func notStartedBy(peers []string, patient bool, ask func(peer string) (heads, error)) string {
	silent := ""
	for _, peer := range peers {
		h, err := ask(peer)
		switch {
		case err != nil:
			silent = fmt.Sprintf("%s has not told yet that it does not run it", peer)
		case h.Role.Captures() && h.Stage != recovery.StageCeded && h.Stage != recovery.StageLeft:
			return fmt.Sprintf("%s is %s", peer, h.Stage)
		}
	}
	if patient {
		return silent
	}
	return ""
}

// goesOn reports that the machine runs; one that stands still would have to be told to go on.
func (l *life) goesOn(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, ownPatience)
	defer cancel()
	name, err := l.runsHere(ctx)
	if err != nil || name == "" || !l.atHome() {
		return err == nil && name != "" && l.machine(l.cfg.Machine).RunsWhole()
	}
	err = l.onDomain(ctx, func(_ *libvirt.Host, m *libvirt.Machine) error {
		state, err := m.State(ctx)
		if err == nil && state == tap.StatePaused {
			err = errStandsStill
		}
		return err
	})
	return err == nil
}

var errStandsStill = errors.New("the machine stands still")

// startWaits notes for which machine's start is waited, and why; "": for none.
func (l *life) startWaits(machine, why string) {
	l.startLacks(machine, why, "It is started by itself once no other site runs the group")
}

// startLacks is startWaits for what another thing than another site's word is lacking to.
func (l *life) startLacks(machine, why, hint string) {
	l.mu.Lock()
	l.owed, l.owedWhy, l.owedHint = machine, why, hint
	l.mu.Unlock()
}

// owedNotices tells of a machine whose start waits.
func (l *life) owedNotices() []control.Notice {
	l.mu.Lock()
	machine, why, hint := l.owed, l.owedWhy, l.owedHint
	l.mu.Unlock()
	if why == "" {
		return nil
	}
	return []control.Notice{{Level: control.Alarm, Text: fmt.Sprintf("machine %s is not started: %s", machine, why), Hint: hint}}
}
