package site

import (
	"fmt"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/qemu"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
)

// A disk that was moved into an image (move.go) becomes local when the QEMU that runs
// from it has the image open itself, and is tapped like any other machine's (pivoting.go).
// From then on the image is what the guest wrote, and the history follows it: who comes
// later taps, and never serves the image or writes to it.

// pivotedKey is where the site log keeps which disks of a promoted group are local.
const pivotedKey = "failover/local"

// pivoted is what is local, or becomes so. It holds for one promotion, as moved does.
type pivoted struct {
	Promotion cbt.ID                 `json:"promotion"`
	Disks     map[string]pivotedDisk `json:"disks"`             // by volume id
	Stopped   bool                   `json:"stopped,omitempty"` // the guest may stand still by our order
}

type pivotedDisk struct {
	Image string `json:"image"`
	// Device is the identity of the block device that the image is; "": it is a file.
	Device string `json:"device,omitempty"`
	From   string `json:"from"` // the node that the guest had
	// Done says that the image is the machine's own. Before that is durable the guest
	// writes nothing to it but through this site, whichever node it has.
	Done  bool      `json:"done"`
	At    time.Time `json:"at,omitzero"`
	Pause float64   `json:"pause_seconds,omitempty"` // that the guest stood still for it
}

// pivotedNow is what holds for a role.
func (l *life) pivotedNow(r recovery.Reign) (pivoted, error) {
	var p pivoted
	if _, err := l.j.Recall(pivotedKey, &p); err != nil {
		return p, fmt.Errorf("recall local disks: %w", err)
	}
	if p.Promotion != r.Promotion || r.Promotion.IsZero() {
		p = pivoted{Promotion: r.Promotion}
	}
	if p.Disks == nil {
		p.Disks = map[string]pivotedDisk{}
	}
	return p, nil
}

// local is the disk v of the machine, if it is local.
func (p pivoted) local(v cbt.VolumeID) (pivotedDisk, bool) {
	d := p.Disks[v.String()]
	return d, d.Done
}

// some reports whether any disk is local.
func (p pivoted) some() bool {
	for _, d := range p.Disks {
		if d.Done {
			return true
		}
	}
	return false
}

// unfinished reports that a pivot was begun and is neither done nor taken back.
func (p pivoted) unfinished() bool {
	for _, d := range p.Disks {
		if !d.Done {
			return true
		}
	}
	return p.Stopped
}

// openLocal adds the local disk v to what is tapped of the machine.
func (l *life) openLocal(r *reign, v cbt.Volume, d pivotedDisk, tap *guestTap) error {
	c := l.cfg.Machine
	if c == nil || l.hosted() {
		return fmt.Errorf("%w: its disk %s is the machine's own, and the configuration names no machine: of a QEMU any more", recovery.ErrMachine, v.Name)
	}
	m := l.machine(c)
	_, socket := m.Monitors()
	tap.QEMU, tap.own = &config.QEMU{QMP: socket, Watchdog: m.WatchdogMonitor()}, true
	tap.disks = append(tap.disks, qemu.Disk{Volume: v, Node: qemu.Pivot{Volume: v}.To(), Find: qemu.FindImage(d.Image)})
	r.disks = append(r.disks, &disk{volume: v, kind: kindTapped, image: d.Image, identity: d.Device})
	return nil
}

// localOf says where its machine has a disk open; nil: it has not.
func (l *life) localOf(v cbt.VolumeID) (*control.Local, error) {
	p, err := l.pivotedNow(l.roleNow())
	if d, ok := p.local(v); ok && err == nil {
		return &control.Local{Image: d.Image, Since: d.At, Pause: d.Pause}, nil
	}
	return nil, err
}
