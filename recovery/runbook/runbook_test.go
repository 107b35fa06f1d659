package runbook

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite golden files")

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (run with -update to accept):\n%s", path, got)
	}
}

var facts = Facts{Groups: []string{"db", "default/db", "queue", "acme/web", "a", "b", "c", "d"},
	Programs: []string{"/usr/local/bin/switch-dns", "/usr/local/bin/dns-is", "/usr/local/bin/page", "/usr/local/bin/once"}}

// read parses and checks a file of testdata.
func read(t *testing.T, name string) (*Runbook, error) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	b, err := Parse(filepath.Base(name), text)
	if err != nil {
		return nil, err
	}
	return b, b.Check(facts)
}

func mustRead(t *testing.T, name string) *Runbook {
	t.Helper()
	b, err := read(t, name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestPlansAreAsWritten(t *testing.T) {
	past := History{
		{Runbook: "shop", Mode: Test, Steps: map[string]time.Duration{"data/start db": 1200 * time.Millisecond, "data/agent db": 9 * time.Second, "data/start queue": time.Second, "front/start web": 3 * time.Second}},
		{Runbook: "other", Mode: Test, Steps: map[string]time.Duration{"data/start db": time.Hour}},
		{Runbook: "shop", Mode: Unplanned, Steps: map[string]time.Duration{"data/start db": 1500 * time.Millisecond, "front/start web": 2 * time.Second}},
		{Runbook: "shop", Mode: Test, Steps: map[string]time.Duration{"data/start db": 1300 * time.Millisecond}},
	}
	n := 0
	for _, name := range []string{"shop", "tree"} {
		b := mustRead(t, name+".yml")
		for _, m := range Modes() {
			p := NewPlan(b, m, "latest", past)
			golden(t, filepath.Join("testdata", fmt.Sprintf("%s-%s.golden", name, m)), p.String())
			sound(t, p)
			if again := NewPlan(mustRead(t, name+".yml"), m, "latest", nil); again.Digest() != p.Digest() {
				t.Errorf("%s %s: the same file gives another plan", name, m)
			}
			n++
		}
	}
	if a, b := NewPlan(mustRead(t, "shop.yml"), Planned, "latest", nil), NewPlan(mustRead(t, "shop.yml"), Planned, "-5m", nil); a.Digest() == b.Digest() {
		t.Error("the moment is not part of a plan's hash")
	}
	t.Logf("%d plans", n)
}

// sound fails a plan whose order is none.
func sound(t *testing.T, p Plan) {
	t.Helper()
	for i, a := range p.Actions {
		if a.ID != i {
			t.Errorf("action %d has id %d", i, a.ID)
		}
		for _, id := range a.After {
			if id >= i {
				t.Errorf("action %d comes after %d", i, id)
			}
		}
	}
}

func TestWrongFilesAreRefusedWithPlaceAndHint(t *testing.T) {
	files, err := filepath.Glob("testdata/invalid/*.yml")
	if err != nil || len(files) < 8 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	codes := map[Code]int{}
	for _, path := range files {
		name, _ := filepath.Rel("testdata", path)
		_, err := read(t, name)
		var ps Problems
		if !errors.As(err, &ps) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, p := range ps {
			codes[p.Code]++
			if p.Line < 1 || p.Column < 1 || !strings.Contains(p.Excerpt, "^") {
				t.Errorf("%s: no place: %+v", name, p)
			}
			if p.Hint == "" && p.Code != CodeSyntax && p.Code != CodeValue {
				t.Errorf("%s: no hint: %s", name, p.What)
			}
		}
		golden(t, strings.TrimSuffix(path, ".yml")+".golden", ps.Error())
	}
	for _, c := range []Code{CodeSyntax, CodeKey, CodeStep, CodeValue, CodeAbsent, CodeDuplicate, CodeMachine, CodeGroup, CodeBoot, CodeCycle, CodeProgram, CodeVariable} {
		if codes[c] == 0 {
			t.Errorf("no file shows code %s", c)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"testdata/*.yml", "testdata/invalid/*.yml"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			f.Fatal(err)
		}
		for _, path := range files {
			text, err := os.ReadFile(path)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(text)
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		b, err := Parse("x.yml", text)
		if err == nil {
			err = b.Check(facts)
		}
		var ps Problems
		switch {
		case err == nil:
			for _, m := range Modes() {
				p := NewPlan(b, m, "", nil)
				sound(t, p)
				_ = p.String()
			}
		case !errors.As(err, &ps) || len(ps) == 0:
			t.Errorf("refused with %v", err)
		default:
			for _, p := range ps {
				if p.Line < 1 || p.Column < 1 || p.Code == "" || p.What == "" {
					t.Errorf("no place or text: %+v", p)
				}
			}
		}
	})
}
