package site

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/replicator"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

func TestRetentionIsWhatTheConfigurationSays(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	w := newWorld(t)
	c := w.configure("a", `groups:
- name: plain
- {name: full, history: [{every: write, for: 2h}, {every: 1d, for: ever}], lock: 1h, quota: 1GiB, warn: [50]}
`)
	for i, want := range []struct {
		r     journal.Retention
		dense time.Duration
	}{
		{journal.Retention{Ladder: []journal.Rung{{For: day}, {Every: time.Minute, For: 7 * day}, {Every: time.Hour, For: 30 * day}}}, day},
		{journal.Retention{Ladder: []journal.Rung{{For: 2 * time.Hour}, {Every: day}}, Lock: time.Hour, QuotaBytes: 1 << 30, WarnAt: []int{50}}, 2 * time.Hour},
	} {
		got := retentionOf(c.Groups[i])
		if d := cmp.Diff(want.r, got); d != "" {
			t.Error(d)
		}
		if err := got.Validate(); err != nil {
			t.Error(err)
		}
		if d := denseReach(got); d != want.dense {
			t.Errorf("every write for %s, want %s", d, want.dense)
		}
	}
}

// What the configuration takes the journal takes too.
func TestDefaultLadderIsValid(t *testing.T) {
	if err := retentionOf(config.Group{History: config.DefaultHistory()}).Validate(); err != nil {
		t.Error(err)
	}
}

func at(seq journal.Seq) journal.Position {
	return journal.Position{Epoch: journal.EpochID{1}, Seq: seq}
}

func TestReachOfAPeer(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	head := journal.Head{Position: at(100), Bytes: 1000}
	past := reach{At: at(40), Level: now.Add(-time.Hour), Total: 400}
	for _, c := range []struct {
		name  string
		was   reach
		known bool
		lag   *replicator.Lag
		want  reach
	}{
		{name: "never came", want: reach{Level: now}},
		{name: "never came, remembered", was: reach{Level: now.Add(-time.Hour)}, known: true, want: reach{Level: now.Add(-time.Hour)}},
		{name: "away", was: past, known: true, want: past},
		{name: "connected, nothing proven yet", was: past, known: true, lag: &replicator.Lag{}, want: past},
		{name: "behind", was: past, known: true, lag: &replicator.Lag{Durable: journal.Cursor{Position: at(90)}, Bytes: 50, Known: true, RPO: time.Minute}, want: reach{At: at(90), Level: now.Add(-time.Minute), Total: 950}},
		{name: "level", was: past, known: true, lag: &replicator.Lag{Durable: journal.Cursor{Position: at(100)}, Known: true, RPO: time.Second}, want: reach{At: at(100), Level: now, Total: 1000}},
		{name: "away, and nothing was written since", was: reach{At: at(100), Level: now.Add(-96 * time.Hour), Total: 10}, known: true, want: reach{At: at(100), Level: now, Total: 1000}},
	} {
		if got := reachFrom(c.was, c.known, c.lag, head, now); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

func TestHoldEndsByTimeAndBytes(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	head := journal.Head{Position: at(100), Bytes: 1000}
	limit := config.Hold{For: config.Duration(time.Hour), Bytes: 500}
	for _, c := range []struct {
		name   string
		hold   config.Hold
		r      reach
		frames journal.Seq
		asked  bool // for what is gone
		state  string
		held   bool
	}{
		{name: "a little behind", hold: limit, r: reach{at(90), now.Add(-time.Minute), 900}, state: control.HoldKept, held: true},
		{name: "level", hold: limit, r: reach{at(100), now, 1000}, state: control.HoldLevel, held: true},
		{name: "on the edge of the time", hold: limit, r: reach{at(90), now.Add(-time.Hour), 900}, state: control.HoldKept, held: true},
		{name: "too long", hold: limit, r: reach{at(90), now.Add(-time.Hour - 1), 900}, state: control.HoldBeyond},
		{name: "on the edge of the bytes", hold: limit, r: reach{at(50), now, 500}, state: control.HoldKept, held: true},
		{name: "too much", hold: limit, r: reach{at(50), now, 499}, state: control.HoldBeyond},
		{name: "much without a bound", hold: config.Hold{For: limit.For}, r: reach{at(1), now, 0}, state: control.HoldKept, held: true},
		{name: "the next record is there", hold: limit, r: reach{at(90), now, 900}, frames: 91, state: control.HoldKept, held: true},
		{name: "the next record is gone", hold: limit, r: reach{at(90), now, 900}, frames: 92, state: control.HoldLost},
		{name: "not heard of since a promotion", hold: limit, r: reach{Level: now, Total: 900}, frames: 50, state: control.HoldKept, held: true},
		{name: "never came within its hold", hold: limit, r: reach{Level: now.Add(-2 * time.Hour), Total: 900}, frames: 50, state: control.HoldBeyond},
		{name: "came for what is gone", hold: limit, r: reach{Level: now, Total: 900}, frames: 50, asked: true, state: control.HoldLost},
	} {
		h, ref := holdOf(c.hold, c.r, head, at(c.frames), c.asked, now)
		if h.State != c.state || (ref != nil) != c.held || (h.Why != "") == c.held {
			t.Errorf("%s: %+v, reference %v", c.name, h, ref)
		}
		if ref != nil && (ref.At != c.r.At || ref.Kind != journal.ReferenceCursor || !ref.Until.Equal(c.r.Level.Add(time.Hour))) {
			t.Errorf("%s: reference %+v", c.name, ref)
		}
	}
}

func TestNoticesComeWhenSomethingIsToBeSaid(t *testing.T) {
	warn := []config.Percent{80, 90}
	for _, c := range []struct {
		name    string
		used    int64
		quota   int64
		holds   []control.Hold
		damages int
		failure error
		want    []string // level: text that it holds
	}{
		{name: "all is well", used: 799, quota: 1000, holds: []control.Hold{{State: control.HoldKept}, {State: control.HoldLevel}}},
		{name: "no quota", used: 1 << 40},
		{name: "threshold", used: 800, quota: 1000, want: []string{"warning: 80% of the quota"}},
		{name: "one line for both thresholds", used: 950, quota: 1000, want: []string{"warning: 95% of the quota"}},
		{name: "full", used: 1000, quota: 1000, want: []string{"alarm: used up"}},
		{name: "beyond", holds: []control.Hold{{Peer: "b", State: control.HoldBeyond, Why: "too long"}}, want: []string{"warning: peer b is beyond its hold: too long"}},
		{name: "cut off", holds: []control.Hold{{Peer: "b", State: control.HoldLost, Why: "gone"}}, want: []string{"alarm: peer b is cut off: gone"}},
		{name: "damage", damages: 2, want: []string{"alarm: damaged in 2 places"}},
		{name: "failure", failure: errors.New("boom"), want: []string{"alarm: maintenance fails: boom"}},
	} {
		got := notices(c.used, c.quota, warn, c.holds, c.damages, 0, fault.Of(c.failure))
		if len(got) != len(c.want) {
			t.Errorf("%s: %+v", c.name, got)
			continue
		}
		for i, n := range got {
			level, text, _ := strings.Cut(c.want[i], ": ")
			if n.Level != level || !strings.Contains(n.Text, text) || n.Hint == "" {
				t.Errorf("%s: %+v, want %s", c.name, n, c.want[i])
			}
		}
	}
}

func TestStretchesPutRangesAndReasonsTogether(t *testing.T) {
	id := cbt.VolumeID{1}
	keep := func(seq journal.Seq, reasons ...string) journal.Keep {
		return journal.Keep{Point: journal.Point{Position: at(seq), Number: 1, Volumes: []cbt.VolumeID{id}}, Reasons: reasons}
	}
	o := pastOf{names: map[cbt.VolumeID]string{id: "root"}, keeps: []journal.Keep{
		keep(3, "every 1h"), keep(9, "every 1h", "pin audit"), keep(20, everyWrite), keep(30, everyWrite, "pin x"), keep(31, everyWrite, "every 1m"), keep(40, everyWrite, "newest")}}
	pt := func(seq uint64) control.Point { return control.Point{Epoch: 1, Seq: seq} }
	got := o.stretches([]control.Span{{First: pt(3), Last: pt(3)}, {First: pt(9), Last: pt(9)}, {First: pt(20), Last: pt(40), Open: true}})
	root := []string{"root"}
	want := []control.Stretch{
		{First: pt(3), Last: pt(3), Points: 1, Reasons: []string{"every 1h"}, Volumes: root},
		{First: pt(9), Last: pt(9), Points: 1, Reasons: []string{"every 1h", "pin audit"}, Volumes: root},
		{First: pt(20), Last: pt(40), Points: 21, Open: true, Reasons: []string{everyWrite}, Volumes: root},
		{First: pt(30), Last: pt(30), Points: 1, Reasons: []string{"pin x"}, Volumes: root},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}

	o.spoilt = []journal.InvalidRange{{First: at(5), Last: at(22)}, {First: at(35), Last: at(90)}}
	var spoilt []string
	for _, s := range o.stretches([]control.Span{{First: pt(3), Last: pt(3)}, {First: pt(9), Last: pt(9)}, {First: pt(20), Last: pt(40), Open: true}}) {
		if s.Invalid != "" {
			spoilt = append(spoilt, fmt.Sprintf("%d..%d: %d", s.First.Seq, s.Last.Seq, s.Points))
		}
	}
	if d := cmp.Diff([]string{"9..9: 1", "20..22: 3", "35..40: 6"}, spoilt); d != "" {
		t.Error(d)
	}
}

func TestSmallQuotasHaveSmallSegments(t *testing.T) {
	for quota, want := range map[int64]int64{0: 0, 1 << 20: 2 << 20, 64 << 20: 2 << 20, 1 << 30: 32 << 20, 100 << 20: 3 << 20, 2 << 30: 0, 1 << 40: 0} {
		if got := segmentBytes(quota); got != want {
			t.Errorf("a quota of %d has segments of %d, want %d", quota, got, want)
		}
	}
}
