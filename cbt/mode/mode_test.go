package mode

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/testbed/scale"
)

// happenings are everything that can come between two steps of a driver.
var happenings = []struct {
	name string
	do   func(d *driver, dice func(n int) int) error
}{
	{"tap let go", breaking(cbt.CauseStall, nil)},
	{"job ended", breaking(cbt.CauseTapEnded, nil)},
	{"journal failed", breaking(cbt.CauseJournal, nil)},
	{"machine killed", breaking(cbt.CauseMachine, func(d *driver, dice func(int) int) { d.crash(dice(2) == 0) })},
	{"machine restarted in order", breaking(cbt.CauseMachine, func(d *driver, _ func(int) int) {
		for _, b := range d.bitmaps {
			b.frozen = nil // it was given back at the job's end
		}
	})},
	{"bitmap removed by somebody", breaking(cbt.CauseTapError, func(d *driver, _ func(int) int) {
		for n := range d.bitmaps {
			delete(d.bitmaps, n)
			return
		}
	})},
	{"bitmap disabled by somebody", breaking(cbt.CauseTapError, func(d *driver, dice func(int) int) {
		for _, b := range d.bitmaps {
			b.recording = false
		}
		d.write(dice(blocks))
	})},
	{"resize", breaking(cbt.CauseTapEnded, func(d *driver, _ func(int) int) { d.size++ })},
	{"external snapshot", breaking(cbt.CauseTapEnded, func(d *driver, _ func(int) int) {
		d.node += "'"
		d.bitmaps = map[string]*bits{}
	})},
	{"foreign job", breaking(cbt.CauseTapEnded, nil)},
	{"our process killed", func(d *driver, _ func(int) int) error {
		// Only what is durable stays. The bits of a held instant are given back
		// when its job is swept.
		d.tapped, d.reading, d.instant = false, false, nil
		d.s = State{Plan: d.s.Plan}
		d.open, d.moved = false, false
		return nil
	}},
	{"an instant is given up", func(d *driver, _ func(int) int) error {
		if d.s.Plan == PerWrite || !d.s.held || d.s.open {
			return nil
		}
		d.reading, d.instant = false, nil
		d.thawBits(false)
		return d.event(Event{Kind: Dropped})
	}},
	{"released", func(d *driver, _ func(int) int) error {
		d.stop()
		return d.event(Event{Kind: Release, Cause: cbt.CauseDetached})
	}},
	{"the plan is changed", func(d *driver, _ func(int) int) error {
		d.stop()
		if err := d.event(Event{Kind: Release, Cause: cbt.CauseDetached}); err != nil {
			return err
		}
		d.s = State{Plan: 1 - d.s.Plan}
		return nil
	}},
}

func breaking(c cbt.Cause, also func(*driver, func(int) int)) func(*driver, func(int) int) error {
	return func(d *driver, dice func(int) int) error {
		d.stop()
		if d.fault == "a break is not told" {
			d.s = State{Plan: d.s.Plan}
		} else if err := d.event(Event{Kind: Break, Cause: c}); err != nil {
			return err
		}
		if also != nil {
			also(d, dice)
		}
		return nil
	}
}

// play runs one history of events and holds it to the truth after each.
func play(plan Plan, fault string, length int, dice func(n int) int) (*driver, error) {
	d := &driver{truth: newTruth(), s: State{Plan: plan}, fault: fault}
	for i := range length {
		what := "a step"
		var err error
		switch k := dice(20); {
		case k < 5:
			what = "a write"
			d.write(dice(blocks))
		case k < 19:
			err = d.step()
		default:
			h := happenings[dice(len(happenings))]
			what = h.name
			err = h.do(d, dice)
		}
		if err == nil {
			err = d.check(d.instant)
		}
		if err == nil && d.open && !d.s.Open() {
			err = errors.New("the journal's interval is open and the rules say that it is not")
		}
		if err != nil {
			return d, fmt.Errorf("event %d (%s): %w", i, what, err)
		}
	}
	return d, nil
}

// Whatever happens between any two steps of a driver, what is offered as a point is
// what the disk held.
func TestPointsAreTrue(t *testing.T) {
	marks, events := 0, 0
	const length = 300
	rapid.Check(t, func(t *rapid.T) {
		plan := Plan(rapid.IntRange(0, 1).Draw(t, "plan"))
		d, err := play(plan, "", length, func(n int) int { return rapid.IntRange(0, n-1).Draw(t, "die") })
		if err != nil {
			t.Fatal(err)
		}
		marks, events = marks+d.marks, events+length
	})
	t.Logf("%d events, %d intervals", events, marks)
}

// The same over many more histories, from one printed seed.
func TestManyHistoriesAreTrue(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	n := scale.Scale(20000)
	marks := 0
	for i := range n {
		d, err := play(Plan(i%2), "", 200, rng.IntN)
		if err != nil {
			t.Fatalf("seed %d, history %d: %v", seed, i, err)
		}
		marks += d.marks
	}
	t.Logf("seed %d: %d histories, %d intervals", seed, n, marks)
	if marks == 0 {
		t.Error("nothing was ever marked")
	}
	scale.Counted(t, "capture-histories", n, 20000)
}

// Each promise, broken on purpose, is noticed. The seeds are fixed: enough of them
// that the fault shows.
func TestPlantedFaultsAreNoticed(t *testing.T) {
	for _, c := range []struct {
		fault string
		plan  Plan
	}{
		{"any bitmap is believed", PerWrite},
		{"any bitmap is believed", Cycles},
		{"the delta is taken before the tap", PerWrite},
		{"a cycle reads the live disk", Cycles},
		{"a cycle's interval stays open", Cycles},
		{"a break is not told", PerWrite},
		{"a break is not told", Cycles},
	} {
		t.Run(fmt.Sprintf("%s/%d", c.fault, c.plan), func(t *testing.T) {
			for seed := range uint64(2000) {
				if _, err := play(c.plan, c.fault, 200, rand.New(rand.NewPCG(seed, 1)).IntN); err != nil {
					t.Logf("seed %d: %v", seed, err)
					return
				}
			}
			t.Error("the fault went unnoticed")
		})
	}
}

// From every state that can be reached, in every plan, no event opens an interval
// but Mark, and none but Mark leaves one open that was not.
func TestOnlyMarkOpens(t *testing.T) {
	events := []Event{{Kind: Attach}, {Kind: Judged, Trusted: true}, {Kind: Judged, Why: "none"}, {Kind: Tapped}, {Kind: Compared},
		{Kind: Drawn}, {Kind: Dropped}, {Kind: Brought}, {Kind: Mark}, {Kind: Closed}, {Kind: GapTold},
		{Kind: Break, Cause: cbt.CauseStall}, {Kind: Release, Cause: cbt.CauseDetached}, {Kind: 99}}
	for _, plan := range []Plan{PerWrite, Cycles} {
		seen := map[State]bool{{Plan: plan}: true}
		queue := []State{{Plan: plan}}
		for len(queue) > 0 {
			s := queue[0]
			queue = queue[1:]
			for _, e := range events {
				next, order, err := s.Next(e)
				switch {
				case err != nil && (next != s || order != Nothing || !errors.Is(err, ErrRefused)):
					t.Fatalf("%+v, %v: refused with %+v, %v, %v", s, e.Kind, next, order, err)
				case next.open && !s.open && (e.Kind != Mark || !s.held || !s.whole || s.untold > 0):
					t.Fatalf("%+v, %v opens", s, e.Kind)
				case s.open && !next.open && order != TellGap:
					t.Fatalf("%+v, %v closes without a gap", s, e.Kind)
				case s.open && e.Kind == Attach && err == nil:
					t.Fatalf("%+v: an attachment begins inside an interval", s)
				}
				if !seen[next] && next.untold < 4 {
					seen[next] = true
					queue = append(queue, next)
				}
			}
		}
		t.Logf("plan %d: %d states", plan, len(seen))
	}
}

// A break whose cause is the newest gap's says nothing new, unless it ends an interval.
func TestEachGapIsToldOnce(t *testing.T) {
	synced := []Event{{Kind: Attach}, {Kind: Judged}, {Kind: Tapped}, {Kind: Brought}, {Kind: Mark}}
	s := State{}
	for i, m := range []struct {
		first []Event
		then  Event
		phase cbt.State
		gap   bool
	}{
		{nil, Event{Kind: Break, Cause: cbt.CauseMachine}, cbt.StateBroken, true}, // never seen: said once
		{nil, Event{Kind: Break, Cause: cbt.CauseMachine}, cbt.StateBroken, false},
		{synced[:3], Event{Kind: Break, Cause: cbt.CauseTapError}, cbt.StateBroken, true}, // another cause
		{synced[:4], Event{Kind: Break, Cause: cbt.CauseTapError}, cbt.StateBroken, false},
		{synced, Event{Kind: Break, Cause: cbt.CauseTapError}, cbt.StateBroken, true}, // the interval was open: always
		{synced, Event{Kind: Release, Cause: cbt.CauseDetached}, cbt.StateDetached, true},
		{nil, Event{Kind: Release, Cause: cbt.CauseDetached}, cbt.StateDetached, false},
	} {
		var err error
		for _, e := range m.first {
			if s, _, err = s.Next(e); err != nil {
				t.Fatalf("move %d: %v", i, err)
			}
		}
		var order Order
		if s, order, err = s.Next(m.then); err != nil || s.Phase != m.phase || (order == TellGap) != m.gap {
			t.Fatalf("move %d: %s, order %d, %v", i, s.Phase, order, err)
		}
		s, _, _ = s.Next(Event{Kind: GapTold})
	}
}

// Between two cycles no interval is open: who lets the volume go then has to be told of
// as what ended the points, once.
func TestReleaseBetweenCyclesIsTold(t *testing.T) {
	s := State{Plan: Cycles}
	for i, m := range []struct {
		e    Event
		want Order
	}{
		{Event{Kind: Attach}, Nothing}, {Event{Kind: Judged, Trusted: true}, Draw}, {Event{Kind: Drawn}, ReadDelta},
		{Event{Kind: Brought}, Nothing}, {Event{Kind: Mark}, Nothing}, {Event{Kind: Closed}, TellGap}, {Event{Kind: GapTold}, Nothing},
		{Event{Kind: Release, Cause: cbt.CauseDetached}, TellGap}, {Event{Kind: GapTold}, Nothing},
		{Event{Kind: Release, Cause: cbt.CauseDetached}, Nothing},
	} {
		next, order, err := s.Next(m.e)
		if err != nil || order != m.want {
			t.Fatalf("event %d: order %d, %v; want %d", i, order, err, m.want)
		}
		s = next
	}
}
