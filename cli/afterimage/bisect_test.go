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
	// What was found after a long search is told although it cannot be pinned.
	r = stage{api: &fake{pinErr: errFake}}.run(t, "point", "bisect", "web", "--good", "#1000", "--check", "true", "--pin-as", "clean")
	if r.exit != fault.ExitPartly || !strings.Contains(r.stdout, "first bad  #3.1002") {
		t.Errorf("pins that fail: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	f = &fake{}
	if r := (stage{api: f}).run(t, "point", "bisect", "web", "--good", "#1000", "--check", "true", "--pin-as", "no name"); r.exit != fault.ExitUsage || len(f.tried) != 0 {
		t.Errorf("a name that no pin can have: exit %d after %d tries", r.exit, len(f.tried))
	}
	if r := (stage{api: &fake{}}).run(t, "point", "bisect", "web", "--good", "#1000", "--check", "true", "--volume", "nowhere"); r.exit != fault.ExitNotFound {
		t.Errorf("a volume that is not there: exit %d", r.exit)
	}
}
