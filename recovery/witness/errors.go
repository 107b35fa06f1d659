package witness

import (
	"errors"
	"fmt"
	"time"

	"github.com/novacron/afterimage/cbt"
)

// Errors of this package.
var (
	ErrLost       = errors.New("the lease is lost")
	ErrNoWatchdog = errors.New("no watchdog would pause the machine in time")
	ErrHeld       = errors.New("another lease for the group is in force")
	ErrTTL        = fmt.Errorf("a lease lives for at least %v", MinTTL)
)

// MinTTL is the shortest time to live: a witness rounds to seconds and waits for
// an election of its own.
const MinTTL = 2 * time.Second

// HeldError says who holds a group. It may be an earlier life of the asker.
type HeldError struct {
	Group  cbt.ID
	Holder string
}

func (e *HeldError) Error() string {
	return fmt.Sprintf("acquire lease of group %s: held by %q", e.Group.Short(), e.Holder)
}

// Unwrap makes errors.Is(err, ErrHeld) hold.
func (e *HeldError) Unwrap() error { return ErrHeld }
