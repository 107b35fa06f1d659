package site

import (
	"strings"
	"testing"
	"time"

	"github.com/novacron/afterimage/recovery/evidence"
	"github.com/novacron/afterimage/site/config"
)

func TestObjectivesThatAreMissedAreTold(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	day := 24 * time.Hour
	c := config.Group{Tenant: "default", Name: "web", Objectives: &config.Objectives{RTO: config.Duration(2 * time.Minute)}, Drill: &config.Drill{Every: config.Duration(30 * day)}}
	entry := func(kind string, ago time.Duration, rto float64, held bool) evidence.Entry {
		return evidence.Entry{Group: "default/web", Kind: kind, Name: "r", Time: now.Add(-ago), RTOSeconds: rto, Held: held}
	}
	other := evidence.Entry{Group: "default/db", Kind: evidence.Drill, Time: now, RTOSeconds: 999, Held: true}
	for _, x := range []struct {
		name    string
		entries []evidence.Entry
		since   time.Duration
		want    []string
	}{
		{"young", nil, 29 * day, nil},
		{"never", []evidence.Entry{other}, 31 * day, []string{"no drill of it ever held"}},
		{"fresh", []evidence.Entry{entry(evidence.Drill, 29*day, 100, true), other}, 99 * day, nil},
		{"overdue", []evidence.Entry{entry(evidence.Drill, 31*day, 100, true)}, 99 * day, []string{"the last drill that held was"}},
		{"a failover is no drill", []evidence.Entry{entry(evidence.Failover, day, 100, true)}, 99 * day, []string{"no drill of it ever held"}},
		{"one that failed is none", []evidence.Entry{entry(evidence.Drill, day, 0, false)}, 99 * day, []string{"no drill of it ever held", "did not hold"}},
		{"slow", []evidence.Entry{entry(evidence.Drill, day, 121, true)}, 99 * day, []string{"took 121.0 s, the objective is 2m"}},
	} {
		got := objectiveNotices(c, x.entries, now.Add(-x.since), now)
		if len(got) != len(x.want) {
			t.Errorf("%s: %+v", x.name, got)
			continue
		}
		for i, n := range got {
			if !strings.Contains(n.Text, x.want[i]) || n.Hint == "" {
				t.Errorf("%s: %q, want %q", x.name, n.Text, x.want[i])
			}
		}
	}
	if e := expectedSeconds("default/web", []evidence.Entry{other}); e != nil {
		t.Errorf("expected %v of nothing", *e)
	}
	many := []evidence.Entry{entry(evidence.Drill, day, 900, true)}
	for _, s := range []float64{5, 1, 4, 2, 3} {
		many = append(many, entry(evidence.Drill, day, s, true), other, entry(evidence.Drill, day, 800, false))
	}
	if e := expectedSeconds("default/web", many); e == nil || *e != 3 {
		t.Errorf("expected %v, want the median of the newest five", e)
	}
}
