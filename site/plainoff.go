package site

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/recovery/witness"
	"github.com/novacron/afterimage/site/config"
)

// plainOff sees the machine of a plain QEMU off. Nobody at its monitor's socket proves
// nothing: the socket of a machine that runs can be unlinked, or taken by another one. So
// no process of this host may have been told of it, and nobody may hold one of its disks;
// what cannot be looked at is not off. A disk that is no file of this host, or whose file is
// gone, has no lock that could be asked for: the socket and the processes decide.
func (l *life) plainOff(ctx context.Context, t config.Tap) (string, error) {
	path := t.QEMU.QMP
	if err := plainSilent(ctx, path); err != nil {
		return "", err
	}
	var unasked []string
	for _, v := range t.Volumes {
		if v.QEMU == nil {
			continue
		}
		asked, err := l.notHeld(v)
		if err != nil {
			return "", fmt.Errorf("see the machine at %s off: %w", path, err)
		}
		if !asked {
			unasked = append(unasked, v.Name)
		}
	}
	if len(unasked) > 0 {
		return fmt.Sprintf("nobody answers at %s, and no process was told of it; whether one has the disk of %s open cannot be told", path, strings.Join(unasked, ", ")), nil
	}
	return "nobody answers at " + path + ", no process was told of it, and nobody has its disks open", nil
}

// plainSilent is nil if nobody is at a plain QEMU's monitor, and no process of this host was
// told of it.
func plainSilent(ctx context.Context, path string) error {
	if err := socketSilent(ctx, path); err != nil {
		return err
	}
	pids, err := witness.Pack([]witness.Mark{witness.Mark(path)})
	switch {
	case err != nil:
		return fmt.Errorf("look for the machine at %s: %w", path, err)
	case len(pids) > 0:
		return fmt.Errorf("nobody answers at %s, and process %d, which was told of it, runs: shut it down first", path, pids[0])
	}
	return nil
}

// notHeld is nil if no process of this host has the disk of a plain QEMU open; asked is
// false where nobody can tell.
func (l *life) notHeld(v config.Volume) (asked bool, err error) {
	var d recovery.Drive
	known, err := l.j.Recall(driveKey(volumeOf(l.cfg, v).ID), &d)
	switch {
	case err != nil:
		return false, err
	case !known && l.hadNoTap(): // its machine was to be somewhere else
		return false, nil
	case !known:
		return false, fmt.Errorf("where volume %s lies was never seen, so nobody can tell whether a machine has it open", v.Name)
	case !filepath.IsAbs(d.Path): // of a server (nbd:, rbd:), of several parts (json:), or of a directory that is not known
		return false, nil
	}
	switch held, err := d.Held(); {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, err
	case held:
		return true, fmt.Errorf("nobody answers there, and a process has the disk of volume %s open, %s: shut the machine down first", v.Name, d.Path)
	}
	return true, nil
}

// hadNoTap reports that no tap was owed to the group's disks in the reign that is, or that
// was stood down from: the role is given up only where nothing spoke against that reign.
func (l *life) hadNoTap() bool {
	r := l.roleNow()
	return !l.taps() || r.Stage() == recovery.StageReplica && !r.Stood.IsZero()
}

// socketSilent is nil if nobody is at a machine's monitor.
func socketSilent(ctx context.Context, path string) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	switch {
	case err == nil:
		_ = c.Close() // nothing was said
		fallthrough
	case errors.Is(err, syscall.EAGAIN): // others wait for it already
		return fmt.Errorf("a machine answers at %s: shut it down first", path)
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return nil
	}
	return fmt.Errorf("see the machine at %s off: %w", path, err)
}
