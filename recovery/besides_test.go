package recovery

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/novacron/afterimage/testbed/scale"
)

// threeMachines are one: db with two besides it. Each is a script of its own name in dir,
// which becomes a QEMU without a processor.
func threeMachines(t *testing.T, dir string) Machine {
	t.Helper()
	one := func(name string) Machine {
		m := emptyMachine(dir)
		m.Name, m.Dir, m.Binary, m.Disks = name, filepath.Join(dir, name), filepath.Join(dir, "run-"+name), nil
		works(t, m, true)
		return m
	}
	m := one("db")
	m.Besides = []Companion{{Machine: one("app")}, {Machine: one("web")}}
	return m
}

// works makes a machine's program one that runs, or one that does not.
func works(t *testing.T, m Machine, does bool) {
	t.Helper()
	text := "echo no QEMU is " + m.Name + " >&2; exit 1"
	if does {
		text = `exec qemu-system-x86_64 "$@"`
	}
	must(t, os.WriteFile(m.Binary+".new", []byte("#!/bin/sh\n"+text+"\n"), 0o700))
	must(t, os.Rename(m.Binary+".new", m.Binary))
}

// runs names the machines of m that run.
func runs(t *testing.T, m Machine) []string {
	t.Helper()
	var out []string
	for _, one := range m.Each() {
		if _, err := one.Process(); err == nil {
			out = append(out, one.Name)
		} else if !errors.Is(err, ErrNotRunning) {
			t.Fatal(err)
		}
	}
	return out
}

// Several machines start all or none, whichever of them does not and whichever ran before:
// what a call has started it ends, what ran before it goes on, and the error names both.
func TestMachinesBesidesEachOtherStartAllOrNone(t *testing.T) {
	scale.Tools(t, "qemu-system-x86_64")
	ctx := testContext(t)
	m := threeMachines(t, shortDir(t))
	each := m.Each()
	t.Cleanup(func() { must(t, m.End(context.Background())) })
	for broken := range each {
		for before := range each {
			if before == broken {
				before = -1 // none ran
			}
			var ran []string
			if before >= 0 {
				r, err := each[before].Ensure(ctx, nil)
				must(t, err)
				must(t, r.Close())
				ran = []string{each[before].Name}
			}
			works(t, each[broken], false)
			r, err := m.Ensure(ctx, nil)
			if r != nil || err == nil || !strings.Contains(err.Error(), "start machine "+each[broken].Name) || !strings.Contains(err.Error(), "no QEMU is "+each[broken].Name) {
				t.Fatalf("with %s broken: %v, %v", each[broken].Name, r, err)
			}
			if got := runs(t, m); !slices.Equal(got, ran) {
				t.Errorf("%s did not start, %v ran before: %v run", each[broken].Name, ran, got)
			}
			if before >= 0 && !strings.Contains(err.Error(), each[before].Name+" ran before") {
				t.Errorf("who goes on is not named: %v", err)
			}
			if _, err := m.Attach(ctx); !errors.Is(err, ErrNotRunning) {
				t.Errorf("attached to some of them: %v", err)
			}
			if _, err := m.Process(); (err == nil) != (before >= 0) || m.RunsWhole() {
				t.Errorf("one of them is found: %v, all of them: %v", err, m.RunsWhole())
			}
			works(t, each[broken], true)
			all, err := m.Ensure(ctx, nil)
			must(t, err)
			for i, x := range all.All() {
				if x.Name != each[i].Name || x.Adopted != (i == before) || x.PID == 0 {
					t.Errorf("started as number %d: %+v", i, x)
				}
			}
			if all.AnyAdopted() != (before >= 0) || !all.AnyStarted() || !m.RunsWhole() || !strings.Contains(all.Told(), "web: process ") {
				t.Errorf("all run: %s", all.Told())
			}
			must(t, all.Close())
			again, err := m.Ensure(ctx, nil)
			must(t, err)
			if again.AnyStarted() || again.PID != all.PID {
				t.Errorf("a second machine: %s, then %s", all.Told(), again.Told())
			}
			must(t, again.Close())
			must(t, m.End(ctx))
			if got := runs(t, m); got != nil {
				t.Fatalf("ended, and %v run", got)
			}
		}
	}
}

// Each is waited for as its own definition says, and what is asked of one guest is not
// asked of several.
func TestMachinesBesidesEachOtherAreAskedEach(t *testing.T) {
	dir := shortDir(t)
	m := threeMachines(t, dir)
	if m.Waits(Health{}) || m.Called() != "db, app, web" {
		t.Errorf("%s: waits %v", m.Called(), m.Waits(Health{}))
	}
	m.Besides[1].Health = Health{Prefix: "up"}
	if !m.Waits(Health{}) {
		t.Error("the last one's health is not waited for")
	}
	says := func(m Machine, text string) *Running {
		must(t, os.MkdirAll(m.Dir, 0o700))
		must(t, os.WriteFile(m.serial(), []byte(text+"\n"), 0o600))
		return m.running("u", os.Getpid(), ownHandle(t), false)
	}
	r := says(m.Each()[0], "db is here")
	r.machine = m
	r.Besides = []*Running{says(m.Each()[1], "nothing"), says(m.Each()[2], "up since a moment")}
	defer r.Close()
	if said, err := r.Healthy(testContext(t), Health{Prefix: "db is"}); err != nil || said != "db: db is here, web: up since a moment" {
		t.Errorf("%q, %v", said, err)
	}
	ctx := testContext(t)
	_, address := m.HasAddress(ctx, Address{Prefix: "192.0.2.1/24"})
	for what, err := range map[string]error{"address": address, "link": m.SetLink(ctx, "net0", true), "network": m.Connect(ctx, "net0", "lan")} {
		if !errors.Is(err, ErrMachine) || !strings.Contains(err.Error(), "db, app, web are several") {
			t.Errorf("%s of several: %v", what, err)
		}
	}
}

func TestMachinesBesidesEachOtherAreDistinct(t *testing.T) {
	uses := func(m *Machine, volume string) { m.Disks = append(m.Disks, MachineDisk{volume, "d"}) }
	for name, spoil := range map[string]func(m *Machine){
		"":                func(m *Machine) { uses(m, "root"); uses(&m.Besides[0].Machine, "data") },
		"one name":        func(m *Machine) { m.Besides[1].Name = "db" },
		"one directory":   func(m *Machine) { m.Besides[1].Dir = m.Dir },
		"one disk":        func(m *Machine) { uses(m, "root"); uses(&m.Besides[1].Machine, "root") },
		"one disk hidden": func(m *Machine) { uses(m, "root"); m.Besides[1].Args = []string{"-blockdev", "{disk:root}"} },
		"no program":      func(m *Machine) { m.Besides[1].Binary = "" },
	} {
		m := threeMachines(t, shortDir(t))
		spoil(&m)
		if err := m.validate(); (name == "") != (err == nil) || err != nil && !errors.Is(err, ErrMachine) {
			t.Errorf("%q: %v", name, err)
		}
		if name == "" {
			continue
		}
		if _, err := m.Ensure(testContext(t), nil); !errors.Is(err, ErrMachine) || runs(t, m) != nil {
			t.Errorf("%q: started: %v", name, err)
		}
	}
	drill, err := threeMachines(t, shortDir(t)).Isolated("/d/1")
	must(t, err)
	for i, m := range drill.Each() {
		if want := []string{"/d/1", "/d/1.1", "/d/1.2"}[i]; m.Dir != want || !strings.HasPrefix(m.Name, "drill-") || !slices.Contains(m.Args, "-nodefaults") {
			t.Errorf("isolated: %+v", m)
		}
	}
}

// ownHandle is of a process that does not end.
func ownHandle(t *testing.T) int {
	t.Helper()
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	must(t, err)
	return fd
}
