package config

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Rung is a step of the ladder by which history thins with age:
//
//	history: [{every: write, for: 24h}, {every: 1m, for: 7d}, {every: 1h, for: 30d}]
//
// keeps each write of the last day, a point a minute up to an age of a week, one an
// hour up to a month, and of what is older only what is pinned or in use.
type Rung struct {
	Every Every `yaml:"every"`
	For   For   `yaml:"for"` // an age, counted from now
}

// String is the rung as a person says it.
func (r Rung) String() string {
	if r.For == Ever {
		return fmt.Sprintf("every %s for ever", r.Every)
	}
	return fmt.Sprintf("every %s for %s", r.Every, r.For)
}

// Every is the distance of a rung's points; EveryWrite: each record is one.
type Every time.Duration

// For is the age up to which a rung holds; Ever: there is no such age.
type For time.Duration

// Values that are no spans; zero is what the file left out.
const (
	EveryWrite Every = -1
	Ever       For   = -1
)

// Maintenance is when and how fast history is thinned.
type Maintenance struct {
	Every Duration `yaml:"every,omitempty"`
	Rate  Bytes    `yaml:"rate,omitempty"` // bytes per second written by it
}

// Hold is how much history a peer that lags may keep from being thinned here.
// Beyond either bound it must catch up without the moments in between.
type Hold struct {
	For   Duration `yaml:"for,omitempty"`
	Bytes Bytes    `yaml:"bytes,omitempty"` // 0: only For and the quota bound it
}

// Coalesce is when a peer that is behind is brought to the newest record by what changed
// up to it, without the moments in between.
type Coalesce struct {
	Behind Duration `yaml:"behind"`
}

// Percent is a part of a quota, 1 to 100.
type Percent int

// String is 80%.
func (p Percent) String() string { return fmt.Sprintf("%d%%", int(p)) }

// MarshalText is String.
func (p Percent) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText accepts 80 and 80%.
func (p *Percent) UnmarshalText(text []byte) error {
	n, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(string(text), "%")))
	if err != nil || n < 1 || n > 100 {
		return fmt.Errorf("%q is not a percentage: want a number from 1 to 100", text)
	}
	*p = Percent(n)
	return nil
}

// String is "write" or a span.
func (e Every) String() string {
	if e == EveryWrite {
		return "write"
	}
	return Duration(e).String()
}

// MarshalText is String.
func (e Every) MarshalText() ([]byte, error) { return []byte(e.String()), nil }

// UnmarshalText accepts write and spans of at least a second.
func (e *Every) UnmarshalText(text []byte) error {
	if string(text) == "write" {
		*e = EveryWrite
		return nil
	}
	d, err := parseSpan(string(text))
	if err != nil {
		return fmt.Errorf("every %q is not understood: want write, or a span with s, m, h, d, w or y, such as 1m", text)
	}
	if d < time.Second {
		return fmt.Errorf("every %s is less than a second: want write, or a second or more", text)
	}
	*e = Every(d)
	return nil
}

// String is "ever" or a span.
func (f For) String() string {
	if f == Ever {
		return "ever"
	}
	return Duration(f).String()
}

// MarshalText is String.
func (f For) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText accepts ever and spans.
func (f *For) UnmarshalText(text []byte) error {
	if string(text) == "ever" {
		*f = Ever
		return nil
	}
	d, err := parseSpan(string(text))
	if err != nil || d == 0 {
		return fmt.Errorf("for %q is not understood: want ever, or a span with s, m, h, d, w or y, such as 7d", text)
	}
	*f = For(d)
	return nil
}

// spanPart is one number with its unit.
var spanPart = regexp.MustCompile(`^([0-9]+(?:\.[0-9]+)?)(ns|us|µs|ms|s|m|h|d|w|y)`)

const day = 24 * time.Hour

var spanUnits = map[string]time.Duration{"ns": 1, "us": time.Microsecond, "µs": time.Microsecond, "ms": time.Millisecond, "s": time.Second,
	"m": time.Minute, "h": time.Hour, "d": day, "w": 7 * day, "y": 365 * day}

// parseSpan reads Go's notation with days, weeks and years of 365 days: 1d12h. It
// refuses a number without a unit, and what is negative.
func parseSpan(s string) (time.Duration, error) {
	if s == "0" {
		return 0, nil
	}
	sum, rest := 0.0, s
	for rest != "" {
		m := spanPart.FindStringSubmatch(rest)
		if m == nil {
			return 0, fmt.Errorf("span %q: no number with a unit at %q", s, rest)
		}
		n, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			return 0, fmt.Errorf("span %q: %w", s, err)
		}
		sum += n * float64(spanUnits[m[2]])
		rest = rest[len(m[0]):]
	}
	if s == "" || sum >= math.MaxInt64 {
		return 0, fmt.Errorf("span %q is empty or too long", s)
	}
	return time.Duration(math.Round(sum)), nil
}

// spanString is Go's notation without parts that are zero, in days from two on, and
// in years where it is whole ones.
func spanString(d time.Duration) string {
	if d > 0 && d%(365*day) == 0 {
		return fmt.Sprintf("%dy", d/(365*day))
	}
	if d >= 2*day && d%day == 0 {
		return fmt.Sprintf("%dd", d/day)
	}
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// DefaultHistory is the ladder of a group that names none.
func DefaultHistory() []Rung {
	return []Rung{{EveryWrite, For(day)}, {Every(time.Minute), For(7 * day)}, {Every(time.Hour), For(30 * day)}}
}

// Defaults of how history is kept.
const (
	DefaultMaintenanceEvery = Duration(time.Minute)
	DefaultMaintenanceRate  = Bytes(50 << 20)
	DefaultHoldFor          = Duration(72 * time.Hour)
)

// DefaultWarn is at how much of its quota a group warns.
func DefaultWarn() []Percent { return []Percent{80, 90} }

// completeHistory fills in what a group leaves out about its history.
func (g *Group) completeHistory() {
	if len(g.History) == 0 {
		g.History = DefaultHistory()
	}
	if g.Quota > 0 && len(g.Warn) == 0 {
		g.Warn = DefaultWarn()
	}
	m := Maintenance{}
	if g.Maintenance != nil {
		m = *g.Maintenance
	}
	if m.Every == 0 {
		m.Every = DefaultMaintenanceEvery
	}
	if m.Rate == 0 {
		m.Rate = DefaultMaintenanceRate
	}
	g.Maintenance = &m
}

// completeHold fills in what a peer leaves out about its hold.
func (p *Peer) completeHold() {
	h := Hold{}
	if p.Hold != nil {
		h = *p.Hold
	}
	if h.For == 0 {
		h.For = DefaultHoldFor
	}
	p.Hold = &h
}

// history judges how a group's history is kept.
func (s *shape) history(path string, g Group) {
	const coarser = "each rung is coarser and reaches further back than the one before, such as [{every: write, for: 24h}, {every: 1m, for: 7d}]"
	for i, r := range g.History {
		at := fmt.Sprintf("%s.history[%d]", path, i)
		switch {
		case r.Every == 0:
			s.absent(at+".every", "write, or the distance of the points that are kept, such as: every: 1m")
			continue
		case r.For == 0:
			s.absent(at+".for", "the age up to which the rung holds, such as: for: 7d; or ever")
			continue
		case r.Every > 0 && r.For > 0 && time.Duration(r.For) < time.Duration(r.Every):
			s.wrong(at+".every", fmt.Sprintf("a point every %s for %s is none", r.Every, r.For), "for: is an age, and longer than every:")
		case r.For == Ever && i < len(g.History)-1:
			s.wrong(at+".for", "only the last rung may hold for ever", coarser)
		}
		if i == 0 {
			continue
		}
		was := g.History[i-1]
		if r.Every == EveryWrite || was.Every > 0 && r.Every <= was.Every {
			s.wrong(at+".every", fmt.Sprintf("every %s after every %s: rungs get coarser", r.Every, was.Every), coarser)
		}
		if r.For > 0 && was.For > 0 && r.For <= was.For {
			s.wrong(at+".for", fmt.Sprintf("for %s after for %s: rungs reach further back", r.For, was.For), coarser)
		}
	}
	if len(g.Warn) > 0 && g.Quota == 0 {
		s.absent(path+".quota", "warn: is a part of it, such as: quota: 500GiB")
	}
	if !slices.IsSorted(g.Warn) || len(slices.Compact(slices.Clone(g.Warn))) < len(g.Warn) {
		s.wrong(path+".warn", "the thresholds do not rise", "such as: warn: [80, 90]")
	}
	if m := g.Maintenance; m != nil && time.Duration(m.Every) < time.Second {
		s.wrong(path+".maintenance.every", fmt.Sprintf("maintenance every %s is too often", m.Every), "a second is the least; a minute does")
	}
}
