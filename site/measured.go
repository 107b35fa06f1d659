package site

import (
	"cmp"
	"slices"

	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/recovery/evidence"
	"github.com/novacron/afterimage/site/control"
)

// stepOrder is how the steps of failovers and drills follow one another; others are
// shown behind them, by name.
var stepOrder = []recovery.StepName{recovery.StepFence, recovery.StepPromote, recovery.StepAnnounce, recovery.StepServe, recovery.StepStart, recovery.StepHealth}

// measuredOf is what the newest drills and failovers of a group say of the next one: the
// median of the whole and of each step, and beside it that of as many before them. What
// did not hold says nothing of how long one takes. nil: nothing was measured. It is pure.
func measuredOf(group string, entries []evidence.Entry) *control.Timing {
	var newest, before []evidence.Entry
	for _, e := range slices.Backward(entries) {
		switch {
		case e.Group != group || !e.Held || e.RTOSeconds <= 0:
		case len(newest) < enoughRuns:
			newest = append(newest, e)
		case len(before) < enoughRuns:
			before = append(before, e)
		}
	}
	if len(newest) == 0 {
		return nil
	}
	whole := func(e evidence.Entry) float64 { return e.RTOSeconds }
	m := &control.Timing{Runs: len(newest), Seconds: medianOf(newest, whole), Newest: newest[0].RTOSeconds, Time: newest[0].Time}
	if len(before) > 0 {
		b := medianOf(before, whole)
		m.Before = &b
	}
	names := map[string]bool{}
	for _, e := range newest {
		for name := range e.Steps {
			names[name] = true
		}
	}
	for name := range names {
		having := func(es []evidence.Entry) []evidence.Entry {
			return slices.DeleteFunc(slices.Clone(es), func(e evidence.Entry) bool { _, ok := e.Steps[name]; return !ok })
		}
		of := func(e evidence.Entry) float64 { return e.Steps[name] }
		s := control.TimingStep{Step: name, Seconds: medianOf(having(newest), of)}
		if old := having(before); len(old) > 0 {
			b := medianOf(old, of)
			s.Before = &b
		}
		m.Steps = append(m.Steps, s)
	}
	place := func(s control.TimingStep) int {
		if i := slices.Index(stepOrder, recovery.StepName(s.Step)); i >= 0 {
			return i
		}
		return len(stepOrder)
	}
	slices.SortFunc(m.Steps, func(a, b control.TimingStep) int {
		return cmp.Or(cmp.Compare(place(a), place(b)), cmp.Compare(a.Step, b.Step))
	})
	return m
}

func medianOf(es []evidence.Entry, of func(evidence.Entry) float64) float64 {
	var v []float64
	for _, e := range es {
		v = append(v, of(e))
	}
	slices.Sort(v)
	return v[len(v)/2]
}
