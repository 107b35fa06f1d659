package replicator

import (
	"errors"
	"testing"
	"time"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/replicator/replicatortest"
)

func TestTimetableFollowsTheWeek(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	const weekly = "Mon-00:00,512 Fri-23:59,10M Sat-10:00,1M Sun-20:00,off"
	for _, c := range []struct {
		table, at string // the latter on the wall in Berlin
		rate      int64
		until     string
	}{
		{"08:00,10M 19:00,off", "2026-11-23T07:59:59", 0, "2026-11-23T08:00:00"},
		{"08:00,10M 19:00,off", "2026-11-23T08:00:00", 10 << 20, "2026-11-23T19:00:00"},
		{"08:00,10M 19:00,off", "2026-11-23T19:00:00", 0, "2026-11-24T08:00:00"},
		{"19:00,off;08:00,1.5M", "2026-11-28T12:00:00", 3 << 19, "2026-11-28T19:00:00"},
		{weekly, "2026-11-23T00:00:00", 512 << 10, "2026-11-27T23:59:00"}, // a Monday
		{weekly, "2026-11-28T09:59:00", 10 << 20, "2026-11-28T10:00:00"},
		{weekly, "2026-11-29T21:00:00", 0, "2026-11-30T00:00:00"},
		{"Wednesday-12:00,8:1M", "2026-11-23T00:00:00", 8 << 10, ""},
		{"10M", "2026-11-23T00:00:00", 10 << 20, ""},
		{"100B", "2026-11-23T00:00:00", 100, ""},
		{"off", "2026-11-23T00:00:00", 0, ""},
		{"", "2026-11-23T00:00:00", 0, ""},
		// The clock goes from 2 to 3, and from 3 back to 2.
		{"02:30,1M 12:00,off", "2026-03-29T03:00:00", 1 << 20, "2026-03-29T12:00:00"},
		{"01:00,1M 04:00,off", "2026-10-25T01:30:00", 1 << 20, "2026-10-25T04:00:00"},
	} {
		table, err := ParseTimetable(c.table, berlin)
		if err != nil {
			t.Errorf("%q: %v", c.table, err)
			continue
		}
		at, err := time.ParseInLocation("2006-01-02T15:04:05", c.at, berlin)
		if err != nil {
			t.Fatal(err)
		}
		rate, until := table.At(at.UTC())
		got := ""
		if !until.IsZero() {
			got = until.In(berlin).Format("2006-01-02T15:04:05")
		}
		if rate != c.rate || got != c.until {
			t.Errorf("%q at %s: %d until %q, want %d until %q", c.table, c.at, rate, got, c.rate, c.until)
		}
	}
}

func TestTimetableRefusesNonsense(t *testing.T) {
	for _, text := range []string{"x", "-1", "10X", "8:xx", "1M:", "24:00,1M", "08:60,1M", "08:0,1M", "Mon,1M", "Xyz-08:00,1M", "08:00,1M 08:00,2M", "Mo-08:00,1M",
		"08:00,1M 10M", "NaN", "9e99P", "0.0001B", ","} {
		if table, err := ParseTimetable(text, time.UTC); !errors.Is(err, ErrTimetable) {
			t.Errorf("%q: %+v, %v", text, table, err)
		}
	}
}

// A timetable's moments are moments whatever the zone does: At never ends before it
// begins, and what it says until then is what it says just before.
func TestTimetableHoldsUntilItSays(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	table, err := ParseTimetable("01:45,1M 02:15,2M 02:45,3M 12:00,off Sun-03:10,4M", berlin)
	if err != nil {
		t.Fatal(err)
	}
	for _, day := range []time.Time{time.Date(2026, 3, 29, 0, 0, 0, 0, berlin), time.Date(2026, 10, 25, 0, 0, 0, 0, berlin), time.Date(2026, 11, 25, 0, 0, 0, 0, berlin)} {
		for m := range 30 * 60 {
			at := day.Add(time.Duration(m) * time.Minute)
			if _, until := table.At(at); !until.After(at) {
				t.Fatalf("at %v it rules until %v", at, until)
			}
		}
	}
}

// What a person sets rules until its time is over, then the timetable again; a group's
// limit and its peer's both hold.
func TestLimitsAreChangedForAWhile(t *testing.T) {
	now := time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)
	table, err := ParseTimetable("08:00,10M 19:00,off", time.UTC)
	if err != nil {
		t.Fatal(err)
	}
	id := replicatortest.NewIdentity()
	o := Options{Identity: mustIdentity(t), Now: func() time.Time { return now },
		Peers: []Peer{{Name: "b", Pin: mustIdentity(t).Pin(), Limits: table}, {Name: "c", Pin: mustIdentity(t).Pin(), LimitBytesPerSecond: 77}},
		Groups: func() []Group {
			return []Group{{Tenant: tenant, Name: group, Source: JournalSource(replicatortest.New(id, "a")), Peers: []string{"b"}, Limits: table}}
		}}
	r, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	r.Refresh()
	want := func(what, peer string, of journal.Identity, rate int64, set bool, until time.Time) {
		t.Helper()
		a, err := r.Allowed(peer, of)
		if err != nil || a.BytesPerSecond != rate || a.Set != set || !a.Until.Equal(until) {
			t.Errorf("%s: %+v, %v", what, a, err)
		}
	}
	evening := time.Date(2026, 11, 23, 19, 0, 0, 0, time.UTC)
	want("by the timetable", "b", journal.Identity{}, 10<<20, false, evening)
	want("by the timetable", "", id, 10<<20, false, evening)
	want("always", "c", journal.Identity{}, 77, false, time.Time{})
	for _, l := range []Limit{{Peer: "b", BytesPerSecond: 5 << 20, For: 2 * time.Hour}, {Group: id, BytesPerSecond: 1 << 20}, {Peer: "c"}} {
		if _, err := r.Limit(l); err != nil {
			t.Fatal(err)
		}
	}
	want("for two hours", "b", journal.Identity{}, 5<<20, true, now.Add(2*time.Hour))
	want("until changed", "", id, 1<<20, true, time.Time{})
	want("lifted", "c", journal.Identity{}, 0, true, time.Time{})
	r.Refresh()
	want("for two hours, refreshed", "", id, 1<<20, true, time.Time{})
	now = now.Add(2 * time.Hour)
	want("when they are over", "b", journal.Identity{}, 10<<20, false, evening)
	if _, err := r.Limit(Limit{Group: id, Schedule: true}); err != nil {
		t.Fatal(err)
	}
	want("given back", "", id, 10<<20, false, evening)
	now = evening
	want("in the evening", "", id, 0, false, evening.Add(13*time.Hour))
	if _, err := r.Limit(Limit{Peer: "x"}); !errors.Is(err, ErrUnknownPeer) {
		t.Errorf("an unknown peer: %v", err)
	}
	if _, err := r.Limit(Limit{Group: replicatortest.NewIdentity()}); !errors.Is(err, ErrUnknownGroup) {
		t.Errorf("an unknown group: %v", err)
	}
}

// A stream keeps to the limits of its group and of its peer: the lower one rules.
func TestGroupLimitHolds(t *testing.T) {
	p := newPair(t)
	limits, err := ParseTimetable("64K", time.UTC)
	if err != nil {
		t.Fatal(err)
	}
	p.source.o.Groups = func() []Group {
		return []Group{{Tenant: tenant, Name: group, Source: JournalSource(p.from), Peers: []string{"b"}, Limits: limits}}
	}
	for range 32 {
		p.from.Append(make([]byte, 4<<10), 1, time.Now())
	}
	began := time.Now()
	p.up()
	p.caughtUp()
	if took := time.Since(began); took < 1500*time.Millisecond { // 1.9 s and more, at this limit
		t.Errorf("128 KiB at 64 KiB a second took %v", took)
	}
	if _, err := p.source.rep.Limit(Limit{Group: p.from.Identity()}); err != nil {
		t.Fatal(err)
	}
}
