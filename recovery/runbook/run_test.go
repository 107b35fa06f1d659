package runbook

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func begun(t *testing.T, dir string) *Run {
	t.Helper()
	r, err := Begin(dir, NewPlan(mustRead(t, "shop.yml"), Test, "latest", nil), Order{Operator: "ann"}, noon)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	for i := range 4 {
		for _, ev := range []Event{EventStarted, EventDone} {
			if err := r.Append(Entry{Time: noon.Add(time.Duration(i) * time.Second), Event: ev, Action: i}); err != nil {
				t.Fatal(err)
			}
		}
	}
	return r
}

func TestARunIsFoundAgain(t *testing.T) {
	dir := t.TempDir()
	r := begun(t, dir)
	if _, err := Open(dir, r.ID); !errors.Is(err, ErrRunning) {
		t.Errorf("a second holder: %v", err)
	}
	if l, err := Look(dir, r.ID); err != nil || len(l.Entries) != 8 {
		t.Errorf("look: %v", err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := Open(dir, r.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if s := again.State(); s.Actions[3].Phase != Ended || s.Actions[4].Phase != Idle || s.Word() != "unfinished" {
		t.Errorf("state %+v", s)
	}
	second := begun(t, dir)
	if err := os.Mkdir(filepath.Join(dir, "no-plan-yet"), 0o700); err != nil {
		t.Fatal(err)
	}
	if all, err := List(dir); err != nil || len(all) != 2 || second.ID == r.ID {
		t.Errorf("%d runs, %v", len(all), err)
	}
	for _, id := range []string{"", ".", "..", "../x", "x", "no-plan-yet", "a/b"} {
		if _, err := Open(dir, id); !errors.Is(err, ErrNoRun) {
			t.Errorf("run %q: %v", id, err)
		}
	}
}

// TestALogThatWasCutShortGoesOn cuts the log at every byte: what remains is a prefix
// of its entries, and more can be added.
func TestALogThatWasCutShortGoesOn(t *testing.T) {
	dir := t.TempDir()
	r := begun(t, dir)
	r.Close()
	path := filepath.Join(dir, r.ID, logFile)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	last := bytes.LastIndexByte(whole[:len(whole)-1], '\n') + 1
	for n := last - 1; n <= len(whole); n++ {
		if err := os.WriteFile(path, whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		want := bytes.Count(whole[:n], []byte("\n"))
		again, err := Open(dir, r.ID)
		if err != nil || len(again.Entries) != want {
			t.Fatalf("cut at %d: %v", n, err)
		}
		if err := errors.Join(again.Append(Entry{Event: EventStarted, Action: 5}), again.Close()); err != nil {
			t.Fatal(err)
		}
		if l, err := Look(dir, r.ID); err != nil || len(l.Entries) != want+1 {
			t.Fatalf("cut at %d and gone on: %v", n, err)
		}
	}
}

func TestAChangedRunIsRefused(t *testing.T) {
	dir := t.TempDir()
	r := begun(t, dir)
	r.Close()
	for name, change := range map[string]struct {
		file string
		to   func([]byte) []byte
	}{
		"a step of the plan":    {planFile, func(b []byte) []byte { return bytes.Replace(b, []byte("10.99.0.5:5432"), []byte("10.99.0.6:5432"), 1) }},
		"the digest":            {planFile, func(b []byte) []byte { return bytes.Replace(b, []byte(r.Digest[:8]), []byte("00000000"), 1) }},
		"an entry":              {logFile, func(b []byte) []byte { return bytes.Replace(b, []byte(`"done"`), []byte(`"gone"`), 1) }},
		"an entry taken out":    {logFile, func(b []byte) []byte { i := bytes.IndexByte(b, '\n'); return b[i+1:] }},
		"an entry twice":        {logFile, func(b []byte) []byte { i := bytes.IndexByte(b, '\n'); return append(bytes.Clone(b[:i+1]), b...) }},
		"a line that is no log": {logFile, func(b []byte) []byte { return append([]byte("hello\n"), b...) }},
	} {
		path := filepath.Join(dir, r.ID, change.file)
		was, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if now := change.to(was); bytes.Equal(now, was) {
			t.Errorf("%s: nothing was changed", name)
		} else if err := os.WriteFile(path, now, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir, r.ID); !errors.Is(err, ErrLog) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := List(dir); !errors.Is(err, ErrLog) {
			t.Errorf("%s: listed with %v", name, err)
		}
		if err := os.WriteFile(path, was, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTimesOfARunEstimateTheNext(t *testing.T) {
	dir := t.TempDir()
	p := NewPlan(mustRead(t, "tree.yml"), Planned, "", nil)
	r, err := Begin(dir, p, Order{}, noon)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	at := noon
	for _, a := range p.Actions {
		for _, ev := range []Event{EventStarted, EventDone} {
			if err := r.Append(Entry{Time: at, Event: ev, Action: a.ID}); err != nil {
				t.Fatal(err)
			}
			at = at.Add(time.Second)
		}
	}
	if _, ok := r.Past(); ok {
		t.Error("a run that is not over has times")
	}
	if err := r.Append(Entry{Time: at, Event: EventEnded, Action: -1}); err != nil {
		t.Fatal(err)
	}
	past, ok := r.Past()
	if want := time.Duration(2*len(p.Actions)-1) * time.Second; !ok || past.RTO != want {
		t.Errorf("RTO %v, want %v", past.RTO, want)
	}
	next := NewPlan(mustRead(t, "tree.yml"), Planned, "", History{past})
	// root, then left with its minute, then last with two steps.
	if got := fmt.Sprint(next.Estimate); got != "expected time: 1m5s by 1 run" {
		t.Errorf("estimate %q", got)
	}
}
