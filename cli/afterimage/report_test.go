package main

import (
	"strings"
	"testing"

	"github.com/novacron/afterimage/site/control"
)

// TestAVerdictClaimsNoMoreThanWasChecked: anybody can make two keys and vouch for a
// ledger of his own with the second.
func TestAVerdictClaimsNoMoreThanWasChecked(t *testing.T) {
	v := control.ReportVerdict{Report: control.Report{Name: "web-drill-1", Kind: "drill", Group: "default/web", N: 1}, Site: "a", Pin: "sha256:A", By: "b", ByPin: "sha256:B", Entries: 2}
	for _, c := range []struct {
		pin, by        bool
		whole, vouched bool
		unchecked      int
	}{{false, false, false, false, 2}, {true, false, false, false, 1}, {false, true, false, true, 1}, {true, true, true, true, 0}} {
		v.PinChecked, v.ByPinChecked = c.pin, c.by
		said := (&printer{world: &world{}}).verdict(v)
		if strings.Contains(said, "as it was written") != c.whole || strings.Contains(said, "vouched for by") != c.vouched || strings.Count(said, "(not checked)") != c.unchecked {
			t.Errorf("pins checked %v and %v:\n%s", c.pin, c.by, said)
		}
	}
}
