package recovery

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func testMachine(dir string) Machine {
	return Machine{
		Name: "web", Binary: "qemu-system-x86_64", Dir: dir, Disks: []MachineDisk{{"root", "disk0"}}, Vars: map[string]string{"nbd": "/run/nbd.sock"},
		Args: []string{"-m", "256", "-device", "virtio-blk-pci,drive=disk0", "-device", "virtio-blk-pci,drive=data,werror=report", "-blockdev", "{disk:data}",
			"-device", "virtio-net-pci,netdev=n0", "-serial", "file:{serial}", "-append", `a="{not one}" {nbd} {uri:root}`},
	}
}

func TestArgvGolden(t *testing.T) {
	argv, err := testMachine("/var/lib/ai/m").Argv(map[string]string{
		"root": "nbd+unix:///web/root?socket=%2Frun%2Fai%2Fnbd.sock", "data": "nbd://127.0.0.1:10810/web/data",
	}, "11111111-2222-4333-8444-555555555555")
	must(t, err)
	golden(t, "argv.golden", []byte(strings.Join(argv, "\n")+"\n"))
}

func TestDefinitionsThatAreRefused(t *testing.T) {
	uris := map[string]string{"root": "nbd+unix:///r?socket=/s", "data": "nbd+unix:///d?socket=/s"}
	if _, err := testMachine("/m").Argv(uris, "u"); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(m *Machine){
		"no name":        func(m *Machine) { m.Name = "" },
		"no program":     func(m *Machine) { m.Binary = "" },
		"relative":       func(m *Machine) { m.Dir = "m" },
		"long directory": func(m *Machine) { m.Dir = "/" + strings.Repeat("x", 100) },
		"node name":      func(m *Machine) { m.Disks[0].ID = "0,x" },
		"daemonize":      func(m *Machine) { m.Args = append(m.Args, "-daemonize") },
		"pid file":       func(m *Machine) { m.Args = append(m.Args, "--pidfile", "x") },
		"stopped":        func(m *Machine) { m.Args = append(m.Args, "-S") },
		"unknown volume": func(m *Machine) { m.Args = append(m.Args, "{disk:nope}") },
	} {
		m := testMachine("/m")
		spoil(&m)
		if _, err := m.Argv(uris, "u"); !errors.Is(err, ErrMachine) {
			t.Errorf("%s: %v", name, err)
		}
	}
	uris["root"] = "http://x/"
	if _, err := testMachine("/m").Argv(uris, "u"); !errors.Is(err, ErrMachine) {
		t.Errorf("a URI that is not NBD's: %v", err)
	}
}

func TestNothingRuns(t *testing.T) {
	dir := shortDir(t)
	m := testMachine(filepath.Join(dir, "m"))
	if _, err := m.Attach(testContext(t)); !errors.Is(err, ErrNotRunning) {
		t.Errorf("attach to nothing: %v", err)
	}
	// A pid file that nobody locks names some process of today.
	must(t, os.MkdirAll(m.Dir, 0o700))
	must(t, os.WriteFile(m.pidFile(), []byte("1\n"), 0o600))
	if _, err := m.Attach(testContext(t)); !errors.Is(err, ErrNotRunning) {
		t.Errorf("attach to a stale number: %v", err)
	}
	// A program that says why and ends.
	m.Binary = script(t, "echo it cannot >&2; exit 3")
	_, err := m.Ensure(testContext(t), map[string]string{"root": "nbd+unix:///r?socket=/s", "data": "nbd+unix:///d?socket=/s"})
	if !errors.Is(err, ErrExited) || !strings.Contains(err.Error(), "it cannot") {
		t.Errorf("a program that ends: %v", err)
	}
	// One that never answers is not left behind.
	pipe := filepath.Join(dir, "mute")
	must(t, syscall.Mkfifo(pipe, 0o600))
	m.Ready, m.Binary = 200*time.Millisecond, script(t, "read never <> "+pipe)
	_, err = m.Ensure(testContext(t), map[string]string{"root": "nbd+unix:///r?socket=/s", "data": "nbd+unix:///d?socket=/s"})
	if err == nil || errors.Is(err, ErrExited) {
		t.Errorf("a mute program: %v", err)
	}
	waitUntil(t, "the mute program to be gone", func() bool { return len(processesOf(t, m)) == 0 })
	// Another machine's directory is not taken over.
	m.Name = "other"
	if _, err := m.Ensure(testContext(t), map[string]string{"root": "nbd+unix:///r?socket=/s", "data": "nbd+unix:///d?socket=/s"}); !errors.Is(err, ErrWrongMachine) {
		t.Errorf("another machine's directory: %v", err)
	}
}

func TestIdentityIsKept(t *testing.T) {
	m := testMachine(filepath.Join(shortDir(t), "m"))
	uris := map[string]string{"root": "nbd+unix:///r?socket=/s", "data": "nbd+unix:///d?socket=/s"}
	a, err := m.prepare(uris)
	must(t, err)
	b, err := m.prepare(uris)
	must(t, err)
	if a.UUID == "" || a.UUID != b.UUID {
		t.Errorf("the UUID changes: %s, %s", a.UUID, b.UUID)
	}
	var on machineFile
	text, err := os.ReadFile(filepath.Join(m.Dir, "machine.json"))
	must(t, err)
	must(t, json.Unmarshal(text, &on))
	if on.UUID != a.UUID || len(on.Argv) == 0 {
		t.Errorf("machine.json says %+v", on)
	}
	m.Args = append(m.Args, "-uuid", "99999999-2222-4333-8444-555555555555")
	if c, err := m.prepare(uris); err != nil || c.UUID != "99999999-2222-4333-8444-555555555555" {
		t.Errorf("a UUID of the definition: %+v, %v", c, err)
	}
}

// shortDir has paths short enough for sockets.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ai")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func script(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "program")
	must(t, os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o700))
	return path
}
