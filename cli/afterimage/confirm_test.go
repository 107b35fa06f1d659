package main

import (
	"strings"
	"testing"

	"github.com/novacron/afterimage/site/fault"
)

// An empty answer was once as good as the name of what has no tenant.
func TestConfirmingAsksForTheNameThatIsWanted(t *testing.T) {
	for noun, c := range map[string]struct {
		name string
		args []string
	}{
		"site": {"a", []string{"peer", "rotate", "--now"}},
		"peer": {"b", []string{"peer", "remove", "b"}},
		"run":  {"shop-test-20261122-120000", []string{"runbook", "abort", "shop-test-20261122-120000"}},
	} {
		ask := "Type the " + noun + "'s name to "
		if r := (stage{api: &fake{}, tty: true, stdin: c.name + "\n"}).run(t, c.args...); r.exit != 0 || !strings.Contains(r.stderr, ask) {
			t.Errorf("%s: exit %d\n%s", noun, r.exit, r.stderr)
		}
		for _, wrong := range []string{"\n", "web\n"} {
			if r := (stage{api: &fake{}, tty: true, stdin: wrong}).run(t, c.args...); r.exit != fault.ExitUsage || !strings.Contains(r.stderr, "type the "+noun+"'s name ("+c.name+")") {
				t.Errorf("%s, answered %q: exit %d\n%s", noun, wrong, r.exit, r.stderr)
			}
		}
	}
}
