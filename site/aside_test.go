package site

import (
	"os"
	"path/filepath"
	"testing"
)

// Wherever a crash interrupts it, the order is carried out by the next opening, once; what
// is not ordered is not done.
func TestAsideIsCarriedOutAfterACrash(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name                   string
		old, next, done, order bool // what is there
		want                   string
		aside                  bool
	}{
		{"before the order", true, true, false, false, "old", false},
		{"ordered", true, true, false, true, "new", true},
		{"set aside", false, true, true, true, "new", true},
		{"in place", false, false, true, true, "new", true},
		{"nothing", true, false, false, false, "old", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			g := newSite(w.configure("a", "groups:\n- {name: web}\n"), Options{}.withDefaults()).groups[0]
			put := func(dir, text string) {
				t.Helper()
				if err := os.MkdirAll(dir, 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(dir, "which"), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.MkdirAll(g.asideRoot(), 0o700); err != nil {
				t.Fatal(err)
			}
			if c.old {
				put(g.dir, "old")
			}
			if c.next {
				put(g.nextDir(), "new")
			}
			if c.done {
				put(g.asideDir("web@1"), "old")
				if !c.next {
					put(g.dir, "new")
				}
			}
			if err := os.MkdirAll(filepath.Dir(g.dir), 0o700); err != nil {
				t.Fatal(err)
			}
			if c.order {
				if err := g.orderAside("web@1"); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 {
				if err := g.setAside(); err != nil {
					t.Fatal(err)
				}
				if b, err := os.ReadFile(filepath.Join(g.dir, "which")); err != nil || string(b) != c.want {
					t.Errorf("the group's journal is the %s one, want the %s: %v", b, c.want, err)
				}
				b, err := os.ReadFile(filepath.Join(g.asideDir("web@1"), "which"))
				if c.aside != (err == nil && string(b) == "old") {
					t.Errorf("set aside is %q, %v", b, err)
				}
				if _, err := os.Stat(g.nextDir()); err == nil {
					t.Error("what is of no use is left")
				}
			}
			if name, err := g.nextAside(); err != nil || name != map[bool]string{true: "web@2", false: "web@1"}[c.aside] {
				t.Errorf("the next is %s, %v", name, err)
			}
		})
	}
}
