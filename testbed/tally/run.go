package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
)

// event is one line of `go test -json` (cmd/test2json, "TestEvent"); ImportPath
// belongs to the build-output events of cmd/go.
type event struct {
	Action     string
	Package    string
	ImportPath string
	Test       string
	Elapsed    float64 // seconds
	Output     string
}

// Run is what one run of go test came to. Tests are those at the top level; a
// package that fails without a failed test counts as one.
type Run struct {
	Passed, Failed, Skipped int
	Counts                  map[string]int // of scale.Counted, by name; the sum of all tests that print it
	// Seconds are what a package took, shared among its tests as they took time: tests
	// that run beside each other are not counted twice. By package and test.
	Seconds map[string]float64
}

// counted is the form of scale.Line, in a test's log.
var counted = regexp.MustCompile(`\bcounted (\S+): (\d+) of at least (\d+)\s*$`)

// reader follows one run. Output is kept per test until the test ends well.
type reader struct {
	out    io.Writer
	run    Run
	output map[string]*strings.Builder   // by package and test
	failed map[string]int                // tests, by package
	took   map[string]map[string]float64 // seconds of tests, by package
}

// Read follows the events on in and shows the run on out. A line that is no event
// (go vet's findings come so) is shown as it is.
func Read(in io.Reader, out io.Writer) (Run, error) {
	r := reader{
		out:    out,
		run:    Run{Counts: map[string]int{}, Seconds: map[string]float64{}},
		output: map[string]*strings.Builder{},
		failed: map[string]int{},
		took:   map[string]map[string]float64{},
	}
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadString('\n')
		if line != "" {
			var e event
			if json.Unmarshal([]byte(line), &e) != nil {
				fmt.Fprint(out, line)
			} else {
				r.take(e)
			}
		}
		if err == io.EOF {
			return r.run, nil
		}
		if err != nil {
			return r.run, err
		}
	}
}

func (r *reader) take(e event) {
	switch e.Action {
	case "output":
		r.keep(e)
	case "build-output":
		fmt.Fprint(r.out, e.Output)
	case "pass", "fail", "skip":
		if e.Test == "" {
			r.packageEnded(e)
		} else {
			r.testEnded(e)
		}
	}
}

func (r *reader) keep(e event) {
	key := e.Package + " " + top(e.Test)
	if r.output[key] == nil {
		r.output[key] = &strings.Builder{}
	}
	r.output[key].WriteString(e.Output)
	if m := counted.FindStringSubmatch(e.Output); m != nil {
		n, err := strconv.Atoi(m[2])
		if err == nil {
			r.run.Counts[m[1]] += n
			fmt.Fprintln(r.out, "     "+strings.TrimSpace(m[0]))
		}
	}
}

func (r *reader) testEnded(e event) {
	if top(e.Test) != e.Test {
		return
	}
	key := e.Package + " " + e.Test
	if r.took[e.Package] == nil {
		r.took[e.Package] = map[string]float64{}
	}
	r.took[e.Package][e.Test] = e.Elapsed
	switch e.Action {
	case "pass":
		r.run.Passed++
	case "skip":
		r.run.Skipped++
		fmt.Fprintf(r.out, "skip %s.%s: %s\n", short(e.Package), e.Test, r.reason(key))
	case "fail":
		r.run.Failed++
		r.failed[e.Package]++
		fmt.Fprintf(r.out, "FAIL %s.%s\n%s", short(e.Package), e.Test, r.text(key))
	}
	delete(r.output, key)
}

// packageEnded also shows what ended a package whose tests did not end: a panic or
// the time limit leaves output behind under the test that ran.
func (r *reader) packageEnded(e event) {
	all := 0.0
	for _, n := range r.took[e.Package] {
		all += n
	}
	for test, n := range r.took[e.Package] {
		if all > 0 {
			r.run.Seconds[short(e.Package)+"."+test] += e.Elapsed * n / all
		}
	}
	delete(r.took, e.Package)
	switch {
	case e.Action == "pass":
		fmt.Fprintf(r.out, "ok   %s (%.1f s)\n", short(e.Package), e.Elapsed)
	case e.Action == "fail":
		if r.failed[e.Package] == 0 {
			r.run.Failed++
		}
		for key, b := range r.output {
			if strings.HasPrefix(key, e.Package+" ") {
				fmt.Fprint(r.out, b)
			}
		}
		fmt.Fprintf(r.out, "FAIL %s (%.1f s)\n", short(e.Package), e.Elapsed)
	}
	for key := range r.output {
		if strings.HasPrefix(key, e.Package+" ") {
			delete(r.output, key)
		}
	}
}

// reason is the last line that a skipped test logged.
func (r *reader) reason(key string) string {
	why := "no reason given"
	for line := range strings.Lines(r.text(key)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "---") && !strings.HasPrefix(line, "===") {
			why = line
		}
	}
	return why
}

func (r *reader) text(key string) string {
	if b := r.output[key]; b != nil {
		return b.String()
	}
	return ""
}

func (r Run) verdict() error {
	switch {
	case r.Failed > 0:
		return fmt.Errorf("%d tests failed, %d passed", r.Failed, r.Passed)
	case r.Passed == 0:
		return fmt.Errorf("no test ran")
	}
	return nil
}

// top is the top-level test that test belongs to.
func top(test string) string {
	name, _, _ := strings.Cut(test, "/")
	return name
}

func short(pkg string) string {
	return strings.TrimPrefix(pkg, "github.com/novacron/afterimage/")
}
