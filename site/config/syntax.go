package config

import (
	"errors"
	"reflect"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"github.com/novacron/afterimage/site/fault"
)

// maxFileBytes bounds what is parsed; a configuration has a few kilobytes.
const maxFileBytes = 1 << 20

// parse reads text as one YAML document.
func parse(path string, text []byte) (ast.Node, Problems) {
	trouble := func(p place, what, hint string) Problems {
		return Problems{{Code: fault.ConfigSyntax, File: path, Line: p.line, Column: p.column, What: what, Hint: hint, Excerpt: excerpt(text, p)}}
	}
	start := place{1, 1}
	if len(text) > maxFileBytes {
		return nil, Problems{{Code: fault.ConfigSyntax, File: path, Line: 1, Column: 1, What: "the file is larger than 1 MiB"}}
	}
	file, err := parser.ParseBytes(text, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		at, what := start, err.Error()
		var y yaml.Error
		if errors.As(err, &y) {
			what = y.GetMessage()
			if t := y.GetToken(); t != nil && t.Position != nil {
				at = place{t.Position.Line, t.Position.Column}
			}
		}
		hint := "indentation is spaces only; every key is followed by a colon and a space"
		if strings.Contains(string(text), "\t") {
			hint = "the file holds a tab: YAML is indented with spaces only"
		}
		return nil, trouble(at, what, hint)
	}
	var roots []ast.Node
	for _, d := range file.Docs {
		if d.Body != nil {
			roots = append(roots, d.Body)
		}
	}
	switch len(roots) {
	case 0:
		return nil, trouble(start, "the file is empty", "a site needs at least site: and data:")
	case 1:
		return roots[0], nil
	}
	return nil, trouble(placeOf(roots[1]), "a second document begins here", "a site has one document; remove the --- line")
}

// decode fills c from text that the walk found to be in shape.
func decode(text []byte, c *Config) error {
	return yaml.UnmarshalWithOptions(text, c, yaml.Strict())
}

// undecodable is a fault that the walk did not foresee.
func (s *shape) undecodable(err error) Problems {
	at, what := place{1, 1}, err.Error()
	var y yaml.Error
	if errors.As(err, &y) {
		what = y.GetMessage()
		if t := y.GetToken(); t != nil && t.Position != nil {
			at = place{t.Position.Line, t.Position.Column}
		}
	}
	s.report(fault.ConfigValue, at, "", what, "")
	return s.sorted()
}

// YAML is c as a file, with everything that has a default spelt out and secrets
// in machine arguments masked.
func (c *Config) YAML() ([]byte, error) {
	return yaml.MarshalWithOptions(c.Masked(), yaml.Indent(2), yaml.IndentSequence(true))
}

// JSON is c as YAML shows it, for encoding/json.
func (c *Config) JSON() (any, error) {
	text, err := c.YAML()
	if err != nil {
		return nil, err
	}
	var v map[string]any
	return v, yaml.Unmarshal(text, &v)
}

func typeOf(v any) reflect.Type { return reflect.TypeOf(v).Elem() }

// placeOf is where n begins: for a mapping its first key.
func placeOf(n ast.Node) place {
	switch m := n.(type) {
	case *ast.MappingNode:
		if len(m.Values) > 0 && !m.IsFlowStyle {
			return placeOf(m.Values[0].Key)
		}
	case *ast.MappingValueNode:
		return placeOf(m.Key)
	}
	if t := n.GetToken(); t != nil && t.Position != nil {
		return place{t.Position.Line, t.Position.Column}
	}
	return place{1, 1}
}
