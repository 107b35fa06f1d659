package site

import (
	"github.com/prometheus/client_golang/prometheus"
)

var descAdded = prometheus.NewDesc("afterimage_capture_added_seconds",
	"From a tapped write's arrival here to its answer: what capture adds to it on this side. Since the tracker began.", []string{"tenant", "group", "disk"}, nil)

// added tells what capture adds to the writes of each tapped disk.
func (c *states) added(ch chan<- prometheus.Metric, g *group) {
	l, release, err := c.site.look(g)
	if err != nil {
		return // the group's other metrics say that it is not open
	}
	defer release()
	for _, v := range l.volumeStates() {
		if v.Answers == nil {
			continue
		}
		within := make(map[float64]uint64)
		for at, n := range v.Answers.Within() {
			within[at.Seconds()] = n
		}
		ch <- prometheus.MustNewConstHistogram(descAdded, v.Answers.Count, v.Answers.Sum.Seconds(), within, append(groupLabels(g.cfg), v.Volume.Name)...)
	}
}
