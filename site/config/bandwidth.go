package config

import (
	"fmt"
	"time"

	"github.com/novacron/afterimage/replicator"
)

// Timetable reads a bwlimit with its time zone; an empty one never limits.
func Timetable(bwlimit, tz string) (replicator.Timetable, error) {
	zone := time.Local
	if tz != "" {
		var err error
		if zone, err = time.LoadLocation(tz); err != nil {
			return replicator.Timetable{}, fmt.Errorf("load time zone %q: %w", tz, err)
		}
	}
	return replicator.ParseTimetable(bwlimit, zone)
}

// Rate reads one limit as a timetable writes it: off, or 5M. 0 is off.
func Rate(text string) (bytesPerSecond int64, err error) {
	t, err := replicator.ParseTimetable(text, time.UTC)
	if err != nil {
		return 0, err
	}
	rate, until := t.At(time.Now())
	if t.IsZero() || !until.IsZero() {
		return 0, fmt.Errorf("parse %q: %w: want one limit, such as 5M, or off", text, replicator.ErrTimetable)
	}
	return rate, nil
}

// bandwidth judges a bwlimit and its zone.
func (s *shape) bandwidth(path, bwlimit, tz string) {
	if _, err := Timetable("", tz); err != nil {
		s.wrong(path+".tz", fmt.Sprintf("%q is no time zone that this machine knows", tz), "such as: tz: Europe/Berlin, or UTC")
		return
	}
	if _, err := Timetable(bwlimit, tz); err != nil {
		s.wrong(path+".bwlimit", err.Error(), "such as: bwlimit: \"08:00,10M 19:00,off\", or bwlimit: 10M")
	}
}
