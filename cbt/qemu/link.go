package qemu

import (
	"context"
	"time"
)

// link is a session with a machine, and the way in which its disks are tapped:
// through the monitor (machine), or by copies that a manager makes (copies).
type link interface {
	Done() <-chan struct{} // closed when the session has ended
	Err() error            // why; nil before that
	Close() error
	// hear takes the session's events until ctx or the session ends.
	hear(ctx context.Context)
	// prepare clears what an earlier attachment of d left behind and agrees on
	// the disk's size; what it returns puts a tap in.
	prepare(ctx context.Context, d *disk) (func(*tap) attached, error)
	// yank cuts the connection of a capture node, if that can be done at all.
	yank(ctx context.Context, node string) error
}

// attached is one attachment of one disk.
type attached interface {
	// run puts the tap in and holds it until it ends; the error says why.
	run(ctx context.Context) error
	// since is when the volume became synced; zero if it did not.
	since() time.Time
	// remove takes the tap, which drains, out of the machine.
	remove(ctx context.Context)
}

var (
	_ link     = (*machine)(nil)
	_ link     = (*copies)(nil)
	_ attached = (*attachment)(nil)
	_ attached = (*copying)(nil)
)
