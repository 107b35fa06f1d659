package replicator

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Timetable is a limit of bytes per second that follows the hours of the week. The
// zero value never limits. It is a value.
type Timetable struct {
	text    string
	zone    *time.Location
	rulings []ruling // by minute; the first rules from the last's on, over the week's end
}

// ruling is a limit that rules from a minute of the week on, until the next one.
type ruling struct {
	minute int
	bytes  int64 // per second; 0: no limit
}

const (
	minutesPerDay  = 24 * 60
	minutesPerWeek = 7 * minutesPerDay
)

// ErrTimetable: a text is no timetable.
var ErrTimetable = errors.New("not a timetable")

// ParseTimetable reads rclone's --bwlimit (rclone.org/docs, "--bwlimit"): one limit, or
// "HH:MM,LIMIT" and "Mon-HH:MM,LIMIT" separated by spaces or semicolons, each of which
// rules until the next. A limit is off, or a number with B, K, M, G, T or P, powers of
// 1024; KiB without. Of "UP:DOWN" UP counts: what is sent. zone is where the hours are
// those of the clock on the wall; nil: the local one.
func ParseTimetable(text string, zone *time.Location) (Timetable, error) {
	t := Timetable{text: strings.TrimSpace(text), zone: cmp.Or(zone, time.Local)}
	fields := strings.FieldsFunc(text, func(r rune) bool { return r == ' ' || r == ';' || r == '\t' })
	if len(fields) == 0 {
		return Timetable{}, nil
	}
	if len(fields) == 1 && !strings.Contains(fields[0], ",") {
		bytes, err := parseRate(fields[0])
		if err != nil {
			return Timetable{}, fmt.Errorf("parse %q: %w", text, err)
		}
		t.rulings = []ruling{{0, bytes}}
		return t, nil
	}
	for _, f := range fields {
		if err := t.add(f); err != nil {
			return Timetable{}, fmt.Errorf("parse %q: %w", text, err)
		}
	}
	slices.SortFunc(t.rulings, func(a, b ruling) int { return cmp.Compare(a.minute, b.minute) })
	for i := 1; i < len(t.rulings); i++ {
		if t.rulings[i].minute == t.rulings[i-1].minute {
			return Timetable{}, fmt.Errorf("parse %q: %w: two limits begin at one moment", text, ErrTimetable)
		}
	}
	return t, nil
}

var weekdays = [...]string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

// add takes one entry in; without a day it is one of each.
func (t *Timetable) add(f string) error {
	when, limit, ok := strings.Cut(f, ",")
	if !ok {
		return fmt.Errorf("%w: %q is no HH:MM,LIMIT", ErrTimetable, f)
	}
	bytes, err := parseRate(limit)
	if err != nil {
		return err
	}
	first, days := 0, len(weekdays)
	if day, hours, ok := strings.Cut(when, "-"); ok {
		first = slices.IndexFunc(weekdays[:], func(w string) bool { return len(day) >= 3 && strings.HasPrefix(dayNames[w], strings.ToLower(day)) })
		if first < 0 {
			return fmt.Errorf("%w: %q is no day of the week", ErrTimetable, day)
		}
		when, days = hours, 1
	}
	hour, minute, ok := strings.Cut(when, ":")
	h, herr := strconv.ParseUint(hour, 10, 8)
	m, merr := strconv.ParseUint(minute, 10, 8)
	if !ok || herr != nil || merr != nil || h > 23 || m > 59 || len(minute) != 2 {
		return fmt.Errorf("%w: %q is no time of day", ErrTimetable, when)
	}
	for d := first; d < first+days; d++ {
		t.rulings = append(t.rulings, ruling{d*minutesPerDay + int(h)*60 + int(m), bytes})
	}
	return nil
}

var dayNames = map[string]string{"sun": "sunday", "mon": "monday", "tue": "tuesday", "wed": "wednesday", "thu": "thursday", "fri": "friday", "sat": "saturday"}

// parseRate reads a limit: bytes per second, 0 for none.
func parseRate(s string) (int64, error) {
	if up, down, both := strings.Cut(s, ":"); both {
		if _, err := parseRate(down); err != nil || strings.Contains(down, ":") {
			return 0, fmt.Errorf("%w: %q is no UP:DOWN", ErrTimetable, s)
		}
		s = up
	}
	if s == "off" {
		return 0, nil
	}
	number, shift := s, 10
	if n := len(s); n > 0 {
		if i := strings.IndexByte("BKMGTP", s[n-1]&^0x20); i >= 0 && s[n-1] >= 'A' {
			number, shift = s[:n-1], 10*i
		}
	}
	v, err := strconv.ParseFloat(number, 64)
	if v *= float64(int64(1) << shift); err != nil || v < 0 || v > math.MaxInt64/2 || math.IsNaN(v) || (v > 0 && v < 1) {
		return 0, fmt.Errorf("%w: %q is no limit: want off, or a number with B, K, M, G, T or P", ErrTimetable, s)
	}
	return int64(v), nil
}

// String is what was parsed.
func (t Timetable) String() string { return t.text }

// IsZero reports that t never limits and never will.
func (t Timetable) IsZero() bool { return len(t.rulings) == 0 }

// At is the limit at a moment, 0 for none, and when another may begin to rule; the zero
// time where none ever does.
func (t Timetable) At(now time.Time) (bytesPerSecond int64, until time.Time) {
	if len(t.rulings) == 0 {
		return 0, time.Time{}
	}
	wall := now.In(t.zone)
	minute := int(wall.Weekday())*minutesPerDay + wall.Hour()*60 + wall.Minute()
	next := slices.IndexFunc(t.rulings, func(s ruling) bool { return s.minute > minute })
	current := next - 1
	if next < 0 {
		current, next = len(t.rulings)-1, 0
	}
	if current < 0 {
		current = len(t.rulings) - 1
	}
	if len(t.rulings) == 1 {
		return t.rulings[0].bytes, time.Time{}
	}
	ahead := t.rulings[next].minute - minute
	if ahead <= 0 {
		ahead += minutesPerWeek
	}
	until = time.Date(wall.Year(), wall.Month(), wall.Day(), wall.Hour(), wall.Minute()+ahead, 0, 0, t.zone)
	if !until.After(now) { // the hour that comes twice
		until = now.Add(time.Minute)
	}
	return t.rulings[current].bytes, until
}
