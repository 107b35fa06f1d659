package testbed

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// countedIn is the names that a test file counts, with the numbers they must reach.
func countedIn(src []byte) (map[string]int, error) {
	f, err := parser.ParseFile(token.NewFileSet(), "", src, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	out := map[string]int{}
	ast.Inspect(f, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok || len(call.Args) != 4 || !isCounted(call.Fun) {
			return true
		}
		name, least := "", 0
		if l, ok := call.Args[1].(*ast.BasicLit); ok {
			name, err = strconv.Unquote(l.Value)
		}
		if l, ok := call.Args[3].(*ast.BasicLit); ok && err == nil {
			var n int64
			n, err = strconv.ParseInt(l.Value, 0, 0) // as Go reads it
			least = int(n)
		}
		out[name] += least
		return true
	})
	return out, err
}

// isCounted reports whether fun is scale.Counted or scale.CountedFew.
func isCounted(fun ast.Expr) bool {
	s, ok := fun.(*ast.SelectorExpr)
	if !ok || s.Sel.Name != "Counted" && s.Sel.Name != "CountedFew" {
		return false
	}
	x, ok := s.X.(*ast.Ident)
	return ok && x.Name == "scale"
}

// minimums is counted.txt.
func minimums(text string) map[string]int {
	out := map[string]int{}
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		if w := strings.Fields(line); len(w) == 2 {
			out[w[0]], _ = strconv.Atoi(w[1]) // 0 is too low for any test
		}
	}
	return out
}

// misses compares what tests count with what counted.txt asks for. Tests may be
// content with less each than they must count together.
func misses(counts, least map[string]int) []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		switch {
		case name == "" || counts[name] <= 0:
			out = append(out, "a test counts without a literal name and number: "+strconv.Quote(name))
		case least[name] < counts[name]:
			out = append(out, name+" is counted, and counted.txt asks for less than the tests: "+strconv.Itoa(least[name])+" of "+strconv.Itoa(counts[name]))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(least)) {
		if _, ok := counts[name]; !ok {
			out = append(out, name+" is in counted.txt, and no test counts it")
		}
	}
	return out
}

// Every count that a test prints is held against its number in a whole run.
func TestEveryCountIsInTheList(t *testing.T) {
	text, err := os.ReadFile("counted.txt")
	if err != nil {
		t.Fatal(err)
	}
	counts := map[string]int{}
	err = filepath.WalkDir("..", func(path string, e fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") || strings.Contains(path, "/testbed/scale/") || filepath.Dir(path) == "../testbed" {
			return err
		}
		src, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		in, err := countedIn(src)
		for name, n := range in {
			counts[name] += n
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range misses(counts, minimums(string(text))) {
		t.Error(m)
	}
}

func TestMissedCountsAreFound(t *testing.T) {
	const src = "package p\nfunc f() { scale.Counted(t, \"a\", n, 5); scale.Counted(t, \"a\", n, 2); scale.CountedFew(t, \"b\", n, 1); other.Counted(t, \"c\", n, 1) }"
	counts, err := countedIn([]byte(src))
	if err != nil || len(counts) != 2 || counts["a"] != 7 || counts["b"] != 1 {
		t.Fatalf("%v, %v", counts, err)
	}
	for _, c := range []struct {
		list string
		want int
	}{{"a 7\nb 1 # why", 0}, {"a 7", 1}, {"a 6\nb 1", 1}, {"a 7\nb 3\nc 1", 1}, {"a x\nb 1", 1}} {
		if got := misses(counts, minimums(c.list)); len(got) != c.want {
			t.Errorf("%q: %v, want %d", c.list, got, c.want)
		}
	}
}
