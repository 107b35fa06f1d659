package site

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
)

// rpoWindow is how far back the measured RPO is told; the histogram of the metrics has
// no end. rpoEvery is how often it is measured; a site whose status takes long to tell
// measures less often, so that it spends a twentieth of its time on it at most.
const (
	rpoWindow = time.Hour
	rpoEvery  = time.Second
	rpoShare  = 20
)

// rpoKey names one lag.
type rpoKey struct{ tenant, group, peer, direction string }

// rpoSample is a measured RPO; NaN where it was not known.
type rpoSample struct {
	at      time.Time
	seconds float64
}

// rpoHistory is what was measured of each lag within the last rpoWindow, oldest first:
// at most an hour of seconds, some 100 KiB a lag. It is safe for concurrent use.
type rpoHistory struct {
	mu sync.Mutex
	of map[rpoKey][]rpoSample
}

// take adds what the groups' lags are at now. Lags that are no more fall out as they age.
func (h *rpoHistory) take(groups []control.Group, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.of == nil {
		h.of = make(map[rpoKey][]rpoSample)
	}
	for _, g := range groups {
		for _, l := range g.Lags {
			k := rpoKey{g.Tenant, g.Name, l.Peer, l.Direction}
			h.of[k] = append(h.of[k], rpoSample{now, rpoOf(l)})
		}
	}
	for k, s := range h.of {
		if s = s[outdated(s, now):]; len(s) == 0 {
			delete(h.of, k)
		} else {
			h.of[k] = s
		}
	}
}

// outdated is how many of the first samples are older than the window.
func outdated(s []rpoSample, now time.Time) int {
	i := slices.IndexFunc(s, func(x rpoSample) bool { return now.Sub(x.at) <= rpoWindow })
	if i < 0 {
		return len(s)
	}
	return i
}

func rpoOf(l control.Lag) float64 {
	if l.RPOSeconds == nil {
		return math.NaN()
	}
	return *l.RPOSeconds
}

// tell is what was measured of a lag within the window before now, nil if nothing was.
func (h *rpoHistory) tell(k rpoKey, now time.Time) *control.Measured {
	h.mu.Lock()
	s := slices.Clone(h.of[k])
	h.mu.Unlock()
	if s = s[outdated(s, now):]; len(s) == 0 {
		return nil
	}
	m := &control.Measured{Since: s[0].at, Samples: len(s)}
	var known []float64
	for _, x := range s {
		if math.IsNaN(x.seconds) {
			m.Unknown++
		} else {
			known = append(known, x.seconds)
		}
	}
	if len(known) > 0 {
		slices.Sort(known)
		m.P50, m.P99, m.Max = quantile(known, 0.5), quantile(known, 0.99), known[len(known)-1]
	}
	return m
}

// quantile is the smallest of sorted that a share q of them does not exceed.
func quantile(sorted []float64, q float64) float64 {
	return sorted[max(int(math.Ceil(q*float64(len(sorted))))-1, 0)]
}

// measureRPO measures the lags until ctx ends.
func (s *Site) measureRPO(ctx context.Context) {
	wait := time.NewTimer(rpoEvery)
	defer wait.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-wait.C:
		}
		began := time.Now()
		groups := make([]control.Group, 0, len(s.groups))
		for _, g := range s.groups {
			groups = append(groups, s.groupStatus(ctx, g))
		}
		if ctx.Err() != nil {
			return // what stops is not behind
		}
		s.rpo.take(groups, s.o.Now())
		s.meters.behind(groups)
		wait.Reset(max(rpoEvery, rpoShare*time.Since(began)))
	}
}

// rpoNotices say what a group's RPO is against its objectives: beyond warn a warning,
// beyond the objective an alarm, and unknown is never taken for good. It is pure.
func rpoNotices(c config.Group, line control.Group) []control.Notice {
	if c.RPO == 0 || len(line.Lags) == 0 {
		return nil
	}
	var warn time.Duration
	if c.Objectives != nil {
		warn = time.Duration(c.Objectives.RPOWarn)
	}
	const hint = "group show tells which peer lags, and since when no more arrives there"
	switch r := line.RPOSeconds; {
	case r == nil:
		return []control.Notice{{Level: control.Warning, Text: fmt.Sprintf("the RPO is unknown, the objective is %v", c.RPO), Hint: hint}}
	case *r > time.Duration(c.RPO).Seconds():
		return []control.Notice{{Level: control.Alarm, Text: fmt.Sprintf("the RPO is %.1f s, the objective is %v", *r, c.RPO), Hint: hint}}
	case warn > 0 && *r > warn.Seconds():
		return []control.Notice{{Level: control.Warning, Text: fmt.Sprintf("the RPO is %.1f s, near the objective of %v", *r, c.RPO), Hint: hint}}
	}
	return nil
}
