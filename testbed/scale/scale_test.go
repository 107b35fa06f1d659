package scale

import (
	"fmt"
	"testing"
)

// witness is a testing.TB that only remembers.
type witness struct {
	testing.TB
	logs   []string
	failed bool
}

func (w *witness) Helper()               {}
func (w *witness) Log(a ...any)          { w.logs = append(w.logs, fmt.Sprint(a...)) }
func (w *witness) Errorf(string, ...any) { w.failed = true }

func TestScaleIsAFractionUnlessWhole(t *testing.T) {
	t.Setenv("AFTERIMAGE_SWEEPS", "")
	for _, c := range []struct{ n, want int }{{100 * fraction(), 100}, {2 * fraction(), 2}, {fraction() - 1, 1}, {1, 1}} {
		if got := Scale(c.n); got != c.want {
			t.Errorf("Scale(%d) = %d, want %d", c.n, got, c.want)
		}
	}
	t.Setenv("AFTERIMAGE_SWEEPS", "1")
	want := 2000
	if Race {
		want = 40
	}
	if got := Scale(2000); got != want {
		t.Errorf("whole sweep: Scale(2000) = %d, want %d (race %v)", got, want, Race)
	}
}

func TestLongIsFiftyTimes(t *testing.T) {
	for _, c := range []struct {
		env  string
		want int
	}{{"", Scale(2000)}, {"1", 50 * Scale(2000)}} {
		t.Setenv("AFTERIMAGE_LONG", c.env)
		if got := Long(2000); got != c.want {
			t.Errorf("AFTERIMAGE_LONG=%q: Long(2000) = %d, want %d", c.env, got, c.want)
		}
	}
}

func TestFewIsAFifthWhenBrief(t *testing.T) {
	t.Setenv("AFTERIMAGE_SWEEPS", "")
	t.Setenv("AFTERIMAGE_LONG", "")
	want := Scale(20000)
	if Brief() {
		want /= 5
	}
	if got := Few(20000); got != want || Few(1) != 1 {
		t.Errorf("Few(20000) = %d, want %d; Few(1) = %d", got, want, Few(1))
	}
}

func TestCountedFailsBelowItsNumber(t *testing.T) {
	t.Setenv("AFTERIMAGE_SWEEPS", "")
	short, enough := &witness{}, &witness{}
	least := 10 * fraction()
	if Brief() {
		least *= 5
	}
	Counted(short, "cases", 9, least)
	Counted(enough, "cases", 10, least)
	if !short.failed || enough.failed {
		t.Errorf("9 of 10 failed %v, 10 of 10 failed %v", short.failed, enough.failed)
	}
	if got, want := short.logs[0], "counted cases: 9 of at least 10"; got != want {
		t.Errorf("printed %q, want %q", got, want)
	}
}
