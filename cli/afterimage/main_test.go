package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/fault"
	"github.com/novacron/afterimage/testbed/scale"
)

var update = flag.Bool("update", false, "rewrite golden files")

func TestMain(m *testing.M) {
	if slices.Equal(os.Args[1:], []string{"bench", "end"}) { // a benchmark that a test runs has begun its program again
		os.Exit(mainStatus())
	}
	testscript.Main(m, map[string]func(){"afterimage": func() { os.Exit(mainStatus()) }})
}

// TestScripts runs testdata/script: the program as a user meets it, without a terminal.
func TestScripts(t *testing.T) { runScripts(t, "testdata/script") }

// TestScriptsWithTools runs those that use programs which a user has beside ours.
func TestScriptsWithTools(t *testing.T) {
	scale.Tools(t, "qemu-io", "nbdcopy", "e2fsck", "mkfs.ext4")
	runScripts(t, "testdata/toolscript")
}

func runScripts(t *testing.T, dir string) {
	testscript.Run(t, testscript.Params{
		Dir: dir,
		Setup: func(e *testscript.Env) error {
			e.Setenv("TZ", "UTC")
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits": exits, "json": isJSON, "await": awaitOutput, "port": freePort, "lacks": lacks, "envsubst": envSubst, "setenv": setEnv,
		},
		UpdateScripts: *update,
	})
}

// exits CODE COMMAND…: the command ends with that code.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	var ended *exec.ExitError
	if errors.As(err, &ended) {
		got = ended.ExitCode()
	} else {
		ts.Check(err)
	}
	if (got == want) == neg {
		ts.Fatalf("%s ended with %d, want %d\n%s", strings.Join(args[1:], " "), got, want, ts.ReadFile("stderr"))
	}
}

// json FILE [REGEXP]: it is one or more JSON values, and some line of it matches.
func isJSON(ts *testscript.TestScript, neg bool, args []string) {
	text := ts.ReadFile(args[0])
	d := json.NewDecoder(strings.NewReader(text))
	n := 0
	for d.More() {
		var v any
		ts.Check(d.Decode(&v))
		n++
	}
	if n == 0 {
		ts.Fatalf("%s is empty, want JSON", args[0])
	}
	if len(args) > 1 && regexp.MustCompile(args[1]).MatchString(text) == neg {
		ts.Fatalf("%s does not match %s:\n%s", args[0], args[1], text)
	}
}

// await REGEXP COMMAND…: the command's output comes to match.
func awaitOutput(ts *testscript.TestScript, neg bool, args []string) {
	want := regexp.MustCompile(args[0])
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(30 * time.Second)
	for {
		_ = ts.Exec(args[1], args[2:]...) // it may fail at first
		if want.MatchString(ts.ReadFile("stdout")) {
			return
		}
		select {
		case <-tick.C:
		case <-limit:
			ts.Fatalf("after 30 s no output of %s matches %s:\n%s%s", strings.Join(args[1:], " "), args[0], ts.ReadFile("stdout"), ts.ReadFile("stderr"))
		}
	}
}

// lacks FILE TEXT: it is nowhere in there; \e stands for ESC.
func lacks(ts *testscript.TestScript, neg bool, args []string) {
	if strings.Contains(ts.ReadFile(args[0]), strings.ReplaceAll(args[1], `\e`, "\x1b")) != neg {
		ts.Fatalf("%s holds %q", args[0], args[1])
	}
}

// port NAME…: each variable becomes a UDP and TCP port of loopback that is free.
func freePort(ts *testscript.TestScript, neg bool, args []string) {
	for _, name := range args {
		p, err := unusedPort()
		ts.Check(err)
		ts.Setenv(name, strconv.Itoa(p))
	}
}

// envsubst FILE: every $NAME in it is replaced.
func envSubst(ts *testscript.TestScript, neg bool, args []string) {
	file := ts.MkAbs(args[0])
	ts.Check(os.WriteFile(file, []byte(os.Expand(ts.ReadFile(args[0]), ts.Getenv)), 0o600))
}

// setenv NAME FILE: the variable becomes the file's first line.
func setEnv(ts *testscript.TestScript, neg bool, args []string) {
	first, _, _ := strings.Cut(ts.ReadFile(args[1]), "\n")
	ts.Setenv(args[0], first)
}

// golden compares got with testdata/golden/NAME.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := "testdata/golden/" + name
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(want, got) {
		t.Errorf("%s differs; want:\n%s\ngot:\n%s", file, want, got)
	}
}

// A daemon's answer is JSON: the faults of a runbook that it carries are all told, and
// no other evidence is taken for them.
func TestProblemsThatADaemonFound(t *testing.T) {
	told := &fault.Error{Code: fault.RunbookStep, What: "check runbook x.yml", Why: "two", Evidence: config.Problems{
		{Code: fault.RunbookStep, File: "x.yml", Line: 6, Column: 9, What: "there is no step dance", Excerpt: ">    6 | - dance\n"},
		{Code: fault.RunbookKey, File: "x.yml", Line: 7, Column: 9, What: "unknown key", Hint: "leave it out"}}}
	text, err := json.Marshal(told)
	if err != nil {
		t.Fatal(err)
	}
	var heard fault.Error
	if err := json.Unmarshal(text, &heard); err != nil {
		t.Fatal(err)
	}
	r := stage{api: &fake{err: &heard}}.run(t, "runbook", "list")
	if want := told.Evidence.(config.Problems).Error(); r.stderr != want || r.exit != told.Exit() {
		t.Errorf("exit %d, told\n%swant\n%s", r.exit, r.stderr, want)
	}
	for _, other := range []any{nil, "text", []any{"text"}, []any{map[string]any{"site": "a"}}, map[string]any{"line": 3}} {
		if got := problemsIn(&fault.Error{Evidence: other}); len(got) > 0 {
			t.Errorf("%v is taken for %v", other, got)
		}
	}
}
