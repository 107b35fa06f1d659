package bench

import (
	"testing"
	"time"
)

// The RPO grows through a cut, comes back, and is never reported lower than the
// reader found it (promise 9).
func TestRPOThroughACut(t *testing.T) {
	res, err := RPO(t.Context(), RPOOptions{For: 12 * time.Second, Writes: 50, WriteBytes: 4 << 10, RTT: 20 * time.Millisecond, Loss: 0.001, Cut: time.Second, Seed: 7})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", res)
	if res.CutMax < 0.9 {
		t.Errorf("a cut of 1 s shows an RPO of at most %.3f s", res.CutMax)
	}
	if res.CatchUp == 0 {
		t.Error("the RPO did not come back after the cut")
	}
	if res.ReportedBelow > 0 {
		t.Errorf("%d reports below what the reader found", res.ReportedBelow)
	}
	if res.P50 <= 0.010 {
		t.Errorf("RPO of %.4f s over a link that takes 0.010 s one way", res.P50)
	}
}
