package config

import (
	"fmt"
	"time"
)

// Clock is a time of the day, hours and minutes.
type Clock string

// UnmarshalText accepts 03:00.
func (c *Clock) UnmarshalText(text []byte) error {
	if _, err := time.Parse("15:04", string(text)); err != nil {
		return fmt.Errorf("time of day %q is not understood: want hours and minutes, such as 03:00", text)
	}
	*c = Clock(text)
	return nil
}

// On is that time on the day of t, in t's zone. In a spring's gap of the clock it is the
// same wall time by the clock of one of its sides (time.Date).
func (c Clock) On(t time.Time) time.Time {
	at, err := time.Parse("15:04", string(c))
	if err != nil {
		return t // there is none
	}
	return time.Date(t.Year(), t.Month(), t.Day(), at.Hour(), at.Minute(), 0, 0, t.Location())
}
