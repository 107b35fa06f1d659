package runbook

import (
	"fmt"
	"slices"
	"strings"
)

// Code names a kind of fault of a file; append-only.
type Code string

// Codes.
const (
	CodeSyntax    Code = "syntax"
	CodeKey       Code = "unknown-key"
	CodeStep      Code = "unknown-step"
	CodeValue     Code = "value"
	CodeAbsent    Code = "missing-key"
	CodeDuplicate Code = "duplicate"
	CodeMachine   Code = "unknown-machine"
	CodeGroup     Code = "unknown-group"
	CodeBoot      Code = "unknown-boot-group"
	CodeCycle     Code = "cycle"
	CodeProgram   Code = "program-not-allowed"
	CodeVariable  Code = "unknown-variable"
)

// Place is where something stands; both count from 1, columns in runes.
type Place struct {
	Line   int `json:"line"`
	Column int `json:"column"`
}

// Problem is one fault of a file.
type Problem struct {
	Code Code   `json:"code"`
	File string `json:"file"`
	Place
	What    string `json:"what"`
	Hint    string `json:"hint,omitempty"`
	Excerpt string `json:"excerpt"` // the line, the one before it, and a caret
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

// orNil is the problems in the file's order, nil when there are none.
func (ps Problems) orNil() error {
	if len(ps) == 0 {
		return nil
	}
	slices.SortStableFunc(ps, func(a, b Problem) int {
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		return a.Column - b.Column
	})
	return ps
}

// excerpt shows the line of p with a caret, and the line before it.
func excerpt(text []byte, p Place) string {
	lines := strings.Split(string(text), "\n")
	var b strings.Builder
	for n := max(1, p.Line-1); n <= p.Line && n <= len(lines); n++ {
		mark := ' '
		if n == p.Line {
			mark = '>'
		}
		fmt.Fprintf(&b, "%c %4d | %s\n", mark, n, strings.TrimRight(lines[n-1], "\r"))
	}
	fmt.Fprintf(&b, "       | %s^\n", strings.Repeat(" ", max(0, p.Column-1)))
	return b.String()
}
