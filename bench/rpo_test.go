package bench

import (
	"slices"
	"testing"
	"time"
)

// The RPO grows through a cut, comes back, and is never reported lower than the
// reader found it (promise 9).
func TestRPOThroughACut(t *testing.T) {
	res, err := RPO(t.Context(), RPOOptions{For: 3 * time.Second, Writes: 50, WriteBytes: 4 << 10, RTT: 20 * time.Millisecond, Loss: 0.001, Cut: time.Second, Seed: 7, Dir: t.TempDir(), End: endOfTest})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", res)
	if res.CutMax < 1 {
		t.Errorf("a cut of 1 s shows an RPO of at most %.3f s", res.CutMax)
	}
	if res.CaughtUp == nil || !*res.CaughtUp || res.CatchUp <= 0 {
		t.Error("the RPO did not come back after the cut")
	}
	if res.ReportedBelow > 0 {
		t.Errorf("%d reports below what the reader found", res.ReportedBelow)
	}
	if res.P50 <= 0.010 {
		t.Errorf("RPO of %.4f s over a link that takes 0.010 s one way", res.P50)
	}
}

// What was missed is told, and only that.
func TestRPOIsJudged(t *testing.T) {
	yes, no := true, false
	r := RPOResult{P50: 0.054, P99: 0.2, RTT: 0.05, LinkRate: 1, CaughtUp: &yes, CatchUpRate: 0.95, CutDrift: 0.1, ReportedBelow: 1}
	r.judge()
	if got, want := r.Missed, []string{"rpo_p99_seconds", "reported_below_measured"}; !slices.Equal(got, want) {
		t.Errorf("missed %v, want %v", got, want)
	}
	r = RPOResult{P50: 0.056, RTT: 0.05, CaughtUp: &no}
	if r.judge(); !slices.Equal(r.Missed, []string{"rpo_p50_seconds", "caught_up"}) {
		t.Errorf("missed %v", r.Missed)
	}
}
