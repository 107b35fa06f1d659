package config

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

// Who writes a configuration finds all that can stand in it in the sample, and what the
// sample has is understood.
func TestSampleHasEveryKey(t *testing.T) {
	file := filepath.Join(t.TempDir(), "sample.yml")
	if err := os.WriteFile(file, []byte(Sample), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(file); err != nil {
		t.Fatal(err)
	}
	c, err := LoadAsWritten(file)
	if err != nil {
		t.Fatal(err)
	}
	set := map[string]bool{}
	keysIn(reflect.ValueOf(*c), set)
	want := map[string]bool{}
	keysOf(reflect.TypeFor[Config](), want)
	for key := range want {
		if !set[key] {
			t.Errorf("no %s in the sample", key)
		}
	}
	if len(want) < 100 {
		t.Errorf("%d keys were looked for", len(want))
	}
}

// yamlKey is a field's name in a file; empty: it has none.
var yamlKey = regexp.MustCompile(`^[a-z_]+`)

// keysOf gathers TYPE.key of t and of what it is made of.
func keysOf(t reflect.Type, keys map[string]bool) {
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice:
		keysOf(t.Elem(), keys)
	case reflect.Struct:
		for f := range t.Fields() {
			if key := yamlKey.FindString(f.Tag.Get("yaml")); key != "" && !keys[t.Name()+"."+key] {
				keys[t.Name()+"."+key] = true
				keysOf(f.Type, keys)
			}
		}
	}
}

// keysIn gathers those that v has set.
func keysIn(v reflect.Value, keys map[string]bool) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			keysIn(v.Elem(), keys)
		}
	case reflect.Slice:
		for i := range v.Len() {
			keysIn(v.Index(i), keys)
		}
	case reflect.Struct:
		for f, x := range v.Fields() {
			if key := yamlKey.FindString(f.Tag.Get("yaml")); key != "" && !x.IsZero() {
				keys[v.Type().Name()+"."+key] = true
				keysIn(x, keys)
			}
		}
	}
}

// A default that is named in the sample is the one that a file without it gets.
func TestSampleNamesTheHistoryThatIsKept(t *testing.T) {
	var rungs []string
	for _, r := range DefaultHistory() {
		rungs = append(rungs, "{every: "+r.Every.String()+", for: "+r.For.String()+"}")
	}
	for _, r := range rungs {
		if !strings.Contains(Sample, r) {
			t.Errorf("the sample does not name %s", r)
		}
	}
}
