package bench

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"
)

// Rate is what one side of a comparison did: medians over the rounds, but for
// Seconds and Bytes, which are sums. What does not apply is zero.
type Rate struct {
	MBPerSecond float64 `json:"mb_per_second,omitempty"` // 10^6 bytes as they reached the disk, headers included
	PerSecond   float64 `json:"per_second,omitempty"`    // records, groups or reads
	P50         float64 `json:"p50_us,omitempty"`
	P99         float64 `json:"p99_us,omitempty"`
	Bytes       int64   `json:"bytes,omitempty"`
	Seconds     float64 `json:"seconds,omitempty"`
}

// Figure is one value of a run, with what it was made of.
type Figure struct {
	Value    float64  `json:"value"`
	Target   *float64 `json:"target,omitempty"`
	Want     string   `json:"want,omitempty"` // "at least" or "at most" Target
	Met      *bool    `json:"met,omitempty"`
	Low      float64  `json:"low"` // of the rounds
	High     float64  `json:"high"`
	Rounds   int      `json:"rounds"`
	Ours     *Rate    `json:"ours,omitempty"`
	Baseline *Rate    `json:"baseline,omitempty"`
	Note     string   `json:"note,omitempty"`
}

// goal is a figure's name and what it should be.
type goal struct {
	name   string
	want   string
	target float64
}

const (
	atLeast = "at least"
	atMost  = "at most"
	// sealedSuffix is of the figures of a journal whose payloads are sealed; they
	// are printed beside and have no target.
	sealedSuffix = "_sealed"
)

// goals lists all figures, in the order in which they are printed.
var goals = []goal{
	{"ingest_64k_qd32_vs_raw", atLeast, 0.90},
	{"ingest_4k_qd32_vs_raw", atLeast, 0.80},
	{"ingest_4k_qd128_vs_raw", atLeast, 0.60},
	{"ingest_4k_qd1_latency_vs_raw", atMost, 1.15},
	{"write_amplification_64k", atMost, 1.05},
	{"write_amplification_4k_qd32", atMost, 1.3},
	{"lifetime_write_amplification", atMost, 2.0},
	{"asof_4k_qd1_vs_file", atLeast, 0.90},
	{"asof_4k_qd32_vs_file", atLeast, 0.85},
	{"materialize_vs_copy", atLeast, 0.60},
	{"materialize_folded_vs_copy", atLeast, 0.85},
	{"first_byte_of_view_seconds", atMost, 0.1},
	{"open_seconds_per_million_records", atMost, 1},
	{"index_bytes_per_record", atMost, 30},
}

// FiguresWith lists the figures that have part in their name, or in that of the
// sealed one beside it.
func FiguresWith(part string) []string {
	var names []string
	for _, g := range goals {
		if strings.Contains(g.name+sealedSuffix, part) {
			names = append(names, g.name)
		}
	}
	return names
}

// figure judges the rounds' values by name's goal; the value is their median.
func figure(name string, rounds []float64) Figure { return judged(goals, name, rounds) }

// judged is figure by a list of goals. A goal that wants nothing judges nothing.
func judged(goals []goal, name string, rounds []float64) Figure {
	f := Figure{Value: median(rounds), Rounds: len(rounds)}
	if len(rounds) > 0 {
		f.Low, f.High = slices.Min(rounds), slices.Max(rounds)
	}
	for _, g := range goals {
		if g.name == name && g.want != "" {
			met := f.Value >= g.target
			if g.want == atMost {
				met = f.Value <= g.target
			}
			target := g.target
			f.Target, f.Want, f.Met = &target, g.want, &met
		}
	}
	return f
}

// Missed reports that f has a target and is on the wrong side of it.
func (f Figure) Missed() bool { return f.Met != nil && !*f.Met }

// namesOf lists the figures that there are, in the order of their goals.
func namesOf(goals []goal, figures map[string]Figure) []string {
	var out []string
	for _, g := range goals {
		if _, ok := figures[g.name]; ok {
			out = append(out, g.name)
		}
	}
	return out
}

// flatJSON is one object: every figure's value under its name, then "missed", "details"
// by name and "setting".
func flatJSON(figures map[string]Figure, setting any) ([]byte, error) {
	flat := map[string]any{"details": figures, "setting": setting}
	missed := []string{}
	for _, n := range slices.Sorted(maps.Keys(figures)) {
		flat[n] = figures[n].Value
		if figures[n].Missed() {
			missed = append(missed, n)
		}
	}
	flat["missed"] = missed
	return json.Marshal(flat)
}

// Names lists the figures that r holds, in the order of goals; sealed ones follow
// their like.
func (r JournalResult) Names() []string {
	var out []string
	for _, g := range goals {
		for _, n := range []string{g.name, g.name + sealedSuffix} {
			if _, ok := r.Figures[n]; ok {
				out = append(out, n)
			}
		}
	}
	return out
}

// MissedNames lists the figures whose target is missed.
func (r JournalResult) MissedNames() []string {
	out := []string{}
	for _, n := range r.Names() {
		if r.Figures[n].Missed() {
			out = append(out, n)
		}
	}
	return out
}

// MarshalJSON prints one object: every figure's value under its name, then
// "missed", "details" by name and "setting".
func (r JournalResult) MarshalJSON() ([]byte, error) {
	return flat(r.Names(), r.Figures, r.MissedNames(), r.Setting)
}

// flat prints figures in an order.
func flat(names []string, figures map[string]Figure, missed []string, setting any) ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	put := func(k string, v any) error {
		raw, err := json.Marshal(v)
		if err != nil {
			return err
		}
		if b.Len() > 1 {
			b.WriteByte(',')
		}
		b.WriteString(`"` + k + `":`)
		b.Write(raw)
		return nil
	}
	for _, n := range names {
		if err := put(n, figures[n].Value); err != nil {
			return nil, err
		}
	}
	for _, e := range []struct {
		k string
		v any
	}{{"missed", missed}, {"details", figures}, {"setting", setting}} {
		if err := put(e.k, e.v); err != nil {
			return nil, err
		}
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(v))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

// round is one measured stretch of one side.
type round struct {
	bytes   int64 // that reached the disk, or were read
	payload int64
	ops     int
	took    time.Duration
	laps    []time.Duration // one an operation
}

func (r round) perSecond() float64 { return float64(r.bytes) / r.took.Seconds() }

// rateOf sums rounds up.
func rateOf(rounds []round) *Rate {
	var mb, ops, p50, p99 []float64
	var r Rate
	for _, x := range rounds {
		mb, ops = append(mb, x.perSecond()/1e6), append(ops, float64(x.ops)/x.took.Seconds())
		if len(x.laps) > 0 {
			slices.Sort(x.laps)
			p50, p99 = append(p50, micros(sorted(x.laps, 0.5))), append(p99, micros(sorted(x.laps, 0.99)))
		}
		r.Bytes += x.bytes
		r.Seconds += x.took.Seconds()
	}
	r.MBPerSecond, r.PerSecond, r.P50, r.P99 = median(mb), median(ops), median(p50), median(p99)
	return &r
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// sorted is the q-quantile of an ascending slice.
func sorted(d []time.Duration, q float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	return d[min(int(q*float64(len(d))), len(d)-1)]
}
