package journal

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var retentionNow = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// candidatesOf is candidates of the head's lineage, by their ages; seqs count from 1.
func candidatesOf(ages ...time.Duration) []Candidate {
	var out []Candidate
	for i, a := range ages {
		out = append(out, Candidate{Point: Point{Position: Position{Seq: Seq(i + 1)}, Time: retentionNow.Add(-a)}})
	}
	return out
}

func kept(ks []Keep) string {
	var out []string
	for _, k := range ks {
		out = append(out, fmt.Sprintf("%d: %s", k.Seq, strings.Join(k.Reasons, ", ")))
	}
	return strings.Join(out, "; ")
}

func TestChoose(t *testing.T) {
	const m, h, day = time.Minute, time.Hour, 24 * time.Hour
	ladder := []Rung{{0, h}, {10 * m, day}, {h, 0}}
	for _, c := range []struct {
		name string
		in   []Candidate
		r    Retention
		refs []Reference
		want string
	}{
		{"no ladder keeps every write", candidatesOf(3*day, 0), Retention{}, nil, "1: every write; 2: every write, newest"},
		{"dense while young", candidatesOf(50*m, 49*m, 0), Retention{Ladder: ladder[:1]}, nil, "1: every write; 2: every write; 3: every write, newest"},
		{"past every rung goes", candidatesOf(2*h, 61*m, 1), Retention{Ladder: ladder[:1]}, nil, "3: every write, newest"},
		{"the newest stays however old", candidatesOf(3*day, 2*day), Retention{Ladder: ladder[:2]}, nil, "2: newest"},
		{"the last of each slot", candidatesOf(3*h+9*m, 3*h+1*m, 3*h, 3*h-1, 2*h), Retention{Ladder: ladder[1:2]}, nil,
			"2: every 10m; 4: every 10m; 5: every 10m, newest"},
		{"coarse and fine at once", candidatesOf(5*h+50*m, 5*h+5*m, 4*h+5*m), Retention{Ladder: ladder[1:]}, nil,
			"1: every 10m; 2: every 10m, every 1h; 3: every 10m, every 1h, newest"},
		{"for ever", candidatesOf(1000*day+1, 1000*day, 0), Retention{Ladder: ladder[2:]}, nil, "1: every 1h; 2: every 1h; 3: every 1h, newest"},
		{"lock", candidatesOf(2*h, 30*m, 0), Retention{Ladder: []Rung{{0, m}}, Lock: h}, nil, "2: lock; 3: every write, lock, newest"},
		{"pin and view", candidatesOf(9*day, 8*day, 7*day, 0), Retention{Ladder: ladder[:1]},
			[]Reference{{Kind: ReferencePin, Name: "x", At: Position{Seq: 1}}, {Kind: ReferenceView, At: Position{Seq: 3}}},
			"1: pin x; 3: view; 4: every write, newest"},
		{"cursor within its hold, and one past it", candidatesOf(9*day, 8*day, 7*day), Retention{Ladder: ladder[:1]},
			[]Reference{{ReferenceCursor, "b", Position{Seq: 1}, retentionNow}, {ReferenceCursor, "c", Position{}, retentionNow.Add(-1)}},
			"2: cursor b; 3: cursor b, newest"},
		{"uncommitted keeps its point and all after", candidatesOf(9*day, 8*day, 7*day), Retention{Ladder: ladder[:1]},
			[]Reference{{Kind: ReferenceUncommitted, Name: "f", At: Position{Seq: 2}}}, "2: uncommitted f; 3: uncommitted f, newest"},
		{"a time in the future", candidatesOf(-h), Retention{Ladder: ladder[:1]}, nil, "1: every write, newest"},
		{"nothing", nil, Retention{Ladder: ladder}, nil, ""},
	} {
		if got := kept(Choose(c.in, c.r, c.refs, retentionNow)); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
	}
}

// Abandoned branches have slots of their own, and no newest.
func TestChooseOnBranches(t *testing.T) {
	in := candidatesOf(2*time.Hour, 2*time.Hour, 2*time.Hour)
	in[1].Branch = EpochID{1}
	r := Retention{Ladder: []Rung{{time.Hour, 0}}}
	if got, want := kept(Choose(in, r, nil, retentionNow)), "2: every 1h; 3: every 1h, newest"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func drawLadder(t *rapid.T) []Rung {
	n := rapid.IntRange(0, 3).Draw(t, "rungs")
	var out []Rung
	every, reach := time.Duration(0), time.Duration(0)
	for i := range n {
		if i > 0 || rapid.Bool().Draw(t, "dense") {
			every += time.Duration(rapid.IntRange(min(i, 1), 40).Draw(t, "every")) * time.Second
		}
		if i > 0 && every == out[i-1].Every {
			every += time.Second
		}
		reach += time.Duration(rapid.IntRange(1, 300).Draw(t, "reach")) * time.Second
		out = append(out, Rung{every, reach})
	}
	if n > 0 && rapid.Bool().Draw(t, "for ever") {
		out[n-1].For = 0
	}
	return out
}

func drawCandidates(t *rapid.T) []Candidate {
	var out []Candidate
	at := retentionNow.Add(-15 * time.Minute)
	for i := range rapid.IntRange(0, 60).Draw(t, "points") {
		at = at.Add(time.Duration(rapid.IntRange(0, 30000).Draw(t, "ms")) * time.Millisecond)
		out = append(out, Candidate{Point: Point{Position: Position{Seq: Seq(i + 1)}, Time: at}})
	}
	return out
}

// What was thinned once and then again later is what thinning all of it later
// gives, and what a coarse rung wants is never gone before: Choose may run as often
// as it likes.
func TestChooseTwiceIsOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := Retention{Ladder: drawLadder(t), Lock: time.Duration(rapid.IntRange(0, 100).Draw(t, "lock")) * time.Second}
		if err := r.Validate(); err != nil {
			t.Fatalf("ladder %v: %v", r.Ladder, err)
		}
		all := drawCandidates(t)
		later := retentionNow.Add(time.Duration(rapid.IntRange(0, 1000).Draw(t, "later")) * time.Second)
		var left []Candidate
		for _, k := range Choose(all, r, nil, retentionNow) {
			left = append(left, Candidate{Point: k.Point})
		}
		once, twice := Choose(all, r, nil, later), Choose(left, r, nil, later)
		if kept(once) != kept(twice) {
			t.Fatalf("ladder %v\nonce  %s\ntwice %s", r.Ladder, kept(once), kept(twice))
		}
	})
}

// Every rung that reaches back to a candidate has a kept point in its slot, and no
// kept point is there for nothing.
func TestChooseKeepsEachSlot(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := Retention{Ladder: drawLadder(t)}
		all := drawCandidates(t)
		ks := Choose(all, r, nil, retentionNow)
		if !slices.IsSortedFunc(ks, func(a, b Keep) int { return int(a.Seq) - int(b.Seq) }) {
			t.Fatal("out of order")
		}
		for _, k := range ks {
			if len(k.Reasons) == 0 {
				t.Fatalf("%d is kept for nothing", k.Seq)
			}
		}
		for _, g := range r.Ladder {
			for _, c := range all {
				if g.For > 0 && retentionNow.Sub(c.Time) > g.For {
					continue
				}
				ok := slices.ContainsFunc(ks, func(k Keep) bool {
					if g.Every == 0 {
						return k.Seq == c.Seq
					}
					return k.Seq >= c.Seq && k.Time.UnixNano()/int64(g.Every) == c.Time.UnixNano()/int64(g.Every)
				})
				if !ok {
					t.Fatalf("rung %v has nothing for %d", g, c.Seq)
				}
			}
		}
	})
}

func TestRetentionValidate(t *testing.T) {
	const h = time.Hour
	for _, c := range []struct {
		ok bool
		r  Retention
	}{
		{true, Retention{}},
		{true, Retention{Ladder: []Rung{{0, h}, {time.Minute, 2 * h}, {h, 0}}, WarnAt: []int{80, 90}}},
		{false, Retention{Ladder: []Rung{{0, 0}, {time.Minute, 0}}}},
		{false, Retention{Ladder: []Rung{{0, 2 * h}, {time.Minute, h}}}},
		{false, Retention{Ladder: []Rung{{h, h}, {time.Minute, 2 * h}}}},
		{false, Retention{Ladder: []Rung{{-1, h}}}},
		{false, Retention{Lock: -1}},
		{false, Retention{WarnAt: []int{0}}},
		{false, Retention{QuotaBytes: -1}},
	} {
		if err := c.r.Validate(); (err == nil) != c.ok {
			t.Errorf("%+v: %v", c.r, err)
		}
	}
}
