package runbook

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"
)

// Parse reads a file; file is what problems name. What is wrong with its shape is
// Problems. Meaning is Check's.
func Parse(file string, text []byte) (*Runbook, error) {
	r := &reader{file: file, text: text, places: map[string]Place{}}
	root, at, what := tree(text)
	if root == nil {
		hint := "indentation is spaces only; every key is followed by a colon and a space"
		if strings.Contains(string(text), "\t") {
			hint = "the file holds a tab: YAML is indented with spaces only"
		}
		r.report(CodeSyntax, at, hint, "%s", what)
		return nil, r.problems
	}
	b := &Runbook{text: text, file: file, places: r.places}
	known := []string{"runbook", "machines", "vars", "boot"}
	for _, e := range r.entries(root, "", "known keys: "+strings.Join(known, ", ")) {
		switch e.key {
		case "runbook":
			b.Name, _ = r.scalar(e.value, e.path)
		case "machines":
			r.machines(b, e)
		case "vars":
			r.vars(b, e)
		case "boot":
			for i, n := range r.items(e.value, e.path) {
				b.Boot = append(b.Boot, r.boot(n, fmt.Sprintf("%s[%d]", e.path, i)))
			}
		default:
			r.unknown(e, known)
		}
	}
	if err := r.problems.orNil(); err != nil {
		return nil, err
	}
	return b, nil
}

func (r *reader) machines(b *Runbook, e entry) {
	for _, m := range r.entries(e.value, e.path, "machines: {db: GROUP, web: GROUP}") {
		group, _ := r.scalar(m.value, m.path)
		b.Machines = append(b.Machines, Machine{m.key, group})
	}
}

func (r *reader) vars(b *Runbook, e entry) {
	for _, v := range r.entries(e.value, e.path, "vars: {lan: {test: isolated, live: br0}}") {
		out := Var{Name: v.key}
		if _, one := v.value.(ast.ScalarNode); one {
			out.Test, _ = r.scalar(v.value, v.path)
			out.Live = out.Test
			b.Vars = append(b.Vars, out)
			continue
		}
		given := map[string]bool{}
		for _, m := range r.entries(v.value, v.path, "test: for drills, live: for the rest") {
			given[m.key] = true
			switch m.key {
			case "test":
				out.Test, _ = r.scalar(m.value, m.path)
			case "live":
				out.Live, _ = r.scalar(m.value, m.path)
			default:
				r.unknown(m, []string{"test", "live"})
			}
		}
		if !given["test"] || !given["live"] {
			r.report(CodeAbsent, v.at, "write {test: VALUE, live: VALUE}, or one value for both", "variable %q has not a value for test and one for live", v.key)
		}
		b.Vars = append(b.Vars, out)
	}
}

var bootKeys = []string{"name", "after", "parallel", "steps", "wait"}

func (r *reader) boot(n ast.Node, path string) Boot {
	var b Boot
	for _, e := range r.entries(n, path, "known keys: "+strings.Join(bootKeys, ", ")) {
		switch e.key {
		case "name":
			b.Name, _ = r.scalar(e.value, e.path)
		case "after":
			b.After = []string{}
			b.After = append(b.After, r.words(e)...)
		case "parallel":
			b.Parallel = r.number(e, 1, 1000)
		case "wait":
			b.Wait = r.span(e)
		case "steps":
			for i, s := range r.items(e.value, e.path) {
				b.Steps = append(b.Steps, r.step(s, fmt.Sprintf("%s[%d]", e.path, i)))
			}
		default:
			r.unknown(e, bootKeys)
		}
	}
	return b
}

// common are the keys that every step may have beside its kind.
var common = []string{"name", "machine", "in", "timeout", "retries", "pause", "on_failure"}

// step reads one: exactly one of its keys is a kind, and its value the kind's own.
func (r *reader) step(n ast.Node, path string) Step {
	var s Step
	var named []string
	for _, k := range kinds {
		named = append(named, string(k))
	}
	es := r.entries(n, path, "a step is one of "+strings.Join(named, ", ")+", such as: - start: db")
	for _, e := range es {
		if !slices.Contains(kinds, Kind(e.key)) {
			continue
		}
		if s.Kind != "" {
			r.report(CodeStep, e.at, `begin the second one with "- " of its own`, "a step does one thing, this one %s and %s", s.Kind, e.key)
			continue
		}
		s.Kind = Kind(e.key)
		r.kind(&s, e)
	}
	for _, e := range es {
		switch e.key {
		case "name":
			s.Name, _ = r.scalar(e.value, e.path)
		case "machine":
			if s.Machine != "" {
				r.report(CodeDuplicate, e.at, fmt.Sprintf("%s: names the machine already", s.Kind), "machine is named twice")
			}
			s.Machine, _ = r.scalar(e.value, e.path)
		case "in":
			for _, m := range r.words(e) {
				if !slices.Contains(Modes(), Mode(m)) {
					r.report(CodeValue, placeOf(e.value), "modes are test, planned, unplanned, failback", "%q is no mode", m)
				}
				s.In = append(s.In, Mode(m))
			}
		case "timeout":
			s.Timeout = r.span(e)
		case "pause":
			s.Pause = r.span(e)
		case "retries":
			s.Retries = r.number(e, 0, 1000)
		case "on_failure":
			s.OnFailure = Policy(r.oneOf(e, string(Halt), string(Continue), string(Abort)))
		case "check":
			if s.Kind != Script {
				r.strange(s, e, named)
				continue
			}
			s.Check = r.argv(e)
		case "idempotent":
			if s.Kind != Script {
				r.strange(s, e, named)
				continue
			}
			s.Idempotent = r.truth(e)
		default:
			r.strange(s, e, named)
		}
	}
	if s.Kind == "" && len(es) > 0 && !slices.ContainsFunc(es, func(e entry) bool { return !slices.Contains(common, e.key) }) {
		r.report(CodeStep, es[0].at, "a step is one of "+strings.Join(named, ", "), "the step does nothing")
	}
	return s
}

// strange judges a key of a step that is not common to all: of its kind, or unknown.
func (r *reader) strange(s Step, e entry, named []string) {
	switch {
	case Kind(e.key) == s.Kind || slices.Contains(kinds, Kind(e.key)):
	case s.Kind == "":
		hint := "a step is one of " + strings.Join(named, ", ")
		if near := nearest(e.key, named); near != "" {
			hint = fmt.Sprintf("did you mean %q? ", near) + hint
		}
		r.report(CodeStep, e.at, hint, "unknown step %q", e.key)
	default:
		r.unknown(e, common)
	}
}

// words is one word or a list of them.
func (r *reader) words(e entry) []string {
	if _, one := e.value.(ast.ScalarNode); one {
		text, _ := r.scalar(e.value, e.path)
		return []string{text}
	}
	var out []string
	for i, n := range r.items(e.value, e.path) {
		if text, ok := r.scalar(n, fmt.Sprintf("%s[%d]", e.path, i)); ok {
			out = append(out, text)
		}
	}
	return out
}

func (r *reader) number(e entry, least, most int) int {
	text, ok := r.scalar(e.value, e.path)
	if !ok {
		return 0
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < least || n > most {
		r.report(CodeValue, placeOf(e.value), fmt.Sprintf("want %d to %d", least, most), "%s %q is no number in range", e.key, text)
	}
	return n
}

func (r *reader) span(e entry) time.Duration {
	text, ok := r.scalar(e.value, e.path)
	if !ok {
		return 0
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 || d > 24*time.Hour {
		r.report(CodeValue, placeOf(e.value), "want 500ms, 30s, 5m, at most 24h", "%s %q is no time span", e.key, text)
		return 0
	}
	return d
}

func (r *reader) oneOf(e entry, words ...string) string {
	text, ok := r.scalar(e.value, e.path)
	if ok && !slices.Contains(words, text) {
		r.report(CodeValue, placeOf(e.value), "want "+strings.Join(words, ", "), "%s %q is not understood", e.key, text)
	}
	return text
}

func (r *reader) truth(e entry) bool {
	return r.oneOf(e, "true", "false") == "true"
}
