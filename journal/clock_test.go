package journal

import (
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// machine is an uptime that a test sets.
type machine struct {
	up   time.Duration
	boot string
}

func (m *machine) uptime() (time.Duration, string, error) { return m.up, m.boot, nil }

func TestLeapOfClock(t *testing.T) {
	at := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	w := witness{Wall: at, Up: time.Hour, Boot: "a", High: at.Add(10 * time.Hour)}
	for _, c := range []struct {
		name string
		wall time.Duration // after w.Wall
		up   time.Duration
		boot string
		leap time.Duration
	}{
		{"nothing passed", 0, time.Hour, "a", 0},
		{"as much as uptime says", 20 * time.Hour, 21 * time.Hour, "a", 0},
		{"set right", 4 * time.Minute, time.Hour, "a", 0},
		{"slewed", 101*time.Hour + 5*time.Minute, 101 * time.Hour, "a", 0},
		{"back", -1000 * time.Hour, 2 * time.Hour, "a", 0},
		{"leapt", time.Hour + 10*time.Minute, 2 * time.Hour, "a", 4*time.Minute + 24*time.Second},
		{"leapt a year", 8760 * time.Hour, time.Hour, "a", 8760*time.Hour - 5*time.Minute},
		{"uptime went back", time.Hour, 0, "a", 55 * time.Minute},
		{"off for a night", 22 * time.Hour, time.Minute, "b", 0},
		{"off for a day, after what was seen last", 33 * time.Hour, time.Minute, "b", 0},
		{"off for a month", 10*time.Hour + 720*time.Hour, 0, "b", 696*time.Hour - 14*time.Minute - 24*time.Second - 5*time.Minute},
	} {
		if got := w.leap(at.Add(c.wall), c.up, c.boot); got != c.leap {
			t.Errorf("%s: a leap of %v, want %v", c.name, got, c.leap)
		}
	}
}

// A wall clock that leaps ahead thins nothing, not across a restart either, until it is
// back or somebody confirms it; and what passes in small steps is as believed as it is
// once.
func TestLeapThinsNothing(t *testing.T) {
	m := &machine{up: time.Hour, boot: "a"}
	r := Retention{Ladder: []Rung{{0, time.Minute}, {time.Hour, 24 * time.Hour}}, Lock: time.Minute, QuotaBytes: 1}
	f := newFoldingOf(t, vfs.NewMem(), r, faults{}, 768<<10, 256<<10+512)
	f.o.Uptime = m.uptime
	f.reopen(false)
	pass := func(d time.Duration) {
		f.clock.step(d)
		m.up += d
	}
	still := func(when string) {
		t.Helper()
		before := f.j.history().state
		f.r.QuotaBytes = 1 // however pressing it is
		got := f.maintain()
		after := f.j.history().state
		if got.ClockLeap == 0 || !strings.Contains(got.Warning, "--trust-clock") || got.Folded+got.Merged+got.Freed > 0 ||
			string(encodeBody(before)) != string(encodeBody(after)) {
			t.Fatalf("%s: %+v", when, got)
		}
		f.r.QuotaBytes = 0
	}
	f.r.QuotaBytes = 0
	if got := f.maintain(); got.ClockLeap != 0 || got.Warning != "" {
		t.Fatalf("at first: %+v", got)
	}
	f.write(60, 0)
	f.clock.step(365 * 24 * time.Hour)
	still("a leap")
	f.j.close() // without an epoch, whose record would be of that time
	f.j = start(t, "j", f.o)
	still("after a restart")
	f.clock.step(-365 * 24 * time.Hour)
	f.reopen(false)
	pass(2 * time.Minute)
	f.write(60, 0)
	pass(2 * time.Minute)
	got := f.maintain()
	if got.ClockLeap != 0 || got.Folded == 0 {
		t.Fatalf("back: %+v", got)
	}
	must(t, f.checkKept())
	for n := 0; ; n++ { // steps that each would pass
		f.clock.step(clockSlack / 2)
		if f.maintain().ClockLeap > 0 {
			break
		}
		if n > 4 {
			t.Fatal("small steps add up unseen")
		}
	}
	f.write(60, 0)
	m.up, m.boot = time.Minute, "b" // a boot explains that, and no more than a day
	if got := f.maintain(); got.ClockLeap != 0 {
		t.Fatalf("after a boot: %+v", got)
	}
	f.clock.step(3 * 24 * time.Hour)
	still("another leap")
	confirmed, err := f.j.Maintain(soon(t), Maintenance{Retention: f.r, FoldBytes: 1, TrustClock: true})
	if err != nil || confirmed.ClockLeap != 0 || confirmed.Warning != "" || confirmed.Folded == 0 {
		t.Fatalf("confirmed: %+v, %v", confirmed, err)
	}
	must(t, f.checkKept())
	if got := f.maintain(); got.ClockLeap != 0 {
		t.Fatalf("afterwards: %+v", got)
	}
	f.j.close()
}

// Records that are of a time to come, for the clock went back behind them, are young.
func TestClockGoesBack(t *testing.T) {
	r := Retention{Ladder: []Rung{{0, time.Minute}, {time.Hour, 24 * time.Hour}}}
	f := newFoldingOf(t, vfs.NewMem(), r, faults{}, 768<<10, 256<<10+512)
	f.write(60, 0)
	f.clock.step(24 * time.Hour)
	f.write(1, 0)
	f.clock.step(-23 * time.Hour)
	f.write(60, 0)
	f.clock.step(time.Hour)
	if got := f.maintain(); got.Folded == 0 {
		t.Fatalf("%+v", got)
	}
	must(t, f.checkKept())
	f.j.close()
}
