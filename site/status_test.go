package site

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/site/control"
)

func TestStateOf(t *testing.T) {
	vol := func(s cbt.State, c cbt.Cause) cbt.VolumeStatus {
		return cbt.VolumeStatus{Volume: cbt.Volume{Name: "root"}, State: s, Cause: c}
	}
	for _, c := range []struct {
		name    string
		role    recovery.Role
		spans   []journal.Span
		lags    []control.Lag
		volumes []cbt.VolumeStatus
		state   string
		detail  string
	}{
		{name: "open interval", role: recovery.Primary, spans: []journal.Span{{}, {Open: true}}, state: control.StateSynced},
		{name: "closed interval, synced volumes", role: recovery.Primary, spans: []journal.Span{{}}, volumes: []cbt.VolumeStatus{vol(cbt.StateSynced, "")}, state: control.StateStarting},
		{name: "resync", role: recovery.Uncommitted, volumes: []cbt.VolumeStatus{vol(cbt.StateSynced, ""), vol(cbt.StateSyncing, "")}, state: control.StateSyncing},
		{name: "broken beats resync", role: recovery.Primary, volumes: []cbt.VolumeStatus{vol(cbt.StateBroken, cbt.CauseStall), vol(cbt.StateSyncing, "")}, state: control.StateGap, detail: "root: stall"},
		{name: "broken, and the interval looks open still", role: recovery.Primary, spans: []journal.Span{{Open: true}}, volumes: []cbt.VolumeStatus{vol(cbt.StateSynced, ""), vol(cbt.StateBroken, cbt.CauseStall)}, state: control.StateGap, detail: "root: stall"},
		{name: "resync, and the interval looks open still", role: recovery.Primary, spans: []journal.Span{{Open: true}}, volumes: []cbt.VolumeStatus{vol(cbt.StateSyncing, "")}, state: control.StateSyncing},
		{name: "cycles", role: recovery.Primary, spans: []journal.Span{{Ended: cbt.CauseCycle}}, volumes: []cbt.VolumeStatus{{State: cbt.StateSynced, Mode: cbt.ModeCycles, Cycles: cbt.Cycles{Points: 7, Refused: 1}}},
			state: control.StateCycles, detail: "each closed cycle is a point, nothing between two of them: 7 so far, 1 gave none"},
		{name: "cycles that broke", role: recovery.Primary, spans: []journal.Span{{Ended: cbt.CauseCycle}}, volumes: []cbt.VolumeStatus{vol(cbt.StateBroken, cbt.CauseBitmapUntrusted)}, state: control.StateGap, detail: "root: bitmap-untrusted"},
		{name: "a whole read", role: recovery.Primary, volumes: []cbt.VolumeStatus{{Volume: cbt.Volume{Name: "root"}, State: cbt.StateSyncing, Mode: cbt.ModeFull}}, state: control.StateSyncing, detail: "root: no points until the whole disk has been read and compared"},
		{name: "nothing yet", role: recovery.Primary, state: control.StateStarting},
		{name: "replica never claims synced", role: recovery.Replica, spans: []journal.Span{{Open: true}}, state: control.StateWaiting},
		{name: "streaming in a gap", role: recovery.Replica, spans: []journal.Span{{Ended: cbt.CauseStall}}, lags: []control.Lag{{State: "streaming"}}, state: control.StateReceiving, detail: "no new points arrive: stall"},
		{name: "streaming before the first point", role: recovery.Replica, lags: []control.Lag{{State: "streaming"}}, state: control.StateReceiving, detail: "no point has arrived yet"},
		{name: "streaming", role: recovery.Replica, spans: []journal.Span{{Open: true}}, lags: []control.Lag{{State: "refused", Error: "x"}, {State: "streaming"}}, state: control.StateReceiving},
		{name: "refused", role: recovery.Replica, lags: []control.Lag{{State: "refused", Error: "pin"}}, state: control.StateWaiting, detail: "pin"},
	} {
		if s, d := stateOf(c.role, c.spans, c.lags, c.volumes); s != c.state || d != c.detail {
			t.Errorf("%s: %q, %q; want %q, %q", c.name, s, d, c.state, c.detail)
		}
	}
}

func TestWorstRPOIsNeverBetterThanKnown(t *testing.T) {
	one, two := 1.0, 2.0
	if w := worstRPO([]control.Lag{{RPOSeconds: &one}, {RPOSeconds: &two}}); w == nil || *w != 2 {
		t.Errorf("worst of 1 and 2: %v", w)
	}
	if w := worstRPO([]control.Lag{{RPOSeconds: &one}, {}}); w != nil {
		t.Errorf("an unknown RPO was hidden by a known one: %v", *w)
	}
	if worstRPO(nil) != nil {
		t.Error("an RPO without peers")
	}
}

// A peer that holds all of a history which has stopped to grow protects nothing.
func TestRPOOutsideAnIntervalReachesBackToTheLastPoint(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	small := 0.02
	for _, c := range []struct {
		name    string
		rpo     *float64
		growing bool
		last    time.Time
		want    float64 // below 0: unknown
	}{
		{name: "points are made", rpo: &small, growing: true, last: now.Add(-time.Hour), want: small},
		{name: "gap", rpo: &small, last: now.Add(-time.Minute), want: 60},
		{name: "gap, clocks differ", rpo: &small, last: now.Add(time.Minute), want: small},
		{name: "first resync", rpo: &small, want: -1},
		{name: "unknown stays unknown", last: now, want: -1},
	} {
		got := sinceLastPoint(c.rpo, c.growing, c.last, now)
		if (got == nil) != (c.want < 0) || got != nil && *got != c.want {
			t.Errorf("%s: %v, want %g", c.name, got, c.want)
		}
	}
}

// The replica of a source that went silent shows an RPO that grows, and after a
// restart none, until the source is heard again.
func TestReplicaOfASilentSourceNeverShowsASmallRPO(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ca, cb := w.pair("", "")
	a, b := w.runPair(ca, cb)
	a.awaitState("web", control.StateSynced)
	a.write("web/root", 1, 0, 4096)
	awaitLevel(a, b, "web")
	await(t, "the RPO is known", func() bool { return b.groupLine("web").RPOSeconds != nil })
	a.stop()
	stopped := time.Now()
	b.awaitState("web", control.StateWaiting)
	looks := 0
	await(t, "the RPO grew past 1 s", func() bool {
		silence := time.Since(stopped).Seconds()
		r := b.groupLine("web").RPOSeconds
		if r == nil || *r < silence {
			t.Errorf("silent for %.3f s, RPO %v", silence, r)
			return true
		}
		looks++
		return *r > 1
	})
	t.Logf("%d looks", looks)
	b.stop()
	b = w.run(cb)
	b.awaitState("web", control.StateWaiting)
	if g := b.groupLine("web"); g.RPOSeconds != nil {
		t.Errorf("an RPO of %g s though the source was not heard since the start", *g.RPOSeconds)
	}
}

func TestMetricsExistFromTheStartAndPassTheLint(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.configure("a", "metrics: 127.0.0.1:0\n"+twoGroups)
	s := w.run(c)
	s.awaitState("web", control.StateSynced)
	families, err := s.meters.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	have := map[string]bool{}
	for _, f := range families {
		have[f.GetName()] = true
	}
	for _, name := range strings.Fields(`build_info rpo_target_seconds last_point_timestamp_seconds journal_window_seconds journal_bytes journal_limit_bytes
		split_brain errors_total group_up synced primary resync_read_bytes_total unpinned_callers_total
		journal_oldest_point_timestamp_seconds journal_segments journal_runs journal_run_bytes maintenance_runs_total maintenance_failures_total maintenance_bytes_total notices history_lost`) {
		if !have["afterimage_"+name] {
			t.Errorf("afterimage_%s is not there", name)
		}
	}
}

func TestMetricsOfAPairOverHTTP(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ca, cb := w.pair("", "")
	a, b := w.runPair(ca, cb)
	a.awaitState("web", control.StateSynced)
	a.write("web/root", 1, 0, 4096)
	awaitLevel(a, b, "web")
	await(t, "the RPO is known", func() bool { return a.groupLine("web").RPOSeconds != nil })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.serveMetrics(ctx, l) }()
	resp, err := http.Get("http://" + l.Addr().String() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	if err != nil {
		t.Fatal(err)
	}
	rpo := regexp.MustCompile(`(?m)^afterimage_rpo_seconds\{direction="out",group="web",peer="b",tenant="default"\} (\S+)$`).FindSubmatch(body)
	if rpo == nil {
		t.Error("no RPO")
	} else if v, err := strconv.ParseFloat(string(rpo[1]), 64); err != nil || v <= 0 || v > 60 {
		t.Errorf("an RPO of %s s", rpo[1])
	}
	for _, want := range []string{`afterimage_connected{peer="b"} 1`, `afterimage_synced{group="web",tenant="default"} 1`,
		`afterimage_replicated_bytes_total{direction="out",group="web",kind="wire",peer="b",tenant="default"}`,
		`afterimage_replicated_bytes_total{direction="out",group="web",kind="raw",peer="b",tenant="default"}`} {
		if !strings.Contains(string(body), want) {
			t.Errorf("no line %s", want)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A journal without room opens a gap, says so, and does not stall the writer; when
// there is room again the interval opens anew.
func TestFullJournalOpensAGapAndTheDiskGoesOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.configure("a", "groups:\n- {name: web, role: primary, quota: 64MiB, volumes: [{name: root, size: 64MiB, embedded: {image: r.img}}]}\n")
	s := w.run(c)
	s.awaitState("web", control.StateSynced)
	for i := range 24 { // 96 MiB in all
		s.write("web/root", byte(i+1), int64(i%4)*(4<<20), 4<<20)
	}
	s.awaitState("web", control.StateGap)
	s.reads("web/root", 24, 12<<20, 4<<20) // 24 writes round over 4 places
	if g := s.groupLine("web"); !strings.Contains(g.Detail, string(cbt.CauseDiskFull)) {
		t.Errorf("the gap is told as %q", g.Detail)
	}
	s.stop()
	if st, err := os.Stat(filepath.Join(w.dir, "r.img")); err != nil || st.Size() != 64<<20 {
		t.Errorf("image: %v", err)
	}
}
