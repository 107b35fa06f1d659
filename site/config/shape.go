package config

import (
	"encoding"
	"fmt"
	"reflect"
	"strings"

	"github.com/goccy/go-yaml/ast"

	"github.com/novacron/afterimage/site/fault"
)

// shape walks a YAML tree beside the Go types that it is to fill. It collects
// problems, and where every path stands, for the judgement of the meaning.
type shape struct {
	path     string
	text     []byte
	places   map[string]place // by path, such as groups[0].name
	problems Problems
}

func (s *shape) report(code fault.Code, at place, path, what, hint string) {
	s.problems = append(s.problems, Problem{Code: code, File: s.path, Line: at.line, Column: at.column,
		Path: path, What: what, Hint: hint, Excerpt: excerpt(s.text, at)})
}

var textual = reflect.TypeFor[encoding.TextUnmarshaler]()

// walk judges n, which is to fill a value of type t.
func (s *shape) walk(n ast.Node, t reflect.Type, path string) {
	n = bare(n)
	if _, seen := s.places[path]; !seen {
		s.places[path] = placeOf(n)
	}
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if n.Type() == ast.NullType {
		s.report(fault.ConfigValue, placeOf(n), path, fmt.Sprintf("%s has no value", last(path)), "give it a value or remove the key")
		return
	}
	switch {
	case reflect.PointerTo(t).Implements(textual):
		s.scalar(n, path, func(text string) error {
			return reflect.New(t).Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(text))
		})
	case t.Kind() == reflect.Struct:
		s.mapping(n, t, path)
	case t.Kind() == reflect.Slice:
		s.sequence(n, t.Elem(), path)
	case t.Kind() == reflect.String:
		s.scalar(n, path, func(string) error { return nil })
	default:
		panic("configuration type " + t.String() + " is not foreseen")
	}
}

func (s *shape) mapping(n ast.Node, t reflect.Type, path string) {
	var pairs []*ast.MappingValueNode
	switch m := n.(type) {
	case *ast.MappingNode:
		pairs = m.Values
	case *ast.MappingValueNode:
		pairs = []*ast.MappingValueNode{m}
	default:
		s.report(fault.ConfigValue, placeOf(n), path, fmt.Sprintf("%s is %s, want keys and values", last(path), kind(n)), "known keys: "+strings.Join(keys(t), ", "))
		return
	}
	seen := map[string]place{}
	for _, kv := range pairs {
		key, at := kv.Key.String(), placeOf(kv.Key)
		key = strings.Trim(key, `"'`)
		if first, twice := seen[key]; twice {
			s.report(fault.ConfigDuplicate, at, join(path, key), fmt.Sprintf("key %q is given twice", key), fmt.Sprintf("it stands in line %d already", first.line))
			continue
		}
		seen[key] = at
		field, ok := fieldOf(t, key)
		if !ok {
			hint := "known keys here: " + strings.Join(keys(t), ", ")
			if near := nearest(key, keys(t)); near != "" {
				hint = fmt.Sprintf("did you mean %q? ", near) + hint
			}
			s.report(fault.ConfigKey, at, join(path, key), fmt.Sprintf("unknown key %q", key), hint)
			continue
		}
		s.walk(kv.Value, field.Type, join(path, key))
	}
}

func (s *shape) sequence(n ast.Node, t reflect.Type, path string) {
	q, ok := n.(*ast.SequenceNode)
	if !ok {
		s.report(fault.ConfigValue, placeOf(n), path, fmt.Sprintf("%s is %s, want a list", last(path), kind(n)), "begin each entry with \"- \", or write [a, b]")
		return
	}
	for i, v := range q.Values {
		s.walk(v, t, fmt.Sprintf("%s[%d]", path, i))
	}
}

func (s *shape) scalar(n ast.Node, path string, parse func(string) error) {
	v, ok := n.(ast.ScalarNode)
	if !ok {
		s.report(fault.ConfigValue, placeOf(n), path, fmt.Sprintf("%s is %s, want a single value", last(path), kind(n)), "")
		return
	}
	text := v.GetToken().Value
	if str, ok := n.(*ast.StringNode); ok {
		text = str.Value
	}
	if err := parse(text); err != nil {
		s.report(fault.ConfigValue, placeOf(n), path, err.Error(), "")
	}
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

// fieldOf finds the field of t that key fills.
func fieldOf(t reflect.Type, key string) (reflect.StructField, bool) {
	for i := range t.NumField() {
		if name, _, _ := strings.Cut(t.Field(i).Tag.Get("yaml"), ","); name == key {
			return t.Field(i), true
		}
	}
	return reflect.StructField{}, false
}

func keys(t reflect.Type) []string {
	var ks []string
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("yaml"), ",")
		ks = append(ks, name)
	}
	return ks
}

func kind(n ast.Node) string {
	switch n.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		return "a mapping"
	case *ast.SequenceNode:
		return "a list"
	case *ast.AliasNode:
		return "an alias"
	}
	return "a single value"
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
