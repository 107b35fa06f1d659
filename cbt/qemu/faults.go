package qemu

import "github.com/novacron/afterimage/cbt"

// faults switch promises off, so that the package's tests can show that each
// one's absence is noticed. The zero value, the only one outside tests, is none.
type faults struct {
	dropOlderAtOnce bool // rotation removes the older bitmap without waiting
	fillUnmasked    bool // tap writes do not mask the fills under way
	anyIncarnation  bool // an export name of an earlier life is answered
	liveCycles      bool // a cycle shows the disk as it is read, not as it was at one instant
	ignorePause     bool // nothing is done about having stood still

	// Not faults, but handles for the tests to time things by.
	rotateNow <-chan struct{}  // a receive rotates, if it is time
	afterDraw func()           // called when an instant is held
	scratch   func(args) args  // makes the node of a scratch file another one
	afterRead func(cbt.Extent) // called between the read of a fill and its record
}
