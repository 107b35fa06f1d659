package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
)

// total adds the kept files up and prints the closing lines. It fails when a test
// failed, when none passed, or when a count of from misses its number in counts.
func total(out io.Writer, files []string, counts, from string) error {
	var all Run
	for _, name := range files {
		run, err := load(name)
		if err != nil {
			return err
		}
		all.Passed += run.Passed
		all.Failed += run.Failed
		all.Skipped += run.Skipped
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
