package site

import (
	"slices"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/site/control"
)

// gravest orders modes by how far they are from points, the furthest first.
var gravest = []cbt.Mode{cbt.ModeNone, cbt.ModeReleased, cbt.ModeFull, cbt.ModeDelta, cbt.ModeCycles, cbt.ModePerWrite}

// tellGuests adds to a line how each of several machines is followed: as its disk that
// is furthest from points is.
func (l *life) tellGuests(line *control.Group) {
	r := l.reigning()
	if r == nil || r.tracker == nil || len(l.cfg.Machines) == 0 {
		return
	}
	for _, m := range l.cfg.Machines {
		line.Machines = append(line.Machines, guestTold(m.Name, r.tracker.statusOf(m.Name)))
	}
}

// guestTold is how a machine's disks are followed. It is pure.
func guestTold(name string, disks []cbt.VolumeStatus) control.Guest {
	told := control.Guest{Name: name, Mode: string(cbt.ModeNone), Volumes: len(disks)}
	worst := len(gravest)
	for _, v := range disks {
		rank := slices.Index(gravest, v.Mode)
		if rank > worst || rank == worst && v.ModeSince.Before(told.Since) {
			continue
		}
		worst = rank
		told.Mode, told.State, told.Since, told.Why = string(v.Mode), string(v.State), v.ModeSince, v.ModeWhy
		if told.Why == "" && v.State != cbt.StateSynced {
			told.Why = v.Detail
		}
		told.Effect = v.Mode.Effect()
	}
	return told
}
