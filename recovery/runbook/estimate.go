package runbook

import (
	"fmt"
	"slices"
	"time"
)

// Past is one finished run's times.
type Past struct {
	Runbook string                   `json:"runbook"`
	Mode    Mode                     `json:"mode"`
	Ended   time.Time                `json:"ended"`
	RTO     time.Duration            `json:"rto"`   // until the last machine had passed its checks
	Steps   map[string]time.Duration `json:"steps"` // by Action.Key
}

// History is finished runs, oldest first.
type History []Past

// enough is how many of the newest runs an estimate looks at.
const enough = 5

// Estimate is how long a plan takes by earlier runs.
type Estimate struct {
	Steps   []*time.Duration `json:"steps,omitempty"` // by id; nil: never measured
	Total   time.Duration    `json:"total"`           // along the longest way
	Unknown int              `json:"unknown"`         // steps that were never measured, counted as nothing
	Runs    int              `json:"runs"`            // that it rests on
}

// estimate takes for each step the median of its newest times, of any mode: a drill's
// boot is the real one's best guess.
func estimate(p Plan, past History) Estimate {
	var e Estimate
	times := map[string][]time.Duration{}
	for i := len(past) - 1; i >= 0; i-- {
		if past[i].Runbook != p.Runbook {
			continue
		}
		e.Runs++
		for k, d := range past[i].Steps {
			if len(times[k]) < enough {
				times[k] = append(times[k], d)
			}
		}
	}
	ends := make([]time.Duration, len(p.Actions))
	e.Steps = make([]*time.Duration, len(p.Actions))
	for _, a := range p.Actions {
		var begin, d time.Duration
		for _, id := range a.After {
			begin = max(begin, ends[id])
		}
		known := times[a.Key()]
		switch {
		case a.Step.Kind == Wait:
			d = a.Span
			e.Steps[a.ID] = &d
		case len(known) > 0:
			known = slices.Clone(known)
			slices.Sort(known)
			d = known[len(known)/2]
			e.Steps[a.ID] = &d
		default:
			e.Unknown++
		}
		ends[a.ID] = begin + d
		if a.Step.Kind != Cleanup { // by then everything has run
			e.Total = max(e.Total, ends[a.ID])
		}
	}
	return e
}

func (e Estimate) of(id int) string {
	if id >= len(e.Steps) || e.Steps[id] == nil {
		return "-"
	}
	return e.Steps[id].Round(time.Millisecond).String()
}

// String never says a figure of what is only not known.
func (e Estimate) String() string {
	total := e.Total.Round(time.Millisecond)
	switch {
	case e.Runs == 0:
		return "expected time: not known, no run of it was measured yet"
	case e.Unknown == 1:
		return fmt.Sprintf("expected time: %v by %s, and one step that was never measured", total, runs(e.Runs))
	case e.Unknown > 0:
		return fmt.Sprintf("expected time: %v by %s, and %d steps that were never measured", total, runs(e.Runs), e.Unknown)
	}
	return fmt.Sprintf("expected time: %v by %s", total, runs(e.Runs))
}

func runs(n int) string {
	if n == 1 {
		return "1 run"
	}
	return fmt.Sprintf("%d runs", n)
}
