package runbook

import (
	"errors"
	"fmt"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// maxFileBytes bounds what is parsed; a runbook has a few kilobytes.
const maxFileBytes = 1 << 20

// tree parses text as one YAML document.
func tree(text []byte) (n ast.Node, at Place, what string) {
	start := Place{1, 1}
	if len(text) > maxFileBytes {
		return nil, start, "the file is larger than 1 MiB"
	}
	file, err := parser.ParseBytes(text, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		at, what = start, err.Error()
		var y yaml.Error
		if errors.As(err, &y) {
			what = y.GetMessage()
			if t := y.GetToken(); t != nil && t.Position != nil {
				at = Place{t.Position.Line, t.Position.Column}
			}
		}
		return nil, at, what
	}
	for _, d := range file.Docs {
		switch {
		case d.Body == nil:
		case n != nil:
			return nil, placeOf(d.Body), "a second document begins here"
		default:
			n = d.Body
		}
	}
	if n == nil {
		return nil, start, "the file is empty"
	}
	return n, start, ""
}

// placeOf is where n begins: for a mapping its first key.
func placeOf(n ast.Node) Place {
	switch m := n.(type) {
	case *ast.MappingNode:
		if len(m.Values) > 0 && !m.IsFlowStyle {
			return placeOf(m.Values[0].Key)
		}
	case *ast.MappingValueNode:
		return placeOf(m.Key)
	}
	if n != nil {
		if t := n.GetToken(); t != nil && t.Position != nil {
			return Place{max(1, t.Position.Line), max(1, t.Position.Column)}
		}
	}
	return Place{1, 1}
}

// bare is n without anchors and tags.
func bare(n ast.Node) ast.Node {
	for {
		switch w := n.(type) {
		case *ast.AnchorNode:
			n = w.Value
		case *ast.TagNode:
			n = w.Value
		default:
			return n
		}
	}
}

// form names what n is, for sentences.
func form(n ast.Node) string {
	switch n.(type) {
	case nil, *ast.NullNode:
		return "empty"
	case *ast.MappingNode, *ast.MappingValueNode:
		return "a mapping"
	case *ast.SequenceNode:
		return "a list"
	case *ast.AliasNode:
		return "an alias"
	}
	return "a single value"
}

// entry is a key of a mapping and what it has.
type entry struct {
	key   string
	at    Place
	value ast.Node
	path  string
}

// reader walks a tree and collects what is wrong with it, and where everything stands.
type reader struct {
	file     string
	text     []byte
	places   map[string]Place
	problems Problems
}

// maxProblems is how many are told at once.
const maxProblems = 100

func (r *reader) report(code Code, at Place, hint, what string, args ...any) {
	if len(r.problems) == maxProblems {
		return
	}
	r.problems = append(r.problems, Problem{Code: code, File: r.file, Place: at, What: fmt.Sprintf(what, args...), Hint: hint, Excerpt: excerpt(r.text, at)})
}

// entries are those of a mapping; double keys are reported and left out.
func (r *reader) entries(n ast.Node, path, want string) []entry {
	var pairs []*ast.MappingValueNode
	switch m := bare(n).(type) {
	case *ast.MappingNode:
		pairs = m.Values
	case *ast.MappingValueNode:
		pairs = []*ast.MappingValueNode{m}
	default:
		r.report(CodeValue, placeOf(n), want, "%s is %s, want keys and values", last(path), form(bare(n)))
		return nil
	}
	var out []entry
	seen := map[string]Place{}
	for _, kv := range pairs {
		e := entry{key: strings.Trim(kv.Key.String(), `"'`), at: placeOf(kv.Key), value: bare(kv.Value)}
		e.path = join(path, e.key)
		if first, twice := seen[e.key]; twice {
			r.report(CodeDuplicate, e.at, fmt.Sprintf("it stands in line %d already", first.Line), "key %q is given twice", e.key)
			continue
		}
		seen[e.key] = e.at
		r.places[e.path] = placeOf(e.value)
		out = append(out, e)
	}
	return out
}

// items are those of a list.
func (r *reader) items(n ast.Node, path string) []ast.Node {
	q, ok := bare(n).(*ast.SequenceNode)
	if !ok {
		r.report(CodeValue, placeOf(n), `begin each entry with "- ", or write [a, b]`, "%s is %s, want a list", last(path), form(bare(n)))
		return nil
	}
	out := make([]ast.Node, 0, len(q.Values))
	for i, v := range q.Values {
		v = bare(v)
		r.places[fmt.Sprintf("%s[%d]", path, i)] = placeOf(v)
		out = append(out, v)
	}
	return out
}

// scalar is the text of a single value.
func (r *reader) scalar(n ast.Node, path string) (string, bool) {
	n = bare(n)
	if _, null := n.(*ast.NullNode); null || n == nil {
		r.report(CodeValue, placeOf(n), "give it a value or remove the key", "%s has no value", last(path))
		return "", false
	}
	switch v := n.(type) {
	case *ast.StringNode:
		return v.Value, true
	case *ast.LiteralNode:
		return v.Value.Value, true
	case ast.ScalarNode:
		return v.GetToken().Value, true
	}
	r.report(CodeValue, placeOf(n), "", "%s is %s, want a single value", last(path), form(n))
	return "", false
}

func (r *reader) unknown(e entry, known []string) {
	hint := "known keys here: " + strings.Join(known, ", ")
	if near := nearest(e.key, known); near != "" {
		hint = fmt.Sprintf("did you mean %q? ", near) + hint
	}
	r.report(CodeKey, e.at, hint, "unknown key %q", e.key)
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// last is the name of the innermost thing of path, for sentences.
func last(path string) string {
	if path == "" {
		return "the file"
	}
	return path[strings.LastIndexByte(path, '.')+1:]
}

// nearest is the known word that word was probably meant to be, or nothing.
func nearest(word string, known []string) string {
	best, least := "", 1+len(word)/3
	for _, k := range known {
		if d := distance(word, k); d <= least && (best == "" || d < distance(word, best)) {
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
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
