package site

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/novacron/afterimage/recovery"
)

// A machine waits for its disks while this daemon is away, or stops when they fail it:
// libvirt 9.0 knows no reconnect-delay. Which of its requests fails, and when, is the
// guest's doing, up to some time after the disks are there again. So it is looked at for
// a while from then on, and resumed: QEMU makes the request again.

// Looks at machines whose disks are back.
const (
	backEvery = 500 * time.Millisecond
	backFor   = 30 * time.Second
)

// goOn lets the group's machines go on that its disks have stopped, which it serves
// again.
func (l *life) goOn(ctx context.Context) {
	if l.cfg.Machine == nil || !l.servesJournal() {
		return
	}
	var all sync.WaitGroup
	defer all.Wait()
	for _, m := range l.machine(l.cfg.Machine).Each() {
		if m.Host != nil {
			all.Go(func() { l.goOnOne(ctx, m) })
		}
	}
}

// goOnOne looks at one machine until backFor has passed, and it could be asked. What
// hinders it is logged once, and again when that is something else.
func (l *life) goOnOne(ctx context.Context, m recovery.Machine) {
	log := l.site.o.Log.With("group", l.cfg.Ref(), "machine", m.Name)
	why := ""
	for began := l.site.o.Now(); ; {
		resumed, err := m.GoOn(ctx)
		switch known := err == nil || errors.Is(err, recovery.ErrNotRunning); {
		case ctx.Err() != nil:
			return
		case known && resumed:
			log.Warn("machine goes on: it had stopped for want of its disks")
		case !known && err.Error() != why:
			why = err.Error()
			log.Error("look whether the machine stands still for want of its disks", "err", err)
		case known && l.site.o.Now().Sub(began) >= backFor:
			return
		}
		if pauseFor(ctx, backEvery) != nil {
			return
		}
	}
}
