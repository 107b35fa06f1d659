package site

import (
	"fmt"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
)

// ranOn is the newest sign that a volume's machine may have written what nobody saw: it
// ran, or may have, while the volume was not synced. The catalogue does not hold it, for
// no point depends on it: only who says that the history holds all asks for it.
type ranOn struct {
	At  journal.Position `json:"at"` // the head then
	Why string           `json:"why"`
}

// ranOnKey is where a group's journal remembers it: a handover asks from a later life
// than the one that followed the disks. It is never taken back: a volume that is synced
// later is so at a later place.
func ranOnKey(v cbt.VolumeID) string { return "site/ran-on/" + v.String() }

// ranOn implements qemu.Events.
func (l *life) ranOn(v cbt.VolumeID, why string) error {
	return l.j.Remember(ranOnKey(v), ranOn{l.j.Head().Position, why})
}

// ranUnseen says that any machine of the group may have run while it was paused.
func (l *life) ranUnseen() error {
	for _, p := range l.j.Parts() {
		if err := l.ranOn(p.ID, "its capture was paused"); err != nil {
			return fmt.Errorf("remember that a machine may run unseen: %w", err)
		}
	}
	return nil
}

// ranOnSince is nil if nothing showed that v's machine ran unseen since v was synced.
func (l *life) ranOnSince(v cbt.Volume, synced journal.Position) error {
	var last ranOn
	known, err := l.j.Recall(ranOnKey(v.ID), &last)
	switch {
	case err != nil:
		return fmt.Errorf("recall whether the machine of volume %s ran on: %w", v.Name, err)
	case known && last.At.Epoch == synced.Epoch && last.At.Seq >= synced.Seq:
		return fmt.Errorf("volume %s was not followed to its machine's end (%s): start the machine, wait until it is synced, shut it down", v.Name, last.Why)
	}
	return nil
}
