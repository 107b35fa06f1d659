package main

import (
	"fmt"

	"github.com/novacron/afterimage/site/control"
)

// measuredLine says how long drills and failovers of a group took, and whether that
// became more or less.
func measuredLine(m control.Timing) string {
	s := fmt.Sprintf("%s by %s", seconds(m.Seconds), plural(uint64(m.Runs), "drill or failover"))
	if m.Runs != 1 {
		s = fmt.Sprintf("%s, the median of %d drills and failovers", seconds(m.Seconds), m.Runs)
	}
	return s + trend(m.Seconds, m.Before)
}

// trend compares with what was before.
func trend(now float64, before *float64) string {
	if before == nil || *before <= 0 {
		return ""
	}
	return fmt.Sprintf("; before these %s (%+.0f%%)", seconds(*before), 100*(now / *before - 1))
}

// measuredTable is its steps.
func (p *printer) measuredTable(m control.Timing) string {
	t := p.newTable("STEP", "TAKES", "TOOK BEFORE")
	for _, s := range m.Steps {
		was := "-"
		if s.Before != nil {
			was = seconds(*s.Before)
		}
		t.row(s.Step, seconds(s.Seconds), was)
	}
	return t.String()
}
