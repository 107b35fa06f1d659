package main

import (
	"strings"
	"testing"

	"github.com/novacron/afterimage/site/fault"
)

// What a program's end means, and what stops the search.
func TestBisectVerdicts(t *testing.T) {
	for _, c := range []struct {
		check    string
		exit     int
		verdicts string
	}{
		{"true", 0, "good good"}, {"false", 0, "bad bad"},
		{"testdata/exit.sh 124", 0, "bad bad"}, {"testdata/exit.sh 125", fault.ExitPartly, "skip skip"},
		{"testdata/exit.sh 126", fault.ExitFailed, ""}, {"testdata/exit.sh kill", fault.ExitFailed, ""}, {"testdata/no-such-program", fault.ExitFailed, ""},
		{"testdata/exit.sh environment", 0, "good good"},
	} {
		f := &fake{}
		r := stage{api: f}.run(t, "point", "bisect", "web", "--good", "#1000", "--check", c.check, "--volume", "root")
		var got []string
		for _, x := range f.tried {
			got = append(got, x.Verdict)
		}
		if r.exit != c.exit || strings.Join(got, " ") != c.verdicts {
			t.Errorf("%s: exit %d, verdicts %v\n%s", c.check, r.exit, got, r.stderr)
		}
	}
	f := &fake{}
	r := stage{api: f}.run(t, "point", "bisect", "web", "--good", "#1000", "--check", "testdata/exit.sh hang", "--timeout", "1ms")
	if r.exit != fault.ExitPartly || len(f.tried) != 2 || f.tried[0].Verdict != "skip" {
		t.Errorf("a check that hangs: exit %d, %+v\n%s", r.exit, f.tried, r.stderr)
	}
	if r := (stage{api: &fake{}}).run(t, "point", "bisect", "web", "--good", "#1000", "--check", "true", "--volume", "nowhere"); r.exit != fault.ExitNotFound {
		t.Errorf("a volume that is not there: exit %d", r.exit)
	}
}
