// Package scale tells a test how large it should be, whether the machine must
// have its tools, and how its count is reported.
//
//	go test ./...                        sweeps at a twentieth, guests if the tools are there
//	go test -race ./...                  sweeps at a fiftieth, no guests
//	go test -race -short ./...           some of them at a 250th
//	AFTERIMAGE_SWEEPS=1 go test ./...    sweeps whole
//	AFTERIMAGE_LONG=1 as well            sweeps that can go on for ever, fifty times as long
//	AFTERIMAGE_TESTBED=1 or CI set       a missing tool fails a test instead of skipping it
//
// testbed/check sets all of these. The package imports nothing of ours, so every
// package's tests may use it. All functions are safe for concurrent use.
package scale

import (
	"fmt"
	"os"
	"os/exec"
	"testing"
)

// fraction is what a sweep is divided by when it is not run whole: the race detector
// makes it slow, and looks for races, which the first cases show as well as the rest.
func fraction() int {
	if Race {
		return 50
	}
	return 20
}

// Sweeps reports whether sweeps run whole: AFTERIMAGE_SWEEPS=1 and no race detector.
func Sweeps() bool { return !Race && os.Getenv("AFTERIMAGE_SWEEPS") == "1" }

// Scale is the size of a sweep whose whole size is n: n itself when Sweeps, else
// a fraction of it, at least 1.
func Scale(n int) int {
	if Sweeps() {
		return n
	}
	return max(n/fraction(), 1)
}

// Long is Scale for a sweep whose cases are new ones for as long as it runs: with
// AFTERIMAGE_LONG=1 it is fifty times as large.
func Long(n int) int {
	if os.Getenv("AFTERIMAGE_LONG") == "1" {
		return 50 * Scale(n)
	}
	return Scale(n)
}

// Brief reports whether a test is to show races and no more, soon: -race with -short.
func Brief() bool { return Race && testing.Short() }

// Few is Long for a sweep whose cases are judged one by one, so that none in particular
// has to come up: when Brief, it is a fifth of that.
func Few(n int) int {
	if Brief() {
		return max(Scale(n)/5, 1)
	}
	return Long(n)
}

// Counted prints how many cases a test went through, in the form that
// testbed/check collects, and fails t below the number it must reach: atLeast in
// a whole sweep, Scale(atLeast) otherwise. name is the one in counted.txt.
func Counted(t testing.TB, name string, n, atLeast int) {
	t.Helper()
	counted(t, name, n, Scale(atLeast))
}

// CountedFew is Counted for a sweep whose size is of Few: when Brief it must reach that.
func CountedFew(t testing.TB, name string, n, atLeast int) {
	t.Helper()
	counted(t, name, n, min(Scale(atLeast), Few(atLeast)))
}

func counted(t testing.TB, name string, n, need int) {
	t.Helper()
	t.Log(Line(name, n, need))
	if n < need {
		t.Errorf("%s went through %d cases, need %d", name, n, need)
	}
}

// Line is the line that Counted prints.
func Line(name string, n, atLeast int) string {
	return fmt.Sprintf("counted %s: %d of at least %d", name, n, atLeast)
}

// Required reports whether a missing tool is a failure: in CI and under testbed/check.
func Required() bool {
	return os.Getenv("CI") != "" || os.Getenv("AFTERIMAGE_TESTBED") == "1"
}

// Tools stops t unless every named program is in the PATH: a failure when
// Required, a skip otherwise.
func Tools(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			Missing(t, fmt.Sprintf("%s is not installed", name))
		}
	}
}

// Missing stops t because the machine lacks something: a failure when Required,
// a skip otherwise.
func Missing(t testing.TB, what string) {
	t.Helper()
	if Required() {
		t.Fatalf("%s; testbed/check installs it", what)
	}
	t.Skipf("%s; testbed/check installs it", what)
}

// Lasting is the first line of a test that has to go on for long, and why: it skips
// with -short. testbed/check runs it with and without the race detector.
func Lasting(t testing.TB, why string) {
	t.Helper()
	if testing.Short() {
		t.Skip(why + ", which is not for -short")
	}
}

// Guest is the first line of a test that boots a guest: it skips under the race
// detector (check runs the test again without it) and with -short, and asks for
// QEMU and for what the guest is built with.
func Guest(t testing.TB) {
	t.Helper()
	if Race {
		t.Skip("guests run without the race detector")
	}
	if testing.Short() {
		t.Skip("guests are not for -short")
	}
	Tools(t, "qemu-system-x86_64", "qemu-img", "apt-get", "dpkg")
}
