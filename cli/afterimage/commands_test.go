package main

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

const shopFile = "../../recovery/runbook/testdata/shop.yml"

// commands is a call of every verb that asks a site, by the name of its golden file.
var commands = map[string][]string{
	"status":                 {"status"},
	"group-list":             {"group", "list"},
	"group-show":             {"group", "show", "web"},
	"peer-list":              {"peer", "list"},
	"peer-invite":            {"peer", "invite", "b", "--for", "10m"},
	"peer-join":              {"peer", "join", "aijoin1-AAAA"},
	"peer-remove":            {"peer", "remove", "b", "--yes"},
	"peer-limit":             {"peer", "limit", "b", "5M", "--for", "2h"},
	"peer-limit-off":         {"peer", "limit", "b", "off"},
	"group-limit-schedule":   {"group", "limit", "web", "schedule"},
	"point-list":             {"point", "list", "web", "--at", "name:before-patch"},
	"point-list-branches":    {"point", "list", "web", "--branches"},
	"point-list-all":         {"point", "list", "web", "--all", "--from", "-7d", "--to", "2026-11-22T12:00:00Z"},
	"point-pin":              {"point", "pin", "web", "--name", "audit", "--at", "latest"},
	"point-pin-diff":         {"point", "pin", "web", "--name", "audit", "--diff", "--note", "n"},
	"point-unpin":            {"point", "unpin", "web", "--name", "audit"},
	"group-maintain":         {"group", "maintain", "web"},
	"group-maintain-dry-run": {"group", "maintain", "web", "--dry-run"},
	"group-key-show":         {"group", "key", "show", "web"},
	"group-key-rotate":       {"group", "key", "rotate", "web"},
	"group-key-shred":        {"group", "key", "shred", "web", "--yes"},
	"group-key-shred-dry":    {"group", "key", "shred", "web", "--dry-run"},
	"group-seed-export":      {"group", "seed", "export", "web", "--to", "/media/disk/web.seed"},
	"group-seed-import":      {"group", "seed", "import", "/media/disk/web.seed"},
	"verify-repair":          {"verify", "web", "--repair"},
	"point-mark":             {"point", "mark", "web", "--name", "nightly"},
	"view-serve":             {"view", "serve", "web"},
	"view-list":              {"view", "list"},
	"view-close":             {"view", "close", "v1"},
	"view-restore":           {"view", "restore", "web", "--to", "/srv/root.raw"},
	"view-restore-qcow2":     {"view", "restore", "web", "--to", "/srv/root.qcow2", "--format", "qcow2"},
	"failover-plan":          {"failover", "unplanned", "web", "--dry-run"},
	"failover-test":          {"failover", "test", "web"},
	"failover-planned":       {"failover", "planned", "web", "--yes"},
	"failover-planned-dry":   {"failover", "planned", "web", "--dry-run"},
	"failover-commit":        {"failover", "commit", "web", "--yes"},
	"failover-rollback":      {"failover", "rollback", "web", "--yes"},
	"group-rejoin":           {"group", "rejoin", "web", "--yes"},
	"failover-reprotect":     {"failover", "reprotect", "web", "--yes"},
	"failover-stand-down":    {"failover", "stand-down", "web", "--yes"},
	"failover-plan-tail":     {"failover", "unplanned", "web", "--dry-run", "--tail", "c"},
	"failover-resolve":       {"failover", "resolve", "web", "--keep", "b", "--dry-run"},
	"report-list":            {"report", "list"},
	"report-head":            {"report", "head"},
	"report-vouch":           {"report", "vouch", "aihead1-AAAA"},
	"report-keep":            {"report", "keep", "aianchor1-AAAA"},
	"runbook-check":          {"runbook", "check", shopFile},
	"runbook-plan":           {"runbook", "plan", shopFile, "--mode", "unplanned"},
	"runbook-run":            {"runbook", "run", shopFile},
	"runbook-resume":         {"runbook", "resume", "shop-test-20261122-120000", "--step", "1", "--answer", "yes"},
	"runbook-abort":          {"runbook", "abort", "shop-test-20261122-120000", "--yes"},
	"runbook-list":           {"runbook", "list"},
	"runbook-show":           {"runbook", "show", "shop-test-20261122-120000"},
	"failover":               {"failover", "unplanned", "web", "--yes"},
	"group-rewind":           {"group", "rewind", "web", "--at", "before:attack", "--yes"},
	"group-move":             {"group", "move", "web", "--to", "/srv/disks"},
	"group-move-pivot":       {"group", "move", "web", "--to", "/srv/disks", "--pivot"},
	"group-home":             {"group", "home", "web"},
	"group-home-disk":        {"group", "home", "web", "--disk", "root=/srv/new/web-root.qcow2", "--yes"},
	"group-home-dry":         {"group", "home", "web", "--disk", "data=/dev/vg0/web-data", "--dry-run"},
	"group-move-device":      {"group", "move", "web", "--device", "root=/dev/vg0/root", "--device", "data=/dev/vg0/data"},
	"group-rewind-plan":      {"group", "rewind", "web", "--at", "before:attack", "--dry-run"},
	"point-bisect":           {"point", "bisect", "web", "--good", "name:before-patch", "--check", "true"},
	"view-diff":              {"view", "diff", "web", "--from", "name:before-patch", "--to", "latest"},
	"view-diff-thinned":      {"view", "diff", "web", "--from", "#17"},
}

func TestTablesAreGolden(t *testing.T) {
	for name, args := range commands {
		r := stage{api: &fake{}}.run(t, args...)
		if r.exit != 0 {
			t.Errorf("%s: exit %d\n%s", name, r.exit, r.stderr)
		}
		golden(t, name+".txt", []byte("$ afterimage "+strings.Join(args, " ")+"\n"+r.stdout+"--- stderr\n"+r.stderr))
		if strings.Contains(r.stdout+r.stderr, "\x1b") {
			t.Errorf("%s: an escape sequence without a terminal", name)
		}
	}
}

func TestJSONOnSuccessAndFailure(t *testing.T) {
	for name, args := range commands {
		r := stage{api: &fake{}}.run(t, append(args, "-o", "json")...)
		if r.exit != 0 || lines(t, name, r.stdout) != 1 {
			t.Errorf("%s: exit %d, stdout %q", name, r.exit, r.stdout)
		}
		lines(t, name+" stderr", r.stderr)
		r = stage{api: &fake{err: errFake}}.run(t, append(args, "--output=json")...)
		if r.exit != fault.ExitVerification || r.stdout != "" {
			t.Errorf("%s: exit %d, stdout %q on failure", name, r.exit, r.stdout)
		}
		lines(t, name, r.stderr)
		var last struct {
			Error struct {
				Code, What, Why, Hint string
				Exit                  int
			}
		}
		all := strings.Split(strings.TrimSpace(r.stderr), "\n")
		if err := json.Unmarshal([]byte(all[len(all)-1]), &last); err != nil {
			t.Fatal(err)
		}
		if e := last.Error; e.Code != string(fault.JournalDamage) || e.Exit != r.exit || e.What == "" || e.Why == "" || e.Hint == "" {
			t.Errorf("%s: error %+v", name, e)
		}
	}
}

// lines counts the JSON values of text, which must be nothing else.
func lines(t *testing.T, name, text string) int {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	for n := 0; ; n++ {
		var v map[string]any
		err := d.Decode(&v)
		if errors.Is(err, io.EOF) {
			return n
		}
		if err != nil {
			t.Errorf("%s: not JSON: %v\n%s", name, err, text)
			return n
		}
	}
}

func TestSplitBrainIsLoudAndHasItsExitCode(t *testing.T) {
	f := &fake{halted: true, halt: control.HaltSplitBrain}
	r := stage{api: f}.run(t, "status")
	if r.exit != fault.ExitSplitBrain {
		t.Errorf("status ends with %d", r.exit)
	}
	if !strings.Contains(r.stdout, "failover resolve acme/db --keep SITE") {
		t.Errorf("the verb that ends it is not named:\n%s", r.stdout)
	}
	golden(t, "status-halted.txt", []byte("$ afterimage status\n"+r.stdout+"--- stderr\n"+r.stderr))
	j := stage{api: f}.run(t, "status", "-o", "json")
	if j.exit != fault.ExitSplitBrain || lines(t, "stdout", j.stdout) != 1 || lines(t, "stderr", j.stderr) != 1 || !strings.Contains(j.stdout, `"state":"halted"`) {
		t.Errorf("with JSON: exit %d\n%s\n%s", j.exit, j.stdout, j.stderr)
	}
	g := stage{api: f}.run(t, "group", "show", "acme/db")
	if g.exit != 0 || !strings.HasPrefix(g.stdout, "SPLIT BRAIN: acme/db is halted") || strings.Count(g.stdout, conflict) != 1 {
		t.Errorf("group show: exit %d\n%s", g.exit, g.stdout)
	}
	if r := (stage{api: f, tty: true}).run(t, "group", "show", "acme/db"); !strings.Contains(r.stdout, "\x1b["+red+"mSPLIT BRAIN") {
		t.Errorf("no red on a terminal: %q", r.stdout)
	}
}

// A loss is no split brain: nothing has to be chosen, something has to be found.
func TestLostHistoryHasItsOwnBannerAndExitCode(t *testing.T) {
	f := &fake{halted: true, halt: control.HaltHistoryLost}
	r := stage{api: f}.run(t, "status")
	if r.exit != fault.ExitVerification || strings.Contains(r.stdout, "SPLIT BRAIN") {
		t.Errorf("exit %d\n%s", r.exit, r.stdout)
	}
	golden(t, "status-lost.txt", []byte("$ afterimage status\n"+r.stdout+"--- stderr\n"+r.stderr))
	if g := (stage{api: f}).run(t, "group", "show", "acme/db"); !strings.HasPrefix(g.stdout, "HISTORY LOST: acme/db is halted") {
		t.Errorf("group show:\n%s", g.stdout)
	}
}

func TestRepeatedFailoverSaysThatNothingIsPromoted(t *testing.T) {
	args := []string{"failover", "unplanned", "web", "--yes"}
	r := stage{api: &fake{resumes: true}}.run(t, args...)
	if r.exit != 0 || !strings.Contains(r.stdout, "promoted before") || strings.Contains(r.stderr, "begins there") {
		t.Errorf("exit %d", r.exit)
	}
	golden(t, "failover-resumed.txt", []byte("$ afterimage "+strings.Join(args, " ")+"\n"+r.stdout+"--- stderr\n"+r.stderr))
}

func TestSeveralMachinesAreToldEach(t *testing.T) {
	seen := []control.MachineSeen{{Name: "db", State: control.MachineRuns, PID: 7, Renamed: "dbx"}, {Name: "web", State: control.MachineOff}}
	got := machineText(control.GroupDetail{Machine: "db, web", MachineState: control.MachinePartly, MachinePID: 7, Seen: seen})
	if got != "running in part: db (libvirt calls it dbx), running (process 7); web, not running" {
		t.Error(got)
	}
	done := control.FailedOver{Started: true, Machines: []control.MachineStarted{{Name: "db", PID: 7, QMP: "/q"}, {Name: "web", PID: 8}}}
	if got := new(printer).failedOver(done); !strings.Contains(got, "machine db is running, process 7, QMP /q\nmachine web is running, process 8\n") {
		t.Error(got)
	}
}

func TestErrorsSayWhatWhyAndWhatToDo(t *testing.T) {
	r := stage{api: &fake{err: errFake}}.run(t, "status")
	golden(t, "error.txt", []byte(r.stderr))
	if r.stdout != "" {
		t.Errorf("stdout %q", r.stdout)
	}
}

func TestDangerousVerbIsConfirmed(t *testing.T) {
	args := []string{"failover", "unplanned", "web", "--at", "name:x"}
	for _, c := range []struct {
		name  string
		stage stage
		more  []string
		exit  int
		done  bool
	}{
		{name: "script without --yes", exit: fault.ExitUsage},
		{name: "script with --yes", more: []string{"--yes"}, done: true},
		{name: "pipe says the name", stage: stage{stdin: "web\n"}, exit: fault.ExitUsage},
		{name: "terminal, name", stage: stage{tty: true, stdin: "web\n"}, done: true},
		{name: "terminal, full name", stage: stage{tty: true, stdin: "default/web\n"}, done: true},
		{name: "terminal, another name", stage: stage{tty: true, stdin: "db\n"}, exit: fault.ExitUsage},
		{name: "terminal, yes is no name", stage: stage{tty: true, stdin: "yes\n"}, exit: fault.ExitUsage},
		{name: "terminal, end of input", stage: stage{tty: true}, exit: fault.ExitUsage},
		{name: "terminal, JSON", stage: stage{tty: true, stdin: "web\n"}, more: []string{"-o", "json"}, exit: fault.ExitUsage},
		{name: "dry run", more: []string{"--dry-run", "--yes"}},
		{name: "force is no yes", more: []string{"--force"}, exit: fault.ExitUsage},
	} {
		f := &fake{}
		c.stage.api = f
		r := c.stage.run(t, append(args, c.more...)...)
		if r.exit != c.exit || f.failed != c.done {
			t.Errorf("%s: exit %d, done %v\n%s", c.name, r.exit, f.failed, r.stderr)
		}
		if f.failed && (f.failover.Expect != plan.Digest || f.failover.At != "name:x" || f.failover.Operator == "") {
			t.Errorf("%s: asked for %+v", c.name, f.failover)
		}
	}
}

func TestRefusedPlanNeedsForce(t *testing.T) {
	f := &fake{refused: []string{"source not proven fenced"}}
	r := stage{api: f}.run(t, "failover", "unplanned", "web", "--yes")
	if r.exit != fault.ExitSplitBrain || f.failed || !strings.Contains(r.stderr, string(fault.NotFenced)) {
		t.Errorf("exit %d, done %v\n%s", r.exit, f.failed, r.stderr)
	}
	r = stage{api: f}.run(t, "failover", "unplanned", "web", "--yes", "--force")
	if r.exit != 0 || !f.failed || !f.failover.Force {
		t.Errorf("with --force: exit %d, %+v", r.exit, f.failover)
	}
}

func TestColoursNeedATerminalAndConsent(t *testing.T) {
	const esc = "\x1b["
	if r := (stage{api: &fake{}, tty: true}).run(t, "status"); !strings.Contains(r.stdout, esc) {
		t.Error("no colours on a terminal")
	}
	for name, s := range map[string]stage{
		"NO_COLOR": {tty: true, env: map[string]string{"NO_COLOR": "1"}}, "dumb terminal": {tty: true, env: map[string]string{"TERM": "dumb"}},
	} {
		s.api = &fake{}
		if r := s.run(t, "status"); strings.Contains(r.stdout, esc) {
			t.Errorf("colours with %s", name)
		}
	}
	if r := (stage{api: &fake{}, tty: true}).run(t, "status", "--no-color"); strings.Contains(r.stdout, esc) {
		t.Error("colours with --no-color")
	}
}

// A table that is wider than the terminal becomes blocks; nothing that it says is lost.
func TestNarrowTerminals(t *testing.T) {
	env := map[string]string{"NO_COLOR": "1"}
	wide := stage{api: &fake{}, tty: true, env: env, width: 300}.run(t, "status")
	if pipe := (stage{api: &fake{}, env: env, width: 20}).run(t, "status"); pipe.stdout != wide.stdout {
		t.Errorf("a pipe has no width:\n%s", pipe.stdout)
	}
	for name, args := range map[string][]string{"status": {"status"}, "point-list": {"point", "list", "web"}, "group-show": {"group", "show", "web"}} {
		r := stage{api: &fake{}, tty: true, env: env, width: 80}.run(t, args...)
		golden(t, name+"-narrow.txt", []byte(r.stdout))
	}
}

func TestProgressOnATerminalIsOneLine(t *testing.T) {
	r := stage{api: &fake{}, tty: true}.run(t, "view", "restore", "web", "--to", "/srv/root.raw")
	if !strings.Contains(r.stderr, "\r\x1b[K") || !strings.Contains(r.stderr, "[======") || strings.Count(r.stderr, "write root") != 3 {
		t.Errorf("progress: %q", r.stderr)
	}
}

func TestSizesAndSpans(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1 KiB", 1536: "1.5 KiB", 1 << 20: "1 MiB", 1<<20 - 1: "1 MiB", 3 << 29: "1.5 GiB", 1 << 60: "1 EiB"} {
		if got := size(n); got != want && !(n == 1<<20-1 && got == "1.0 MiB") {
			t.Errorf("size(%d) = %q, want %q", n, got, want)
		}
	}
	for s, want := range map[float64]string{0: "0.00s", 0.351: "0.35s", 12.4: "12s", 250: "4m10s", 93784: "26h3m", 1.05e6: "12d3h"} {
		if got := seconds(s); got != want {
			t.Errorf("seconds(%g) = %q, want %q", s, got, want)
		}
	}
	if got := describe(remainingOf(10*time.Second, 1<<30, 4<<30), true); got != "x  25% 1 GiB of 4 GiB [======                  ], 30s left" {
		t.Errorf("bar %q", got)
	}
}

// Damage that is left is shown, and is exit 16; so is a verb that lacks a flag refused.
func TestVerifySaysWhatIsLeft(t *testing.T) {
	r := stage{api: &fake{}}.run(t, "verify", "web")
	if r.exit != fault.ExitVerification || !strings.Contains(r.stdout, "0000000000000007.seg") || !strings.Contains(r.stdout, "invalid: points #900 to #1100") || !strings.Contains(r.stderr, string(fault.DamageLeft)) {
		t.Errorf("exit %d\n%s\n%s", r.exit, r.stdout, r.stderr)
	}
	for _, args := range [][]string{{"verify", "web", "--from", "b"}, {"verify", "web", "--rate", "much"}, {"group", "recover", "web"}} {
		if r := (stage{api: &fake{}}).run(t, args...); r.exit != fault.ExitUsage {
			t.Errorf("%v: exit %d, %s", args, r.exit, r.stderr)
		}
	}
}

// What is rewound to is the point that was shown, not what -5m means by then.
func TestRewindGoesToThePointThatWasShown(t *testing.T) {
	f := &fake{}
	if r := (stage{api: f}).run(t, "group", "rewind", "web", "--at", "-5m", "--yes"); r.exit != 0 || f.rewind.At != "#3.1100" || f.rewind.Expect != "r1" {
		t.Errorf("exit %d, asked %+v", r.exit, f.rewind)
	}
	f = &fake{}
	if r := (stage{api: f}).run(t, "group", "rewind", "web", "--at", "-5m"); r.exit != fault.ExitUsage || f.rewind.At != "" {
		t.Errorf("unconfirmed: exit %d, asked %+v", r.exit, f.rewind)
	}
	f = &fake{refused: []string{"1 client"}}
	if r := (stage{api: f}).run(t, "group", "rewind", "web", "--at", "-5m", "--yes"); r.exit != fault.ExitUsage || f.rewind.At != "" {
		t.Errorf("refused: exit %d, asked %+v", r.exit, f.rewind)
	}
}

// The statement of a fence is named as a channel; what stood down is never signed over a
// file that is there.
func TestStatementsAreFilesOfTheirOwn(t *testing.T) {
	there := filepath.Join(t.TempDir(), "web.statement")
	for _, c := range []struct {
		channel, file string
		want          string
	}{{"", "", ""}, {"ping:x", "", "other channels are fence:"}, {"statement:", "", "want statement:FILE"}, {"statement:a", "b", "two files"}, {"statement:" + there, "", "no such file"}} {
		text, err := statementOf(c.channel, c.file)
		if text != "" || (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("--fence %q --statement %q: %q, %v", c.channel, c.file, text, err)
		}
	}
	if err := writeNew(there, "aioff1-AAAA\n"); err != nil {
		t.Fatal(err)
	}
	if text, err := statementOf("statement:"+there, ""); err != nil || text != "aioff1-AAAA\n" {
		t.Errorf("%q, %v", text, err)
	}
	if err := writeNew(there, "x"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("written over: %v", err)
	}
}
