package cbt

import (
	"context"
	"time"
)

// Tracker follows the disks of one machine and tells a Sink what happens to
// them. Drivers: packages cbt/qemu and cbt/libvirt; package cbttest holds the
// conformance suite that each passes.
type Tracker interface {
	// Run attaches, resyncs, re-attaches after every break, and blocks until
	// ctx ends; then it detaches. It returns nil or an error that no retry cures.
	Run(ctx context.Context) error
	// Status is a moment's picture, one entry per volume, in the order of the options.
	Status() []VolumeStatus
}

// State is where a Tracker stands with a volume.
type State string

// States of a volume.
const (
	StateDetached  State = "detached"  // nothing of ours is in the machine
	StateAttaching State = "attaching" // the tap is being put in
	StateSyncing   State = "syncing"   // every write arrives; what was missed is being read
	StateSynced    State = "synced"    // every record is a point
	StateBroken    State = "broken"    // the tap let go or went away; a retry follows
)

// VolumeStatus is where a Tracker stands with one volume.
type VolumeStatus struct {
	Volume Volume
	State  State
	Since  time.Time // of State
	Cause  Cause     // of the newest break, empty if there was none
	Detail string    // of the newest break, for people

	Mode      Mode
	ModeSince time.Time
	ModeWhy   string // why it is in this mode, where there is more to say than its name

	Resync Resync // the newest one, also while it runs; of ModeCycles, what its beginning cost
	Cycles Cycles // ModeCycles

	Answers *Answers // to writes that the guest waited for; nil where none does
}

// Cycles count what became of a machine's bitmap cycles.
type Cycles struct {
	Points  uint64        // closed cycles
	Refused uint64        // without a point: no instant was held, or the machines would have stood still for too long
	Longest time.Duration // that the machines stood still for a point
}

// Resync is the cost of bringing a volume back to what the disk holds.
type Resync struct {
	Full           bool   // every block is read and compared; else the bitmaps' delta
	Why            string // Full: why no bitmap could be trusted
	BytesToRead    int64  // what the delta or the disk amounts to
	BytesRead      int64  // from the live disk; holes are not read
	BytesJournaled int64  // recorded as fills
	Began, Ended   time.Time
}
