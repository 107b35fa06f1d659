package site

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
)

func lagging(seconds float64) control.Group {
	l := control.Lag{Peer: "b", Direction: "out"}
	if !math.IsNaN(seconds) {
		l.RPOSeconds = &seconds
	}
	return control.Group{Tenant: "main", Name: "web", Lags: []control.Lag{l}, RPOSeconds: l.RPOSeconds}
}

// The measured RPO has the hour's figures, and what was unknown is counted, not left out.
func TestMeasuredRPOIsOfTheLastHour(t *testing.T) {
	var h rpoHistory
	k := rpoKey{"main", "web", "b", "out"}
	start := time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC)
	if m := h.tell(k, start); m != nil {
		t.Fatalf("nothing was measured, told is %+v", m)
	}
	h.take([]control.Group{lagging(99)}, start) // falls out
	for i := 1; i <= 200; i++ {
		v := float64(i) / 100
		if i%20 == 0 {
			v = math.NaN()
		}
		h.take([]control.Group{lagging(v)}, start.Add(rpoWindow+time.Duration(i)*time.Second))
	}
	m := h.tell(k, start.Add(rpoWindow+200*time.Second))
	if m == nil || m.Samples != 200 || m.Unknown != 10 || m.P50 != 0.99 || m.P99 != 1.98 || m.Max != 1.99 {
		t.Errorf("told is %+v", m)
	}
	if m := h.tell(k, start.Add(3*rpoWindow)); m != nil {
		t.Errorf("hours later told is %+v", m)
	}
	h.take(nil, start.Add(3*rpoWindow))
	if len(h.of) != 0 {
		t.Errorf("a lag that is no more is kept: %d", len(h.of))
	}
}

// An RPO beyond its objective is an alarm, near it a warning, and unknown is not good.
func TestRPOIsHeldAgainstItsObjectives(t *testing.T) {
	c := config.Group{Name: "web", RPO: config.Duration(15 * time.Second), Objectives: &config.Objectives{RPOWarn: config.Duration(10 * time.Second)}}
	for _, x := range []struct {
		rpo         float64
		level, text string
	}{
		{9, "", ""},
		{11, control.Warning, "11.0 s, near"},
		{16, control.Alarm, "16.0 s, the objective is 15s"},
		{math.NaN(), control.Warning, "unknown"},
	} {
		got := rpoNotices(c, lagging(x.rpo))
		if x.level == "" {
			if len(got) > 0 {
				t.Errorf("%v: %+v", x.rpo, got)
			}
			continue
		}
		if len(got) != 1 || got[0].Level != x.level || !strings.Contains(got[0].Text, x.text) {
			t.Errorf("%v: %+v, want %s with %q", x.rpo, got, x.level, x.text)
		}
	}
	if got := rpoNotices(config.Group{}, lagging(1e6)); len(got) > 0 {
		t.Errorf("without an objective: %+v", got)
	}
}
