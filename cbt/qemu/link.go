package qemu

import "context"

// link is a session with a machine, and the way in which its disks are followed:
// through the monitor (machine), or by copies that a manager makes (copies).
type link interface {
	Done() <-chan struct{} // closed when the session has ended
	Err() error            // why; nil before that
	Close() error
	// hear takes the session's events until ctx or the session ends.
	hear(ctx context.Context)
	// prepare clears what an earlier attachment of d left behind and agrees on
	// the disk's size; what it returns puts a tap in.
	prepare(ctx context.Context, d *disk) (func(*tap) *attachment, error)
	// yank cuts the connection of a capture node, if that can be done at all.
	yank(ctx context.Context, node string) error
}

var (
	_ link = (*machine)(nil)
	_ link = (*copies)(nil)
)
