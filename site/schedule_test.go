package site

import (
	"strings"
	"testing"
	"time"

	"github.com/novacron/afterimage/recovery/evidence"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/testbed/scale"
)

func clock(t *testing.T, text string) (c config.Clock) {
	t.Helper()
	if text != "" {
		if err := c.UnmarshalText([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func TestTheNextDrillIsAtAQuietTimeBeforeItIsOverdue(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	const day = 24 * time.Hour
	noon := time.Date(2026, 10, 20, 12, 0, 0, 0, berlin)
	ago := func(d time.Duration) time.Time { return noon.Add(-d) }
	for _, x := range []struct {
		name  string
		every time.Duration
		at    string
		r     rehearsal
		since time.Time
		want  time.Time
	}{
		{"never one, no quiet time", 10 * day, "", rehearsal{}, noon, noon.Add(9 * day)},
		{"never one", 3 * day, "03:00", rehearsal{}, noon, time.Date(2026, 10, 23, 3, 0, 0, 0, berlin)},
		{"over the change of the clock", 10 * day, "03:00", rehearsal{}, noon, time.Date(2026, 10, 30, 3, 0, 0, 0, berlin)},
		{"one held", 3 * day, "03:00", rehearsal{ago(day), ago(day)}, ago(99 * day), time.Date(2026, 10, 22, 3, 0, 0, 0, berlin)},
		{"overdue", 3 * day, "03:00", rehearsal{ago(9 * day), ago(9 * day)}, ago(99 * day), time.Date(2026, 10, 21, 3, 0, 0, 0, berlin)},
		{"overdue, no quiet time", 3 * day, "", rehearsal{ago(9 * day), ago(9 * day)}, ago(99 * day), noon},
		{"the last one did not hold", 3 * day, "03:00", rehearsal{ago(9 * day), ago(9 * time.Hour)}, ago(99 * day), time.Date(2026, 10, 21, 3, 0, 0, 0, berlin)},
		{"did not hold, no quiet time", 3 * day, "", rehearsal{ago(9 * day), ago(time.Minute)}, ago(99 * day), noon.Add(59 * time.Minute)},
		{"more often than its quiet time comes", time.Hour, "03:00", rehearsal{}, noon, time.Date(2026, 10, 21, 3, 0, 0, 0, berlin)},
		{"due at this very moment", day, "12:00", rehearsal{ago(day), ago(day)}, ago(99 * day), noon},
	} {
		c := config.Drill{Every: config.Duration(x.every), At: clock(t, x.at)}
		if got := nextDrill(c, x.r, x.since, noon); !got.Equal(x.want) {
			t.Errorf("%s: %v, want %v", x.name, got, x.want)
		}
	}
}

// A drill that is due is done without anybody asking, leaves a report whether it held or
// not, and the next one is told.
func TestADrillThatIsDueIsDone(t *testing.T) {
	t.Parallel()
	scale.Tools(t, "qemu-system-x86_64")
	w := newWorld(t)
	ca, cb := w.pair("", machineOfWeb+"  drill: {every: 10h}\n")
	w.program("echo no QEMU; exit 1")
	a, b := w.runPair(ca, cb)
	a.awaitState("web", "synced")
	a.write("web/root", 1, 0, 4096)
	awaitLevel(a, b, "web")
	if next := b.groupLine("web").NextDrill; !next.After(time.Now().Add(time.Hour)) {
		t.Fatalf("the next drill is at %v", next)
	}
	if entries := b.measured(); len(entries) != 0 {
		t.Fatalf("entries %+v", entries)
	}
	b.stop()

	// Ten hours later, by the site's clock.
	later := func() time.Time { return time.Now().Add(10 * time.Hour) }
	b = w.runWith(cb, Options{Now: later})
	done := func(n int) evidence.Entry {
		t.Helper()
		await(t, "a drill of the schedule is in the ledger", func() bool { return len(b.measured()) >= n })
		return b.measured()[n-1]
	}
	if e := done(1); e.Kind != evidence.Drill || e.Held {
		t.Errorf("with a broken program: %+v", e)
	}
	b.nothingLeft()
	g, err := b.group("web")
	if err != nil {
		t.Fatal(err)
	}
	due := b.dueNow(t.Context(), g)
	if span := due.Sub(later()); span < 0 || span > time.Hour {
		t.Errorf("it is tried again at %v, in %v", due, span)
	}
	b.stop()
	w.program(`exec qemu-system-x86_64 "$@"`)
	b = w.runWith(cb, Options{Now: func() time.Time { return time.Now().Add(12 * time.Hour) }})
	if e := done(2); !e.Held || e.RTOSeconds <= 0 || e.Steps["start"] <= 0 {
		t.Errorf("drill %+v", e)
	}
	await(t, "it has ended", func() bool { return b.drillOf(b.groups[0]) == nil })
	b.nothingLeft()
	await(t, "it says who asked", func() bool { return strings.Contains(b.log.String(), "operator=schedule") })
}
