package fault

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"slices"
	"strings"
	"testing"
)

// declared reads the codes from table.go's source, so that a constant without a
// row is found.
func declared(t *testing.T) []string {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), "table.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var codes []string
	ast.Inspect(f, func(n ast.Node) bool {
		if l, ok := n.(*ast.BasicLit); ok && strings.HasPrefix(l.Value, `"AI-E0`) {
			codes = append(codes, strings.Trim(l.Value, `"`))
		}
		return true
	})
	return codes
}

func TestEveryCodeIsExplained(t *testing.T) {
	codes := declared(t)
	if len(codes) < 50 {
		t.Fatalf("only %d codes found in the source", len(codes))
	}
	var rows []string
	for _, e := range Table() {
		rows = append(rows, string(e.Code))
		for name, s := range map[string]string{"title": e.Title, "cause": e.Cause, "do": e.Do} {
			if s == "" {
				t.Errorf("%s: no %s", e.Code, name)
			}
		}
		if e.Exit == ExitOK {
			t.Errorf("%s: exit 0 for an error", e.Code)
		}
	}
	if !slices.Equal(codes, rows) {
		t.Errorf("constants and rows differ:\n%v\n%v", codes, rows)
	}
	if !slices.IsSorted(rows) || len(slices.Compact(slices.Clone(rows))) != len(rows) {
		t.Error("rows are not in order, or double")
	}
	t.Logf("%d codes", len(rows))
}

func TestLookupTakesEverySpelling(t *testing.T) {
	for _, s := range []Code{"AI-E0301", "E0301", "e0301", "301", "ai-e0301", " 0301 "} {
		if e, ok := Lookup(s); !ok || e.Code != GroupUnknown {
			t.Errorf("Lookup(%q) = %v, %v", s, e.Code, ok)
		}
	}
	for _, s := range []Code{"", "AI-E9999", "foo", "30111"} {
		if e, ok := Lookup(s); ok {
			t.Errorf("Lookup(%q) = %v", s, e.Code)
		}
	}
}

func TestErrorTravelsAsJSON(t *testing.T) {
	in := Wrap(PeerPin, "connect peer b", fs.ErrPermission).With(map[string]any{"seen": "sha256:00"})
	b, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	var out Error
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	if out.Error() != in.Error() || out.Exit() != ExitKey || out.Advice() != in.Advice() {
		t.Errorf("got %v / %d / %q", &out, out.Exit(), out.Advice())
	}
	wrapped := fmt.Errorf("more: %w", in)
	if !errors.Is(wrapped, fs.ErrPermission) || !errors.Is(wrapped, &Error{Code: PeerPin}) || !Is(wrapped, PeerPin) {
		t.Error("what lies beneath is not found")
	}
	if Of(errors.New("boom")).Code != Unexpected || Of(nil) != nil {
		t.Error("Of: wrong code")
	}
}
