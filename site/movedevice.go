package site

import (
	"fmt"
	"io"
	"os"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/site/fault"
)

// fillingKey is where a group's journal remembers which devices it fills: volume to
// identity. What such a one holds is ours, if the move to it is repeated.
const fillingKey = "site/filling"

// edgeBytes at both ends of a device tell whether something lies on it: partition tables,
// file systems, volume managers and disks of machines all have something there.
const edgeBytes = 1 << 20

// claim is the identity of a block device that a disk may be moved onto: one that no
// machine is seen to have open, and that is blank. A machine of libvirt's may have it open
// through a node of its own, which shows nobody its locks, and a disk of another group lies
// there although its machine is off; what either has written shows. That nobody has it
// mounted, and that it is large enough, is seen when it is opened.
func (l *life) claim(v cbt.Volume, path string) (identity string, err error) {
	what := "move volume " + v.Name
	if identity, err = recovery.DeviceIdentity(path); err != nil {
		return "", fault.Wrap(fault.ImageTrouble, what, err)
	}
	switch held, err := (recovery.Drive{Path: path, Format: "raw"}).Held(); {
	case err != nil:
		return "", fault.Wrap(fault.ImageTrouble, what, err)
	case held:
		return "", fault.New(fault.ImageTrouble, what, "a machine has %s open", path)
	}
	filling := map[string]string{}
	if _, err := l.j.Recall(fillingKey, &filling); err != nil {
		return "", fmt.Errorf("recall which devices are filled: %w", err)
	}
	if filling[v.ID.String()] == identity {
		return identity, nil // by an attempt before this one
	}
	switch empty, err := blank(path); {
	case err != nil:
		return "", fault.Wrap(fault.ImageTrouble, what, err)
	case !empty:
		return "", fault.New(fault.ImageTrouble, what, "%s holds something, and all of it would be lost", path).
			Advise("Look at it with lsblk -f and wipefs. If it is to be lost: blkdiscard -z %s, or write zeroes to its first and last MiB.", path)
	}
	filling[v.ID.String()] = identity
	if err := l.j.Remember(fillingKey, filling); err != nil {
		return "", fmt.Errorf("remember which devices are filled: %w", err)
	}
	return identity, nil
}

// claimed ends what claim remembered: the device is full.
func (l *life) claimed(v cbt.Volume) error {
	filling := map[string]string{}
	if _, err := l.j.Recall(fillingKey, &filling); err != nil {
		return fmt.Errorf("recall which devices are filled: %w", err)
	}
	delete(filling, v.ID.String())
	if err := l.j.Remember(fillingKey, filling); err != nil {
		return fmt.Errorf("remember that a device is filled: %w", err)
	}
	return nil
}

// blank reports that nothing but zeroes lies at both ends of a device.
func blank(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return false, err
	}
	for _, at := range []int64{0, max(size-edgeBytes, 0)} {
		b := make([]byte, min(edgeBytes, size-at))
		if _, err := f.ReadAt(b, at); err != nil {
			return false, err
		}
		for _, x := range b {
			if x != 0 {
				return false, nil
			}
		}
	}
	return true, nil
}
