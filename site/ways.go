package site

import (
	"fmt"

	"github.com/novacron/afterimage/site/config"
)

// way says how a domain is captured, and what that keeps others from doing to it.
func (e *examination) way(g config.Group, t config.Tap) {
	allowed, cycles := t.Libvirt.Passthrough == config.PassthroughAllowed, g.Cycle() > 0
	if allowed {
		fix := "passthrough: forbidden avoids it; each break then reads the whole disk"
		if cycles {
			fix = "none for bitmap cycles, which need the monitor; per-write capture can do with passthrough: forbidden"
		}
		e.say(FindingWarning, fix, "commands are passed to QEMU's monitor: libvirt calls the domain tainted (custom-monitor)")
	}
	e.say(FindingOK, "", "%s; %s", kept(allowed, cycles), aside(g))
}

// kept is what others cannot do to a domain while it is captured, or should not. Who is
// refused hears of a block job or a busy node, and nothing is told to us: so it is said
// before.
func kept(passthrough, cycles bool) string {
	switch {
	case cycles: // with the passthrough, or the configuration refuses it
		return "while it is captured, another program's backup meets ours, and should wait for a pause"
	case passthrough:
		return "while it is tapped QEMU refuses snapshots, backups, commits and resizing (\"node is busy\"); a migration ends the tap"
	}
	return "while it is tapped libvirt refuses migration, snapshots, backups, saving and resizing (\"active block job\")"
}

// aside is the command that lets the domain go for that.
func aside(g config.Group) string {
	return fmt.Sprintf("for such work: afterimage group pause %s --for 1h --reason \"...\"", g.Ref())
}

// othersTold says it of a group whose domains are captured just now.
func (l *life) othersTold() string {
	r := l.reigning()
	if r == nil || len(r.plugs) == 0 || r.tracker == nil || r.tracker.paused().at(l.site.o.Now()) {
		return ""
	}
	for _, p := range r.plugs {
		return kept(p.tap.Libvirt.Passthrough == config.PassthroughAllowed, l.cfg.Cycle() > 0) + "; " + aside(l.cfg)
	}
	return ""
}
