package site

import (
	"context"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/recovery/witness"
)

var uuidText = regexp.MustCompile(`^[0-9a-fA-F]{8}-([0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}$`)

// marks is how the processes of the group's machines are known. A domain that is known by
// its name alone is also by its UUID once that was seen (noteMarks).
func (g *group) marks() []witness.Mark {
	var out []witness.Mark
	domain := func(name string) {
		out = append(out, witness.Mark("guest="+strings.ReplaceAll(name, ",", ",,")))
		if uuidText.MatchString(name) {
			out = append(out, witness.UUID(name))
		}
	}
	for _, t := range g.cfg.Taps() {
		if t.Libvirt != nil {
			domain(t.Libvirt.Domain)
		} else {
			out = append(out, witness.Mark(t.QEMU.QMP))
		}
	}
	if g.cfg.Machine == nil {
		return out
	}
	for _, m := range g.site.machineFor(g, g.cfg.Machine).Each() {
		if m.Host != nil {
			domain(m.Name)
			continue
		}
		out = append(out, witness.Mark(filepath.Join(m.Dir, "qemu.pid")))
		if m.Binary != "" && !slices.Contains(out, witness.Program(m.Binary)) {
			out = append(out, witness.Program(m.Binary))
		}
	}
	return out
}

// noteMarks adds the UUIDs of the domains that were captured, which may be renamed, also
// at the watchdog.
func (u *guardian) noteMarks(ctx context.Context, l *life) {
	for _, t := range l.cfg.Taps() {
		var id string
		if t.Libvirt == nil {
			continue
		}
		if known, err := l.j.Recall(domainKey(t), &id); err != nil || !known || !uuidText.MatchString(id) || slices.Contains(u.marks, witness.UUID(id)) {
			continue
		}
		u.mu.Lock()
		kennel := u.kennel
		u.mu.Unlock()
		if kennel != nil {
			limit, cancel := context.WithTimeout(ctx, u.ttl/8)
			err := kennel.Mark(limit, witness.UUID(id))
			cancel()
			if err != nil { // the next one has it
				u.site().o.Log.Warn("the watchdog does not take the domain's UUID", "group", u.g.cfg.Ref(), "err", err)
			}
		}
		u.marks = append(slices.Clone(u.marks), witness.UUID(id))
	}
}

// standStill pauses what runs of the group's machines.
func (u *guardian) standStill(in cbt.ID) {
	n, err := witness.Signal(u.marks, unix.SIGSTOP)
	u.mu.Lock()
	defer u.mu.Unlock()
	if n > 0 && !u.paused {
		u.paused, u.pausedIn = true, in
		u.site().o.Log.Error("machines are paused: this site has no right to run them", "group", u.g.cfg.Ref(), "machines", n)
	}
	if err != nil {
		u.why = err.Error()
		u.site().o.Log.Error("machines cannot be paused", "group", u.g.cfg.Ref(), "err", err)
	}
}

// goOn continues what was paused; where that fails it is tried again at the next turn.
func (u *guardian) goOn() {
	n, err := witness.Signal(u.marks, unix.SIGCONT)
	u.mu.Lock()
	resumed := u.paused
	u.paused, u.resume = u.paused && err != nil, err != nil
	u.mu.Unlock()
	if resumed || err != nil {
		u.site().o.Log.Warn("the right to run the group unattended is back", "group", u.g.cfg.Ref(), "machines", n, "err", err)
	}
}

// reachEvery is how often it is seen that the machines could be paused.
const reachEvery = 2 * time.Second

// reach gives the right back, to nobody, where a machine could not be paused: nobody may
// count on its watchdog then.
func (u *guardian) reach(ctx context.Context) {
	if time.Since(u.reached) < reachEvery {
		return
	}
	u.reached = time.Now()
	n, err := witness.Signal(u.marks, 0)
	u.mu.Lock()
	u.stale = u.stale && n > 0
	u.mu.Unlock()
	if err != nil {
		limit, cancel := context.WithTimeout(ctx, u.ttl/2)
		defer cancel()
		if handed := u.w.Hand(limit, u.g.id.Group, u.site().cfg.Site, ""); handed == nil {
			u.end(ctx, "")
		}
		u.refuse(noWatchdog(err))
	}
}
