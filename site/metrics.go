package site

import (
	"context"
	"math"
	"net"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// meters are the site's metrics. What is a state is read from Status at each
// scrape (states.Collect); what is counted is counted here.
type meters struct {
	registry *prometheus.Registry
	errors   *prometheus.CounterVec   // by code
	acks     *prometheus.HistogramVec // of disks that this site serves
	rpo      *prometheus.HistogramVec // measured every rpoEvery
	unknown  *prometheus.CounterVec
	resync   *prometheus.CounterVec
	unpinned prometheus.Counter
}

func newMeters(s *Site) *meters {
	m := &meters{
		registry: prometheus.NewRegistry(),
		errors:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "afterimage_errors_total", Help: "Errors by code, see afterimage explain."}, []string{"code"}),
		acks: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "afterimage_write_ack_duration_seconds", Help: "From a write's arrival to its answer, of disks that this site serves.",
			Buckets: prometheus.ExponentialBuckets(16e-6, 2, 18)}, []string{"group", "disk"}),
		rpo: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "afterimage_rpo_measured_seconds", Help: "The RPO as measured every second, while it was known.",
			Buckets: prometheus.ExponentialBuckets(1e-3, 2, 28)}, []string{"tenant", "group", "peer", "direction"}),
		unknown:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "afterimage_rpo_unknown_total", Help: "Measurements in which the RPO was not known."}, []string{"tenant", "group", "peer", "direction"}),
		resync:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "afterimage_resync_read_bytes_total", Help: "Bytes read again from live disks to close gaps."}, []string{"tenant", "group"}),
		unpinned: prometheus.NewCounter(prometheus.CounterOpts{Name: "afterimage_unpinned_callers_total", Help: "Callers refused because their key is no peer's."}),
	}
	for _, e := range fault.Table() { // so that "never" can be told from "gone"
		m.errors.WithLabelValues(string(e.Code))
	}
	for _, g := range s.cfg.Groups {
		m.resync.WithLabelValues(groupLabels(g)...)
	}
	info := prometheus.NewGauge(prometheus.GaugeOpts{Name: "afterimage_build_info", Help: "Always 1; the labels say what runs.",
		ConstLabels: prometheus.Labels{"version": Version(), "site": s.cfg.Site}})
	info.Set(1)
	m.registry.MustRegister(m.errors, m.acks, m.rpo, m.unknown, m.resync, m.unpinned, info, &states{s}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Version is that of the program as it was built; unknown where nothing was noted.
func Version() string {
	if b, ok := debug.ReadBuildInfo(); ok && b.Main.Version != "" {
		return b.Main.Version
	}
	return "unknown"
}

func (m *meters) failed(c fault.Code) { m.errors.WithLabelValues(string(c)).Inc() }

func (m *meters) resynced(g config.Group, n int64) {
	m.resync.WithLabelValues(groupLabels(g)...).Add(float64(n))
}

// behind counts one measurement of each lag.
func (m *meters) behind(groups []control.Group) {
	for _, g := range groups {
		for _, l := range g.Lags {
			if l.RPOSeconds == nil {
				m.unknown.WithLabelValues(g.Tenant, g.Name, l.Peer, l.Direction).Inc()
			} else {
				m.rpo.WithLabelValues(g.Tenant, g.Name, l.Peer, l.Direction).Observe(*l.RPOSeconds)
			}
		}
	}
}

// answered counts one answered write of an export.
func (m *meters) answered(export string, d time.Duration) {
	i := strings.LastIndexByte(export, '/')
	m.acks.WithLabelValues(export[:i], export[i+1:]).Observe(d.Seconds())
}

// states tells what Status tells.
type states struct{ site *Site }

func gauge(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("afterimage_"+name, help, labels, nil)
}

var (
	descRPO       = gauge("rpo_seconds", "Age of the newest moment until which everything is durable at the peer; NaN while unknown.", "tenant", "group", "peer", "direction")
	descTarget    = gauge("rpo_target_seconds", "The group's objective; 0 without one.", "tenant", "group")
	descBytes     = gauge("behind_bytes", "Bytes not durable at the peer, an upper bound.", "tenant", "group", "peer", "direction")
	descWrites    = gauge("behind_writes", "Records not durable at the peer, an upper bound.", "tenant", "group", "peer", "direction")
	descMoved     = prometheus.NewDesc("afterimage_replicated_bytes_total", "Bytes of frames moved since the daemon started: on the wire, and raw, as they lie in the journals.", []string{"tenant", "group", "peer", "direction", "kind"}, nil)
	descPoint     = gauge("last_point_timestamp_seconds", "Time of the newest point; 0 while there is none.", "tenant", "group")
	descWindow    = gauge("journal_window_seconds", "From the first point to the last.", "tenant", "group")
	descJournal   = gauge("journal_bytes", "Bytes that the journal takes on disk.", "tenant", "group")
	descLimit     = gauge("journal_limit_bytes", "The journal's quota; 0 without one.", "tenant", "group")
	descSynced    = gauge("synced", "1 while every write is a point.", "tenant", "group")
	descPrimary   = gauge("primary", "1 where the group is captured.", "tenant", "group")
	descSplit     = gauge("split_brain", "1 while both sides hold what the other does not and a person must decide.", "tenant", "group")
	descLost      = gauge("history_lost", "1 while one side lacks what was durable there and a person must decide.", "tenant", "group")
	descGroupUp   = gauge("group_up", "0 while the group failed and is tried again.", "tenant", "group")
	descConnected = gauge("connected", "1 while a connection to the peer exists.", "peer")
	descRate      = gauge("bandwidth_limit_bytes_per_second", "Limit of what is sent to the peer; 0 without one.", "peer")
)

// Describe implements prometheus.Collector.
func (c *states) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descRPO, descTarget, descBytes, descWrites, descMoved, descPoint, descWindow, descJournal, descLimit, descSynced, descPrimary, descSplit, descLost, descGroupUp, descConnected, descRate} {
		ch <- d
	}
	for _, d := range historyDescs {
		ch <- d
	}
	ch <- descAdded
}

// Collect implements prometheus.Collector.
func (c *states) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	st, err := c.site.Status(ctx)
	if err != nil {
		ch <- prometheus.NewInvalidMetric(descGroupUp, err)
		return
	}
	set := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for i, g := range st.Groups {
		c.group(set, g)
		c.history(ch, c.site.groups[i], g)
		c.added(ch, c.site.groups[i])
		for _, l := range g.Lags {
			ch <- prometheus.MustNewConstMetric(descMoved, prometheus.CounterValue, float64(l.Moved), g.Tenant, g.Name, l.Peer, l.Direction, "wire")
			ch <- prometheus.MustNewConstMetric(descMoved, prometheus.CounterValue, float64(l.MovedFor), g.Tenant, g.Name, l.Peer, l.Direction, "raw")
		}
	}
	for _, p := range st.Peers {
		set(descConnected, one(p.State == "connected"), p.Name)
		set(descRate, float64(p.Limit), p.Name)
	}
}

func (c *states) group(set func(*prometheus.Desc, float64, ...string), g control.Group) {
	set(descTarget, g.RPOTarget, g.Tenant, g.Name)
	set(descWindow, g.WindowSeconds, g.Tenant, g.Name)
	set(descJournal, float64(g.JournalBytes), g.Tenant, g.Name)
	set(descLimit, float64(g.Quota), g.Tenant, g.Name)
	set(descSynced, one(g.State == control.StateSynced), g.Tenant, g.Name)
	set(descPrimary, one(recovery.Role(g.Role).Captures()), g.Tenant, g.Name)
	set(descSplit, one(g.Halt == control.HaltSplitBrain), g.Tenant, g.Name)
	set(descLost, one(g.Halt == control.HaltHistoryLost), g.Tenant, g.Name)
	set(descGroupUp, one(g.State != control.StateFailed), g.Tenant, g.Name)
	last := 0.0
	if !g.LastPoint.IsZero() {
		last = float64(g.LastPoint.UnixNano()) / 1e9
	}
	set(descPoint, last, g.Tenant, g.Name)
	for _, l := range g.Lags {
		rpo := math.NaN()
		if l.RPOSeconds != nil {
			rpo = *l.RPOSeconds
		}
		set(descRPO, rpo, g.Tenant, g.Name, l.Peer, l.Direction)
		set(descBytes, float64(l.BehindBytes), g.Tenant, g.Name, l.Peer, l.Direction)
		set(descWrites, float64(l.BehindWrites), g.Tenant, g.Name, l.Peer, l.Direction)
	}
}

func one(v bool) float64 {
	if v {
		return 1
	}
	return 0
}

// serveMetrics answers /metrics and /livez at l until ctx ends.
func (s *Site) serveMetrics(ctx context.Context, l net.Listener) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.meters.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second}
	defer context.AfterFunc(ctx, func() { _ = srv.Close() })() // Serve tells
	err := srv.Serve(l)
	if ctx.Err() != nil {
		return nil
	}
	return err
}
