package journal

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// What is thinned is gone for good, and age is all that the ladder, the lock and the
// holds of peers go by: a wall clock that leaps a year ahead makes everything old. So
// Maintain thins by the wall clock only as far as it is witnessed. A witness is what the
// wall clock and the machine's own uptime, which nobody sets, said at the same moment:
//
//	wall clock   ──w──────────────────────────●── now
//	uptime       ──u─────────●── now             the rest is a leap
//
// The site log keeps the witness, so a restart of the process changes nothing: within
// one boot, uptime explains all that passed since its first witness, and what is allowed
// on top, for the slew of a clock that is being set right, is allowed once. A machine
// that was off tells nothing of how long: of that, unwitnessedOff is believed. What goes
// beyond is a leap: nothing is folded, thinned or merged, whatever the quota says, and
// Maintained and status say so, until the clock is back or a person has confirmed it
// (Maintenance.TrustClock). A clock that goes back is no danger, for the past is only
// younger then, and does not move the witness.
//
// The first Maintain of a journal takes the clock on trust.

const clockKey = "journal/clock"

const (
	unwitnessedOff  = 24 * time.Hour  // that a machine may have been off
	clockSlack      = 5 * time.Minute // a step that setting a clock right may make
	clockSlewParts  = 100             // of the time that passed, one may be slewed on top
	witnessInterval = time.Minute     // a witness is not renewed before
)

// Uptime is how long the machine is up, suspension included, and which boot that is.
type Uptime func() (up time.Duration, boot string, err error)

// MachineUptime asks the kernel.
func MachineUptime() (time.Duration, string, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return 0, "", fmt.Errorf("read uptime: %w", err)
	}
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return 0, "", fmt.Errorf("read boot id: %w", err)
	}
	return time.Duration(t.Nano()), strings.TrimSpace(string(id)), nil
}

// witness is what wall clock and uptime said when a boot was first met, and the latest
// that the wall clock has said since and was believed.
type witness struct {
	Wall time.Time     `json:"wall"`
	Up   time.Duration `json:"up"`
	Boot string        `json:"boot"`
	High time.Time     `json:"high"`
}

// leap is how much further the wall clock is than w explains, when a boot is up for so
// long; 0 when w explains all. It is pure.
func (w witness) leap(wall time.Time, up time.Duration, boot string) time.Duration {
	from, passed := w.Wall, up-w.Up
	if boot != w.Boot {
		from, passed = w.High, unwitnessedOff+up
	}
	passed = max(passed, 0)
	return max(wall.Sub(from)-passed-passed/clockSlewParts-clockSlack, 0)
}

// checkClock is how far the wall clock has leapt. Where it has not, or where a person
// trusts it, it is witnessed.
func (j *Journal) checkClock(trust bool) (time.Duration, error) {
	if j.o.Uptime == nil {
		return 0, nil
	}
	wall := j.o.Now()
	up, boot, err := j.o.Uptime()
	if err != nil {
		return 0, err
	}
	var w witness
	there, err := j.site.recall(clockKey, &w)
	if err != nil {
		return 0, err
	}
	if there && !trust {
		if d := w.leap(wall, up, boot); d > 0 {
			return d, nil
		}
	}
	switch {
	case !there || trust || boot != w.Boot:
		w = witness{Wall: wall, Up: up, Boot: boot, High: wall}
	case wall.Sub(w.High) >= witnessInterval:
		w.High = wall
	default:
		return 0, nil
	}
	if err := fullOr(j.site.remember(clockKey, w)); err != nil && !errors.Is(err, ErrFull) { // thinning makes room
		return 0, err
	}
	return 0, nil
}

// leapWarning is what to say of a clock that has leapt.
func leapWarning(d time.Duration) string {
	return fmt.Sprintf("the clock has leapt %v ahead of the time that has passed: nothing is thinned until it is set right, or confirmed with group maintain --trust-clock", d.Round(time.Second))
}
