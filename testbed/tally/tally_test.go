package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const stream = `{"Action":"start","Package":"github.com/novacron/afterimage/journal"}
{"Action":"output","Package":"github.com/novacron/afterimage/journal","Test":"TestA","Output":"=== RUN   TestA\n"}
{"Action":"output","Package":"github.com/novacron/afterimage/journal","Test":"TestA/one","Output":"    a_test.go:9: counted points: 150 of at least 100\n"}
{"Action":"pass","Package":"github.com/novacron/afterimage/journal","Test":"TestA/one"}
{"Action":"output","Package":"github.com/novacron/afterimage/journal","Test":"TestA/two","Output":"    a_test.go:9: counted points: 50 of at least 50\n"}
{"Action":"pass","Package":"github.com/novacron/afterimage/journal","Test":"TestA/two"}
{"Action":"pass","Package":"github.com/novacron/afterimage/journal","Test":"TestA"}
{"Action":"output","Package":"github.com/novacron/afterimage/journal","Test":"TestB","Output":"    b_test.go:3: needs a guest\n"}
{"Action":"output","Package":"github.com/novacron/afterimage/journal","Test":"TestB","Output":"--- SKIP: TestB (0.00s)\n"}
{"Action":"skip","Package":"github.com/novacron/afterimage/journal","Test":"TestB"}
`

const failure = `{"Action":"output","Package":"github.com/novacron/afterimage/cbt","Test":"TestC","Output":"    c_test.go:3: the reason\n"}
{"Action":"fail","Package":"github.com/novacron/afterimage/cbt","Test":"TestC"}
{"Action":"fail","Package":"github.com/novacron/afterimage/cbt","Elapsed":1.5}
`

const crash = `{"Action":"output","Package":"github.com/novacron/afterimage/cbt","Test":"TestD","Output":"panic: gone\n"}
{"Action":"fail","Package":"github.com/novacron/afterimage/cbt"}
`

const broken = `{"ImportPath":"github.com/novacron/afterimage/cbt","Action":"build-output","Output":"cbt.go:1: does not compile\n"}
{"ImportPath":"github.com/novacron/afterimage/cbt","Action":"build-fail"}
{"Action":"fail","Package":"github.com/novacron/afterimage/cbt"}
`

func TestReadCountsTopLevelTests(t *testing.T) {
	for _, c := range []struct {
		name, in              string
		passed, failed, skips int
		shows                 string
	}{
		{"good", stream, 1, 0, 1, "skip journal.TestB: b_test.go:3: needs a guest\n"},
		{"failed test", stream + failure, 1, 1, 1, "c_test.go:3: the reason\n"},
		{"panic", stream + crash, 1, 1, 1, "panic: gone\n"},
		{"does not compile", stream + broken, 1, 1, 1, "cbt.go:1: does not compile\n"},
		{"not an event", "# go: warning\n" + stream, 1, 0, 1, "# go: warning\n"},
	} {
		var out bytes.Buffer
		run, err := Read(strings.NewReader(c.in), &out)
		if err != nil {
			t.Fatal(err)
		}
		if run.Passed != c.passed || run.Failed != c.failed || run.Skipped != c.skips {
			t.Errorf("%s: %+v, want %d passed, %d failed, %d skipped", c.name, run, c.passed, c.failed, c.skips)
		}
		if !strings.Contains(out.String(), c.shows) {
			t.Errorf("%s: %q is not shown in\n%s", c.name, c.shows, out.String())
		}
		if (run.verdict() != nil) != (c.failed > 0) {
			t.Errorf("%s: verdict %v", c.name, run.verdict())
		}
		if run.Counts["points"] != 200 {
			t.Errorf("%s: counted %d points, want 200", c.name, run.Counts["points"])
		}
	}
	if (Run{}).verdict() == nil {
		t.Error("a run without tests is taken for a good one")
	}
}

func TestTotalHoldsCountsAgainstTheirNumbers(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	run, err := json.Marshal(Run{Passed: 3, Counts: map[string]int{"points": 200}})
	if err != nil {
		t.Fatal(err)
	}
	kept := write("run", run)
	for _, c := range []struct {
		counts string
		good   bool
		last   string
	}{
		{"points 200 # random ones\n", true, "3 passed, 0 failed"},
		{"points 201\n", false, "3 passed, 1 failed"},
		{"points 200\nkills 20\n", false, "3 passed, 1 failed"},
	} {
		var out bytes.Buffer
		err := total(&out, []string{kept}, write("counts", []byte(c.counts)), kept, "")
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		if (err == nil) != c.good || lines[len(lines)-1] != c.last {
			t.Errorf("%q: %v, ends with %q, want %q", c.counts, err, lines[len(lines)-1], c.last)
		}
	}
}

// What a package took is shared among its tests, and added up by the parts' names.
func TestPartsAreAddedUp(t *testing.T) {
	const side = `{"Action":"pass","Package":"github.com/novacron/afterimage/site","Test":"TestDrill","Elapsed":30}
{"Action":"pass","Package":"github.com/novacron/afterimage/site","Test":"TestDrill/one","Elapsed":30}
{"Action":"pass","Package":"github.com/novacron/afterimage/site","Test":"TestPoints","Elapsed":10}
{"Action":"pass","Package":"github.com/novacron/afterimage/site","Elapsed":20}
`
	run, err := Read(strings.NewReader(side), &bytes.Buffer{})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	kept, parts := filepath.Join(dir, "run"), filepath.Join(dir, "parts")
	b, err := json.Marshal(run)
	if err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string][]byte{kept: b, parts: []byte("# of what\nrecovery ^site\\.TestDrill$\n")} {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	if err := total(&out, []string{kept, kept}, "", "", parts); err != nil {
		t.Fatal(err)
	}
	if want := "time of recovery                       30 s, 1 tests\n"; !strings.HasPrefix(out.String(), want) {
		t.Errorf("%q, want %q first", out.String(), want)
	}
}
