package site

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/novacron/afterimage/site/control"
)

// Metrics of how history is kept: how full, how far back, what maintenance did.
var (
	descOldest   = gauge("journal_oldest_point_timestamp_seconds", "Time of the oldest point; 0 while there is none.", "tenant", "group")
	descSegments = gauge("journal_segments", "Segment files.", "tenant", "group")
	descRuns     = gauge("journal_runs", "Run files: sorted, folded history.", "tenant", "group")
	descPast     = gauge("journal_run_bytes", "Bytes of folded history.", "tenant", "group")
	descKept     = counter("maintenance_runs_total", "Maintenances that came to their end.", "tenant", "group")
	descFailed   = counter("maintenance_failures_total", "Maintenances that failed.", "tenant", "group")
	descRewrote  = counter("maintenance_bytes_total", "Bytes that maintenance folded, merged, wrote and freed.", "tenant", "group", "kind")
	descBeyond   = gauge("peer_beyond_hold", "1 while a peer lacks more than its hold keeps for it, 2 once it is cut off.", "tenant", "group", "peer")
	descNotices  = gauge("notices", "Warnings and alarms that status shows.", "tenant", "group", "level")

	historyDescs = []*prometheus.Desc{descOldest, descSegments, descRuns, descPast, descKept, descFailed, descRewrote, descBeyond, descNotices}
)

func counter(name, help string, labels ...string) *prometheus.Desc {
	return gauge(name, help, labels...)
}

// history tells of one group; g is what status shows of it.
func (c *states) history(ch chan<- prometheus.Metric, gr *group, g control.Group) {
	at := groupLabels(gr.cfg)
	set := func(d *prometheus.Desc, t prometheus.ValueType, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, t, v, append(at[:2:2], labels...)...)
	}
	oldest := 0.0
	if !g.OldestPoint.IsZero() {
		oldest = float64(g.OldestPoint.UnixNano()) / 1e9
	}
	set(descOldest, prometheus.GaugeValue, oldest)
	status, holds, _ := gr.upkeep.look()
	var u control.Usage
	if status.Last != nil {
		u = status.Last.Usage
	}
	set(descSegments, prometheus.GaugeValue, float64(u.Segments))
	set(descRuns, prometheus.GaugeValue, float64(u.Runs))
	set(descPast, prometheus.GaugeValue, float64(u.RunBytes))
	t := status.Totals
	set(descKept, prometheus.CounterValue, float64(t.Runs))
	set(descFailed, prometheus.CounterValue, float64(t.Failures))
	for kind, n := range map[string]int64{"folded": t.Folded, "merged": t.Merged, "written": t.Written, "freed": t.Freed} {
		set(descRewrote, prometheus.CounterValue, float64(n), kind)
	}
	for _, h := range holds {
		v := 0.0
		switch h.State {
		case control.HoldBeyond:
			v = 1
		case control.HoldLost:
			v = 2
		}
		set(descBeyond, prometheus.GaugeValue, v, h.Peer)
	}
	count := map[string]int{control.Warning: 0, control.Alarm: 0}
	for _, n := range g.Notices {
		count[n.Level]++
	}
	for level, n := range count {
		set(descNotices, prometheus.GaugeValue, float64(n), level)
	}
}
