package site

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	tap "github.com/novacron/afterimage/cbt/libvirt"
	"github.com/novacron/afterimage/recovery/libvirt"
	"github.com/novacron/afterimage/replicator"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
)

// bootKey is where the site log keeps whose autostart it is.
const bootKey = "boot"

// takenBoot is durable before libvirt's flag goes: a machine that was started with its
// host is never left to nobody.
type takenBoot struct {
	Ours bool   `json:"ours"` // the domain had autostart, and this site has it now
	Boot string `json:"boot"` // of the host, in which the domain was last seen to run
}

// bootEvery is how often a machine that waits asks again.
const bootEvery = time.Second

// hostBoot names this boot of the host.
func hostBoot() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// startAsked takes over the domain's autostart, and starts it once after each boot of
// the host, when somebody who would know has told that no other site runs the group.
// It returns when there is nothing left to do, and never stops a machine.
func (l *life) startAsked(ctx context.Context, r *reign) {
	if l.cfg.Libvirt == nil || l.cfg.Boot != config.BootAsk {
		return
	}
	tick := time.NewTicker(bootEvery)
	defer tick.Stop()
	said := ""
	for {
		why, err := l.startIfTold(ctx, r)
		if err != nil {
			why = err.Error()
		}
		l.mu.Lock()
		l.bootWaits, l.bootDone = why, why == ""
		l.mu.Unlock()
		switch {
		case ctx.Err() != nil || why == "":
			return
		case why != said:
			l.site.o.Log.Warn("machine is not started yet", "group", l.cfg.Ref(), "domain", l.cfg.Libvirt.Domain, "why", why)
			said = why
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// startIfTold does one round; why is what it waits for, empty when all is done.
func (l *life) startIfTold(ctx context.Context, r *reign) (why string, err error) {
	ctx, cancel := context.WithTimeout(ctx, examineBounded)
	defer cancel()
	var b takenBoot
	if _, err := l.j.Recall(bootKey, &b); err != nil {
		return "", err
	}
	h, err := libvirt.Connect(ctx, l.cfg.Libvirt.URI)
	if err != nil {
		return "", err
	}
	defer h.Close()
	m, err := h.Machine(ctx, l.cfg.Libvirt.Domain)
	if errors.Is(err, tap.ErrNoDomain) && !b.Ours {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	auto, err := m.Autostart(ctx)
	if err != nil {
		return "", err
	}
	if auto {
		b.Ours = true
		if err := l.j.Remember(bootKey, b); err != nil {
			return "", err
		}
		if err := m.SetAutostart(ctx, false); err != nil {
			return "", err
		}
		l.site.o.Log.Info("autostart of the domain is ours", "group", l.cfg.Ref(), "domain", m.Name)
	}
	if !b.Ours {
		return "", nil
	}
	state, err := m.State(ctx)
	switch {
	case err != nil:
		return "", err
	case state != tap.StateOff && state != tap.StateCrashed:
		return "", l.ranIn(b)
	case b.Boot == l.site.o.HostBoot:
		return "", nil // it ran since the host booted: who stopped it meant it
	}
	if why := l.notTold(r); why != "" {
		return why, nil
	}
	if err := m.Create(ctx); err != nil {
		return "", err
	}
	l.site.o.Log.Info("machine started with its host", "group", l.cfg.Ref(), "domain", m.Name)
	return "", l.ranIn(b)
}

func (l *life) ranIn(b takenBoot) error {
	if b.Boot == l.site.o.HostBoot {
		return nil
	}
	b.Boot = l.site.o.HostBoot
	return l.j.Remember(bootKey, b)
}

// notTold is why the machine must not be started yet. A peer that holds records of the
// epoch which this life began takes none from a lower one: it neither runs the group
// nor follows anybody else. Where a peer says otherwise, no other one's word helps.
func (l *life) notTold(r *reign) string {
	if c := l.conflict(); c.why != "" {
		return "a peer has another history: " + c.why
	}
	if l.guard != nil && !l.guard.holds() {
		return "there is no right of the witness to run it"
	}
	if len(l.cfg.Peers) == 0 {
		return ""
	}
	told := false
	for _, lag := range l.site.repl.Lags() {
		if lag.Identity != l.id {
			continue
		}
		follows := lag.State == replicator.StateStreaming || lag.State == replicator.StateCatchingUp
		if lag.Direction == replicator.Inbound && follows {
			return fmt.Sprintf("%s is primary", lag.Peer)
		}
		told = told || lag.Direction == replicator.Outbound && lag.Connected && follows && lag.Durable.Epoch == r.writer.Epoch().ID
	}
	if !told {
		return "no peer has told yet that no other site runs it (" + strings.Join(l.cfg.Peers, ", ") + ")"
	}
	return ""
}

// bootNotices tells of a machine that waits.
func (l *life) bootNotices() []control.Notice {
	l.mu.Lock()
	why := l.bootWaits
	l.mu.Unlock()
	if why == "" {
		return nil
	}
	return []control.Notice{{Level: control.Alarm, Text: fmt.Sprintf("domain %s is not started: %s", l.cfg.Libvirt.Domain, why),
		Hint: "If no other site runs the group, start it: virsh start " + l.cfg.Libvirt.Domain}}
}

// autostart looks whether libvirtd would start a protected domain unasked.
func (e *examination) autostart(ctx context.Context, g config.Tap) {
	if g.Libvirt == nil || g.Boot == config.BootAsk || len(g.Peers) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, examineBounded)
	defer cancel()
	h, err := libvirt.Connect(ctx, g.Libvirt.URI)
	if err != nil {
		return // said already
	}
	defer h.Close()
	m, err := h.Machine(ctx, g.Libvirt.Domain)
	if err != nil {
		return
	}
	if on, err := m.Autostart(ctx); err == nil && on {
		e.say(FindingWarning, "boot: ask of the group", "libvirtd starts %s with its host, and asks nobody: after a failover to a peer it would run twice", g.Libvirt.Domain)
	}
}
