package site

import (
	"fmt"
	"slices"
	"time"

	"github.com/novacron/afterimage/recovery/evidence"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
)

// enoughRuns is how many of the newest measurements an expected time looks at.
const enoughRuns = 5

// objectiveNotices say which objectives of a group the evidence shows to be missed. A
// drill that failed is none; of a group that never had one the time counts from since,
// when it got its role here. It is pure.
func objectiveNotices(c config.Group, entries []evidence.Entry, since, now time.Time) []control.Notice {
	var out []control.Notice
	warn := func(text, hint string) {
		out = append(out, control.Notice{Level: control.Warning, Text: text, Hint: hint})
	}
	var last, drilled *evidence.Entry
	for i, e := range entries {
		if !e.Of(c.Ref()) || e.Kind == evidence.Decision {
			continue
		}
		last = &entries[i]
		if e.Kind == evidence.Drill && e.Held {
			drilled = &entries[i]
		}
	}
	if c.Drill != nil {
		every := time.Duration(c.Drill.Every)
		hint := "Run failover test " + c.Name
		switch {
		case drilled != nil && now.Sub(drilled.Time) > every:
			warn(fmt.Sprintf("the last drill that held was %s, the objective is every %v", drilled.Time.Format(timeLayout), c.Drill.Every), hint)
		case drilled == nil && now.Sub(since) > every:
			warn(fmt.Sprintf("no drill of it ever held here, the objective is every %v", c.Drill.Every), hint)
		}
	}
	if last != nil && !last.Held {
		warn(fmt.Sprintf("the last %s, %s, did not hold", last.Kind, last.Time.Format(timeLayout)), "Its report tells why: "+last.Name)
	}
	if o := c.Objectives; o != nil && o.RTO > 0 && last != nil && last.Group == c.Ref() && last.Held && last.RTOSeconds > time.Duration(o.RTO).Seconds() {
		warn(fmt.Sprintf("the last %s took %.1f s, the objective is %v", last.Kind, last.RTOSeconds, o.RTO), "Its report has the time of each step: "+last.Name)
	}
	return out
}

// expectedSeconds is the median of the newest times that were measured of a group, nil
// if there are none. It is pure.
func expectedSeconds(group string, entries []evidence.Entry) *float64 {
	var times []float64
	for i := len(entries) - 1; i >= 0 && len(times) < enoughRuns; i-- {
		if e := entries[i]; e.Group == group && e.Held && e.RTOSeconds > 0 {
			times = append(times, e.RTOSeconds)
		}
	}
	if len(times) == 0 {
		return nil
	}
	slices.Sort(times)
	return &times[len(times)/2]
}

// measured is what the ledger has; nothing where it is refused, or only read.
func (s *Site) measured() []evidence.Entry {
	if s.ledger == nil || s.ledgerErr != nil {
		return nil
	}
	return s.ledger.Entries()
}
