package site

import (
	"testing"
	"time"

	"github.com/novacron/afterimage/recovery/evidence"
)

func TestMeasuredIsTheNewestAndWhatWasBefore(t *testing.T) {
	at := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	run := func(rto, start float64, held bool) evidence.Entry {
		at = at.Add(time.Hour)
		return evidence.Entry{Kind: evidence.Drill, Group: "default/web", Time: at, Held: held, RTOSeconds: rto, Steps: map[string]float64{"start": start, "promote": 0.5}}
	}
	other := evidence.Entry{Group: "default/db", Held: true, RTOSeconds: 99}
	if m := measuredOf("default/web", []evidence.Entry{other, run(0, 1, true), run(7, 1, false)}); m != nil {
		t.Errorf("measured of nothing: %+v", m)
	}
	one := measuredOf("default/web", []evidence.Entry{run(3, 2, true), other})
	if one == nil || one.Runs != 1 || one.Seconds != 3 || one.Before != nil || len(one.Steps) != 2 || one.Steps[0].Step != "promote" || one.Steps[1].Seconds != 2 || one.Steps[1].Before != nil {
		t.Errorf("of one run: %+v", one)
	}
	var all []evidence.Entry
	for i := range 12 { // 100 and 200 are too old to count
		all = append(all, run(float64(12-i)*100, float64(12-i)*10, true), other, run(1, 1, false))
	}
	m := measuredOf("default/web", all)
	if m.Runs != 5 || m.Seconds != 300 || m.Newest != 100 || !m.Time.Equal(all[len(all)-3].Time) || m.Before == nil || *m.Before != 800 {
		t.Errorf("of many: %+v, before %v", m, m.Before)
	}
	if s := m.Steps[1]; s.Step != "start" || s.Seconds != 30 || s.Before == nil || *s.Before != 80 {
		t.Errorf("step %+v", s)
	}
}
