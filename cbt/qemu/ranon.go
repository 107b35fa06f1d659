package qemu

import (
	"context"
	"errors"
	"time"

	"github.com/novacron/afterimage/cbt/qmp"
)

// A volume holds all that its machine ever wrote if its tap ended together with the
// machine, which has not run since. No cause of a gap says that: a job that somebody
// ended, or a monitor that went away, leaves a machine that writes on, and one that was
// off can run again and be off before it was synced. So whatever shows that the machine
// of a volume that is not synced runs, or may have run, is told to Events.RanOn, once
// until it is synced. In bitmap cycles, where that is for an instant, it is told again with
// the next session. What a machine that is just ending can do shows nothing: libvirt
// knows a domain whose QEMU has ended, for a while as one that runs, but QEMU's monitor
// answers no command any more, and no tap can be put into it.
const (
	// farewell is how long a QEMU whose monitor went away has to leave its tap, if it is
	// gone too. Until then each write that it sends is recorded.
	farewell = 5 * time.Second
	// afterlife is for how long sessions with a machine may outlive its tap: libvirtd knows
	// a little late that a QEMU has ended.
	afterlife = 30 * time.Second
)

// Reasons of Events.RanOn.
const (
	ranAnswering = "it answered when its disk was not followed"
	ranTapped    = "it ran when its disk was not level yet"
	ranStayed    = "its monitor went away, and it did not"
	ranBeyond    = "its monitor outlived the following of its disk"
)

// ranOn tells that the machine may have written what nobody saw. What could not be told
// is told with the next sign.
func (d *disk) ranOn(why string) {
	d.mu.Lock()
	said := d.saidRan
	d.mu.Unlock()
	f := d.opts.Events.RanOn
	if said || f == nil {
		return
	}
	if err := f(d.conf.Volume.ID, why); err != nil {
		d.opts.Log.Error("that a machine ran on is not remembered", "volume", d.conf.Volume.Name, "error", err)
		return
	}
	d.mu.Lock()
	d.saidRan = true
	d.mu.Unlock()
}

// level notes that the volume is about to be synced: what was told is of the time before.
func (d *disk) level() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.saidRan = false
}

// outlived tells of a machine that is reached long after the tap's end, whatever becomes
// of the attempts to attach.
func (d *disk) outlived() {
	since := d.tracker.reached
	if d.tapped.After(since) {
		since = d.tapped
	}
	if time.Since(since) > afterlife {
		d.ranOn(ranBeyond)
	}
}

// answered reports whether what prepare returned came from a machine that runs.
func answered(l link, err error) bool {
	if err != nil {
		return errors.Is(err, ErrNode) || errors.Is(err, errSizeChanged) || errors.Is(err, errForeignJob) || qmp.IsRefused(err)
	}
	_, monitor := l.(*machine)
	return monitor
}

// left waits for t's QEMU, whose monitor went away, to leave the tap as well, and
// reports whether it did. A tap that ended otherwise was let go by us.
func (t *tap) left(ctx context.Context) bool {
	timer := time.NewTimer(farewell)
	defer timer.Stop()
	select {
	case <-t.live.Done():
		return errors.Is(context.Cause(t.live), errDisconnected)
	case <-ctx.Done():
		return true // it is detached, and that is told
	case <-timer.C:
		return false
	}
}
