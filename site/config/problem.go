package config

import (
	"fmt"
	"slices"
	"strings"

	"github.com/novacron/afterimage/site/fault"
)

// Problem is one fault of a file.
type Problem struct {
	Code    fault.Code `json:"code"`
	File    string     `json:"file"`
	Line    int        `json:"line"`   // from 1
	Column  int        `json:"column"` // from 1, in runes
	Path    string     `json:"path"`   // such as groups[0].volumes[1].size; empty of a runbook
	What    string     `json:"what"`
	Hint    string     `json:"hint,omitempty"`
	Excerpt string     `json:"excerpt"` // the line, the one before it, and a caret
}

// String is the problem as a compiler would print it.
func (p Problem) String() string {
	s := fmt.Sprintf("%s:%d:%d: %s: %s\n%s", p.File, p.Line, p.Column, p.Code, p.What, p.Excerpt)
	if p.Hint != "" {
		s += "  hint: " + p.Hint + "\n"
	}
	return s
}

// Problems is all that is wrong with a file, in its order. It is an error.
type Problems []Problem

// Error is the problems, one after the other.
func (ps Problems) Error() string {
	var b strings.Builder
	for _, p := range ps {
		b.WriteString(p.String())
	}
	return b.String()
}

// Fault is the problems as one fault with the first one's code and all of them
// as evidence.
func (ps Problems) Fault() *fault.Error {
	what := fmt.Sprintf("check configuration %s", ps[0].File)
	why := fmt.Sprintf("line %d, column %d: %s", ps[0].Line, ps[0].Column, ps[0].What)
	if n := len(ps) - 1; n > 0 {
		why += fmt.Sprintf(" (and %d more)", n)
	}
	return &fault.Error{Code: ps[0].Code, What: what, Why: why, Hint: ps[0].Hint, Evidence: ps, Err: ps}
}

// place is where something stands in the file.
type place struct{ line, column int }

// excerpt shows the line of p with a caret, and the line before it.
func excerpt(text []byte, p place) string {
	lines := strings.Split(string(text), "\n")
	var b strings.Builder
	for n := max(1, p.line-1); n <= p.line && n <= len(lines); n++ {
		mark := ' '
		if n == p.line {
			mark = '>'
		}
		fmt.Fprintf(&b, "%c %4d | %s\n", mark, n, strings.TrimRight(lines[n-1], "\r"))
	}
	fmt.Fprintf(&b, "       | %s^\n", strings.Repeat(" ", max(0, p.column-1)))
	return b.String()
}

// nearest is the known word that word was probably meant to be, or nothing.
func nearest(word string, known []string) string {
	best, least := "", 1+len(word)/3
	for _, k := range known {
		if d := distance(strings.ToLower(word), k); d <= least && (best == "" || d < distance(word, best)) {
			best = k
		}
	}
	return best
}

// distance is Levenshtein's.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		last := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := last
			if a[i] != b[j] {
				cost++
			}
			last = row[j+1]
			row[j+1] = min(cost, row[j]+1, last+1)
		}
	}
	return row[len(b)]
}

func (s *shape) sorted() Problems {
	slices.SortStableFunc(s.problems, func(a, b Problem) int {
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		return a.Column - b.Column
	})
	return s.problems
}
