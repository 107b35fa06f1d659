package runbook

import (
	"strings"
	"testing"
)

// Who writes a runbook finds all that can stand in it in the sample, which can be used.
func TestSampleHasEveryStep(t *testing.T) {
	b, err := Parse("sample.yml", []byte(Sample))
	if err != nil {
		t.Fatal(err)
	}
	programs := []string{"/usr/local/bin/probe", "/usr/local/bin/switch-dns", "/usr/local/bin/dns-is", "/usr/local/bin/warm-up", "/usr/local/bin/page"}
	if err := b.Check(Facts{Groups: []string{"acme/db", "web"}, Programs: programs}); err != nil {
		t.Fatal(err)
	}
	for _, m := range Modes() {
		if w := NewPlan(b, m, "latest", nil).Warnings; len(w) > 0 {
			t.Errorf("mode %s: %q", m, w)
		}
	}
	keys := append([]string{"runbook", "machines", "vars", "boot", "check", "idempotent", "how", "interfaces", "interface", "address", "gateway", "dns", "url", "status", "contains"}, bootKeys...)
	keys = append(keys, common...)
	for _, k := range kinds {
		keys = append(keys, string(k))
	}
	for _, k := range keys {
		if !strings.Contains(Sample, k+":") {
			t.Errorf("no %s: in the sample", k)
		}
	}
}
