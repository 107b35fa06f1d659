package site

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/recovery/witness"
	"github.com/novacron/afterimage/site/fault"
)

// The machine of local disks writes to them whether or not this site is there. So whoever
// gives its history away, leaves it or rewinds it asks of it what is asked of any tapped
// machine: that it is off, by those who know, and that it was followed to its end.

// tapsAny reports whether anything of the group is captured from outside: disks that are
// tapped, or local ones.
func (l *life) tapsAny() (bool, error) {
	p, err := l.pivotedNow(l.roleNow())
	return l.taps() || p.some(), err
}

// servedOf are those of volumes whose writes come through this site alone.
func (l *life) servedOf(volumes []cbt.Volume) (map[cbt.VolumeID]bool, error) {
	served := l.embeddedVolumes()
	p, err := l.pivotedNow(l.roleNow())
	if err != nil || !p.some() {
		return served, err
	}
	for _, v := range volumes {
		_, own := p.local(v.ID)
		served[v.ID] = !own
	}
	return served, nil
}

// localOff sees the machine of local disks off, as plainOff does that of tapped ones: nobody
// answers at its sockets, no process was told of them, and nobody has the disks open. It
// says how; "" where no disk is local. A reign that was given up to nobody has a machine
// still; that of another promotion has none, for its own began with it off.
func (l *life) localOff(ctx context.Context) (how string, err error) {
	var p pivoted
	if _, err := l.j.Recall(pivotedKey, &p); err != nil {
		return "", fmt.Errorf("recall local disks: %w", err)
	}
	now := l.roleNow().Promotion
	if !now.IsZero() && p.Promotion != now || !p.some() && !p.unfinished() {
		return "", nil
	}
	what := "see the machine of " + l.cfg.Ref() + " off"
	if now == p.Promotion && p.unfinished() {
		return "", fmt.Errorf("%s: its disks are becoming the machine's own", what)
	}
	if err := l.localSilent(ctx, what); err != nil {
		return "", err
	}
	for _, d := range p.Disks {
		if !d.Done {
			continue // served from here to the end
		}
		held, err := recovery.Drive{Path: d.Image, Format: "raw"}.Held()
		switch {
		case now.IsZero() && errors.Is(err, fs.ErrNotExist): // somebody tidied up
		case err != nil:
			return "", fmt.Errorf("%s: %w", what, err)
		case held:
			return "", fmt.Errorf("%s: a process has its disk open, %s: shut the machine down first", what, d.Image)
		}
	}
	return "no process has its disks open", nil
}

// localSilent is nil if no process runs that is the machine's.
func (l *life) localSilent(ctx context.Context, what string) error {
	c := l.cfg.Machine
	if c == nil || l.hosted() {
		return fmt.Errorf("%s: its disks are those of a plain QEMU, which the configuration does not name any more: put machine: of the group back", what)
	}
	own, tap := l.machine(c).Monitors()
	for _, path := range []string{own, tap} {
		if err := socketSilent(ctx, path); err != nil {
			return err
		}
	}
	pids, err := witness.Pack(append(l.marks(), witness.Mark(own), witness.Mark(tap)))
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", what, err)
	case len(pids) > 0:
		return fmt.Errorf("%s: nobody answers at %s, and process %d, which was told of it, runs: shut it down first", what, own, pids[0])
	}
	return nil
}

// localInputs is what a rewind of local disks depends on: what they hold is given up, so
// the history has to have it.
func (l *life) localInputs(ctx context.Context, in *recovery.RewindInputs) error {
	p, err := l.pivotedNow(l.roleNow())
	if err != nil || !p.some() {
		return err
	}
	// After the machine's end the newest record tells of that, and is no point.
	if last, err := resolve(ctx, l.j, "latest"); err == nil {
		in.Undo = fmt.Sprintf("#%d.%d", last.Number, last.Seq)
	}
	if l.reigning() == nil {
		return nil // it was asked for, and is off by now
	}
	if in.Machine == "" { // else it is ended first
		if _, err := l.localOff(ctx); err != nil {
			return fault.Wrap(fault.RewindElsewhere, "rewind "+l.cfg.Ref(), err)
		}
	}
	if l.cfg.Cycle() > 0 {
		in.Unfollowed = cyclesEnd
	} else if err := l.unfollowed(ctx, in.Machine != ""); err != nil {
		in.Unfollowed = err.Error()
	}
	return nil
}

// endedLocal waits until the machine of local disks, which was ended for a rewind, is seen
// off and the history has all that it wrote.
func (l *life) endedLocal(ctx context.Context) error {
	p, err := l.pivotedNow(l.roleNow())
	if err != nil || !p.some() {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	for {
		err := l.writerIsOff(ctx, "")
		if err == nil {
			return nil
		}
		if pauseFor(ctx, askFirst) != nil {
			return fault.New(fault.RewindRefused, "rewind "+l.cfg.Ref(), "the disks hold what the history does not: %v", err)
		}
	}
}
