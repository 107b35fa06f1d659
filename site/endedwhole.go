package site

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
)

// A group is given away, and its disks are written to, when no machine can write to them
// any more and all that one ever wrote is in the history. Who knows whether one runs is
// asked in tapsoff.go; what it did beyond its tap is remembered in ranon.go.

// errNotOpened says that nobody looks at the machine's disks: the reign has not begun, or
// is over.
var errNotOpened = errors.New("the disks of the group's machine are not open here now: wait until they are, and repeat the command")

// writerIsOff is nil if no machine can write to disks that are captured from outside:
// what it wrote after the drain would be lost. Disks that this site serves are shut by
// the drain itself. That all taps have ended is not enough: those who know are asked.
func (l *life) writerIsOff(ctx context.Context, quiesce string) error {
	tapped, err := l.writerIsGone(ctx)
	if err != nil || !tapped {
		return err
	}
	return l.endedWhole(ctx)
}

// writerIsGone is nil if no machine can write to those disks; tapped says that somebody
// follows them here, so that it matters whether the history has all.
func (l *life) writerIsGone(ctx context.Context) (tapped bool, err error) {
	r := l.reigning()
	taps, err := l.tapsAny()
	if err != nil {
		return false, err
	}
	if r == nil && taps {
		return false, errNotOpened
	}
	tapped = r != nil && r.tracker != nil
	if tapped {
		for _, v := range r.tracker.Status() {
			off := v.Cause == cbt.CauseMachine || v.Cause == cbt.CauseTapEnded
			if v.State == cbt.StateSynced || v.State == cbt.StateSyncing || v.State == cbt.StateAttaching || !off {
				return tapped, fmt.Errorf("the machine of volume %s runs (%s): %s; its last writes arrive then", v.Volume.Name, v.State, l.shutFirst())
			}
		}
	}
	if err := l.nobodyRuns(ctx); err != nil {
		if l.severalTapped() {
			return tapped, fmt.Errorf("%w: nothing is handed over until every machine of the group is seen off: %s", err, l.shutFirst())
		}
		return tapped, fmt.Errorf("%w: nothing is handed over until the machine is seen off (--shutdown has it shut down)", err)
	}
	return tapped, nil
}

// severalTapped reports that the machines whose disks are tapped here are several: nobody
// shuts them down from here.
func (l *life) severalTapped() bool { return len(l.cfg.Machines) > 0 && l.taps() }

// shutFirst is what a person does about a machine that is in the way of a handover.
func (l *life) shutFirst() string {
	if l.severalTapped() {
		return "shut each machine of the group down first, for several are not shut down from here (--shutdown)"
	}
	return "shut it down first, or have it shut down (--shutdown)"
}

// endedWhole is nil if every volume that is captured from outside was followed up to its
// machine's end, which nobody has seen run since, within the epoch that is the head's:
// what was written between two epochs nobody saw, whatever the records before them say.
func (l *life) endedWhole(ctx context.Context) error { return l.ended(ctx, false) }

// ended is endedWhole; with unread it is also nil where no more is missing than what was
// written after the last cycle, which lies on the disks.
func (l *life) ended(ctx context.Context, unread bool) error {
	hs, err := l.j.Happenings(ctx, time.Time{}, time.Time{})
	if err != nil {
		return err
	}
	volumes, err := headVolumes(l.j)
	if err != nil {
		return err
	}
	if r := l.reigning(); r != nil && r.tracker != nil { // one that joined is at the head once it was synced
		for _, v := range r.tracker.Status() {
			if !slices.ContainsFunc(volumes, func(o cbt.Volume) bool { return o.ID == v.Volume.ID }) {
				volumes = append(volumes, v.Volume)
			}
		}
	}
	epoch := l.j.Head().Epoch
	followed, gaps := map[cbt.VolumeID]journal.Position{}, map[cbt.VolumeID]cbt.Cause{}
	for _, h := range hs {
		switch {
		case h.Epoch != epoch:
		case h.Kind == journal.KindSynced:
			followed[h.Volume] = h.Position
			delete(gaps, h.Volume)
		case h.Kind == journal.KindGap && gaps[h.Volume] == "":
			gaps[h.Volume] = h.Cause
		}
	}
	served, err := l.servedOf(volumes)
	if err != nil {
		return err
	}
	for _, v := range volumes {
		cause := gaps[v.ID]
		since, known := followed[v.ID]
		if !known {
			cause = cbt.CauseOpening
		}
		switch {
		case served[v.ID]:
		case cause == "", cause == cbt.CauseMachine, cause == cbt.CauseTapEnded, unread && cause == cbt.CauseCycle:
			if err := l.ranOnSince(v, since); err != nil {
				return err
			}
		case cause == cbt.CauseOpening:
			return fmt.Errorf("volume %s was not followed since its disks were opened here, and its machine may have run meanwhile: start the machine, wait until it is synced, shut it down", v.Name)
		case cause == cbt.CauseCycle:
			return fmt.Errorf("volume %s: %s", v.Name, cyclesEnd)
		default:
			return fmt.Errorf("volume %s was not followed to its machine's end (%s): start the machine, wait until it is synced, shut it down", v.Name, cause)
		}
	}
	return nil
}

// cyclesEnd is why a machine that is captured in cycles is not handed over as it is: its
// last writes, those of its going down among them, are in none.
const cyclesEnd = "what its machine wrote after the last cycle is not here: a planned failover needs capture: {mode: per-write}, or the disks of one machine that is tapped here, which it reads once the machine is off"
