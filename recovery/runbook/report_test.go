package runbook

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A run's report is one page and one file of data; what a guest or a program wrote is
// shown as text, and only that.
func TestReportOfARunMatchesGolden(t *testing.T) {
	past := History{{Runbook: "shop", Mode: Test, Ended: noon, RTO: time.Minute, Steps: map[string]time.Duration{}}}
	p := NewPlan(mustRead(t, "shop.yml"), Test, "latest", past)
	past[0].Steps[p.Actions[0].Key()] = 1500 * time.Millisecond
	p = NewPlan(mustRead(t, "shop.yml"), Test, "latest", past)
	r := Run{ID: "shop-test-1", Plan: p, Digest: "abcdef", Order: Order{Operator: "ann <ann@example>", Forced: true}, Begun: noon}
	s := NewState(len(p.Actions))
	n := 0
	entry := func(ev Event, id int, at time.Duration, detail, output string) {
		t.Helper()
		if err := s.add(Entry{N: n, Time: noon.Add(at), Event: ev, Action: id, Detail: detail, Output: output}); err != nil {
			t.Fatal(err)
		}
		n++
	}
	for _, a := range p.Actions {
		at := time.Duration(a.ID) * time.Second
		entry(EventStarted, a.ID, at, "", "")
		if a.Step.Kind == Notify {
			entry(EventFailed, a.ID, at+500*time.Millisecond, "exit status 1", "<script>alert(1)</script>\n")
			entry(EventGaveUp, a.ID, at+600*time.Millisecond, "", "")
			continue
		}
		entry(EventDone, a.ID, at+800*time.Millisecond, "", "")
	}
	entry(EventEnded, -1, time.Minute, "", "")
	out := NewReport(r, s, "b", noon.Add(time.Hour))
	out.Machines = []ReportMachine{
		{Machine: "db", Group: "default/db", Point: "#1.7", Chain: "00ff", Picture: []byte("\x89PNG"), Text: "login: <b>\n"},
		{Machine: "web", Group: "acme/web", Loss: &Loss{Known: true, Seconds: 1.5, Writes: 3, Bytes: 12288}, Why: "the machine has no screen"},
	}
	if out.Held() || out.RTO <= 0 || out.Expected <= 0 {
		t.Errorf("held %v, RTO %v, expected %v", out.Held(), out.RTO, out.Expected)
	}
	page, err := out.HTML()
	if err != nil {
		t.Fatal(err)
	}
	data, err := out.JSON()
	if err != nil {
		t.Fatal(err)
	}
	for _, active := range []string{"<script", "<b>", "src=\"h", "href="} {
		if bytes.Contains(page, []byte(active)) {
			t.Errorf("the page has %s", active)
		}
	}
	for name, got := range map[string][]byte{"report.html.golden": page, "report.json.golden": data} {
		path := filepath.Join("testdata", name)
		if *update {
			if err := os.WriteFile(path, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(want, got) {
			t.Errorf("%s differs (go test -update rewrites it): %v", name, err)
		}
	}
}
