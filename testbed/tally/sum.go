package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// total adds the kept files up and prints the closing lines. It fails when a test
// failed, when none passed, or when a count of from misses its number in counts.
func total(out io.Writer, files []string, counts, from, parts string) error {
	all := Run{Seconds: map[string]float64{}}
	for _, name := range files {
		run, err := load(name)
		if err != nil {
			return err
		}
		all.Passed += run.Passed
		all.Failed += run.Failed
		all.Skipped += run.Skipped
		for test, n := range run.Seconds {
			all.Seconds[test] += n
		}
	}
	if parts != "" {
		if err := shares(out, all.Seconds, parts); err != nil {
			return err
		}
	}
	var short []string
	if counts != "" {
		least, err := loadCounts(counts)
		if err != nil {
			return err
		}
		judged, err := load(from)
		if err != nil {
			return err
		}
		short = judge(out, judged.Counts, least)
	}
	if all.Skipped > 0 {
		fmt.Fprintf(out, "skipped: %d (named above)\n", all.Skipped)
	}
	all.Failed += len(short)
	fmt.Fprintf(out, "%d passed, %d failed\n", all.Passed, all.Failed)
	if len(short) > 0 {
		return fmt.Errorf("counts below their numbers: %s", strings.Join(short, ", "))
	}
	return all.verdict()
}

// judge prints every count and returns the names that miss their minimum; a name
// that was never printed has counted none.
func judge(out io.Writer, counts, least map[string]int) []string {
	var short []string
	for _, name := range slices.Sorted(maps.Keys(least)) {
		word := "ok"
		if counts[name] < least[name] {
			word = "TOO FEW"
			short = append(short, name)
		}
		fmt.Fprintf(out, "%-32s %8d of at least %8d  %s\n", name, counts[name], least[name], word)
	}
	return short
}

func load(name string) (Run, error) {
	var run Run
	b, err := os.ReadFile(name)
	if err != nil {
		return run, err
	}
	if err := json.Unmarshal(b, &run); err != nil {
		return run, fmt.Errorf("read %s: %w", name, err)
	}
	return run, nil
}

// loadCounts reads lines "name minimum"; '#' begins a comment.
func loadCounts(name string) (map[string]int, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	least := map[string]int{}
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		text, _, _ := strings.Cut(lines.Text(), "#")
		fields := strings.Fields(text)
		if len(fields) == 0 {
			continue
		}
		if len(fields) != 2 {
			return nil, fmt.Errorf("%s:%d: want a name and a number", name, n)
		}
		least[fields[0]], err = strconv.Atoi(fields[1])
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", name, n, err)
		}
	}
	return least, lines.Err()
}

// shares prints what the parts of the tests took that a file names: lines "name regexp",
// '#' begins a comment. Of packages that ran beside each other both count.
func shares(out io.Writer, seconds map[string]float64, parts string) error {
	text, err := os.ReadFile(parts)
	if err != nil {
		return err
	}
	for n, line := range slices.Collect(strings.Lines(string(text))) {
		line, _, _ = strings.Cut(line, "#")
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		if len(fields) != 2 {
			return fmt.Errorf("%s:%d: want a name and a regular expression", parts, n+1)
		}
		in, err := regexp.Compile(fields[1])
		if err != nil {
			return fmt.Errorf("%s:%d: %w", parts, n+1, err)
		}
		tests, sum := 0, 0.0
		for test, n := range seconds {
			if in.MatchString(test) {
				tests, sum = tests+1, sum+n
			}
		}
		fmt.Fprintf(out, "%-32s %8.0f s, %d tests\n", "time of "+fields[0], sum, tests)
	}
	return nil
}
