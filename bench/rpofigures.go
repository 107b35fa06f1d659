package bench

import (
	"slices"
	"time"
)

// RPOResult is what `bench rpo -o json` prints.
type RPOResult struct {
	P50           float64 `json:"rpo_p50_seconds"`
	P99           float64 `json:"rpo_p99_seconds"`
	Max           float64 `json:"rpo_max_seconds"`
	Samples       int     `json:"samples"`
	Writes        uint64  `json:"writes"`
	WriteBytes    int64   `json:"write_bytes"`
	Seconds       float64 `json:"seconds"`
	ReportedP50   float64 `json:"reported_rpo_p50_seconds"`
	ReportedBelow int     `json:"reported_below_measured"` // samples where the product claimed less than the age of a missing write
	// Of a run with a cut.
	CutMax      float64 `json:"cut_rpo_max_seconds,omitempty"`
	CutDrift    float64 `json:"cut_reported_drift_seconds,omitempty"` // the most by which the RPO shown grew more or less than time went by
	Reconnect   float64 `json:"reconnect_seconds,omitempty"`          // from the cut's end until something arrived
	CatchUp     float64 `json:"catch_up_seconds,omitempty"`           // from the cut's end until the RPO was below the p99 of before
	CatchUpRate float64 `json:"catch_up_vs_link,omitempty"`           // of the bytes that were missing, from the first that arrived on
	CaughtUp    *bool   `json:"caught_up,omitempty"`                  // absent without a cut; false: it was not waited for any longer
	ShownBack   float64 `json:"reported_back_seconds,omitempty"`      // from then on until the RPO shown was below its own p99 of before

	Missed   []string `json:"missed"`  // names of the figures on the wrong side of their target
	Between  string   `json:"between"` // the ends: packets or, without root, datagrams
	RTT      float64  `json:"rtt_seconds"`
	Loss     float64  `json:"loss"`
	LinkRate int64    `json:"link_bytes_per_second"`
	Seed     uint64   `json:"seed"`

	reportedP99 float64
}

// calm sums up samples of a path that is whole.
func calm(samples []RPOSample) RPOResult {
	var rpo, reported []time.Duration
	for _, s := range samples {
		rpo = append(rpo, s.RPO)
		if s.Known {
			reported = append(reported, s.Reported)
		}
	}
	return RPOResult{
		P50: quantile(rpo, 0.5).Seconds(), P99: quantile(rpo, 0.99).Seconds(), Max: quantile(rpo, 1).Seconds(), Samples: len(rpo),
		ReportedP50: quantile(reported, 0.5).Seconds(), reportedP99: quantile(reported, 0.99).Seconds(),
	}
}

// honest counts the samples in which less was claimed than a missing write's age.
func (r *RPOResult) honest(samples []RPOSample) {
	for _, s := range samples {
		if s.Known && s.Reported < s.Loss {
			r.ReportedBelow++
		}
	}
}

// cutMoments are since the load began: when the path was whole again, when something
// arrived, when the RPO was as before, and when it was shown so; and how many stamps
// came between the second and the third.
type cutMoments struct {
	healed, moved, back, shown time.Duration
	stamps                     uint64
}

// through sums up the samples from a cut's beginning on.
func (r *RPOResult) through(samples []RPOSample, o RPOOptions, at cutMoments) {
	var first *RPOSample
	for i, s := range samples {
		r.CutMax = max(r.CutMax, s.RPO.Seconds())
		if !s.Cut || !s.Known || s.At < samples[0].At+o.RTT+time.Second {
			continue // what was under way may still arrive
		}
		if first == nil {
			first = &samples[i]
		}
		r.CutDrift = max(r.CutDrift, ((s.Reported - first.Reported) - (s.At - first.At)).Abs().Seconds())
	}
	r.Reconnect, r.CatchUp, r.ShownBack = (at.moved - at.healed).Seconds(), (at.back - at.healed).Seconds(), (at.shown - at.back).Seconds()
	if took := (at.back - at.moved).Seconds(); o.LinkRate > 0 && took > 0 {
		r.CatchUpRate = float64(at.stamps) * float64(o.WriteBytes) / took / float64(o.LinkRate)
	}
}

// judge names what is missed: the targets follow from the path.
func (r *RPOResult) judge() {
	r.Missed = []string{}
	for _, t := range r.Targets() {
		if !t.Met {
			r.Missed = append(r.Missed, t.Name)
		}
	}
}

// RPOTarget is a figure beside what it should be.
type RPOTarget struct {
	Name   string
	Value  float64
	Want   string // "at least" or "at most"
	Target float64
	Met    bool
}

// Targets are those of the figures that the run has.
func (r RPOResult) Targets() []RPOTarget {
	all := []RPOTarget{
		{Name: "rpo_p50_seconds", Value: r.P50, Want: atMost, Target: r.RTT/2 + 0.030},
		{Name: "rpo_p99_seconds", Value: r.P99, Want: atMost, Target: r.RTT + 0.100},
		{Name: "reported_below_measured", Value: float64(r.ReportedBelow), Want: atMost},
	}
	if r.CaughtUp != nil {
		all = append(all, RPOTarget{Name: "cut_reported_drift_seconds", Value: r.CutDrift, Want: atMost, Target: 1})
	}
	if r.CaughtUp != nil && !*r.CaughtUp {
		all = append(all, RPOTarget{Name: "caught_up", Want: atLeast, Target: 1})
	}
	if r.CaughtUp != nil && r.LinkRate > 0 {
		all = append(all, RPOTarget{Name: "catch_up_vs_link", Value: r.CatchUpRate, Want: atLeast, Target: 0.9})
	}
	for i := range all {
		all[i].Met = all[i].Value <= all[i].Target
		if all[i].Want == atLeast {
			all[i].Met = all[i].Value >= all[i].Target
		}
	}
	return all
}

func quantile(d []time.Duration, q float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(d))
	return s[min(int(q*float64(len(s))), len(s)-1)]
}
