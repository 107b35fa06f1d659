package witness_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/recovery/witness"
	"github.com/novacron/afterimage/recovery/witness/witnesstest"
)

// deaf is a watchdog that takes no time.
type deaf struct{}

func (deaf) Arm(context.Context, time.Time) error { return errors.New("deaf") }
func (deaf) Disarm(context.Context) error         { return nil }

// No watchdog, no right: nobody runs unattended, and the lease is free for others.
func TestNoWatchdogNoRight(t *testing.T) {
	m, group := new(witnesstest.Memory), cbt.NewID()
	for _, dog := range []witness.Watchdog{nil, deaf{}} {
		if _, err := witness.Take(t.Context(), m, group, "a", witness.MinTTL, dog); !errors.Is(err, witness.ErrNoWatchdog) {
			t.Errorf("%T: %v", dog, err)
		}
		if h, held, err := m.Holder(t.Context(), group); held || err != nil {
			t.Errorf("%T: held by %q, %v", dog, h, err)
		}
	}
}

// kennel is a machine process and its watchdog's.
func kennel(t *testing.T) (*witness.Kennel, int) {
	t.Helper()
	m := self("machine")
	in, err := m.StdinPipe()
	if err == nil {
		err = m.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); m.Process.Kill(); m.Wait() })
	k, err := witness.StartKennel(self("dog", strconv.Itoa(m.Process.Pid)))
	if err != nil {
		t.Fatal(err)
	}
	return k, m.Process.Pid
}

// standing is whether a process was stopped.
func standing(t *testing.T, pid int) bool {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	return fields[0] == "T"
}

// The watchdog is a process of its own: it pauses the machine at the time it was given
// last and says so, and leaves it alone once disarmed.
func TestDog(t *testing.T) {
	k, pid := kennel(t)
	if err := k.Arm(t.Context(), time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if standing(t, pid) {
		t.Fatal("paused an hour too early")
	}
	if err := k.Arm(t.Context(), time.Now()); err != nil && !errors.Is(err, witness.ErrLost) {
		t.Fatal(err)
	}
	late := time.After(time.Minute)
	for !standing(t, pid) {
		select {
		case <-late:
			t.Fatal("not paused within a minute")
		case <-time.After(10 * time.Millisecond):
		}
	}
	if err := k.Arm(t.Context(), time.Now().Add(time.Hour)); err == nil {
		t.Error("a watchdog that has paused the machine takes another time")
	}
	k, pid = kennel(t)
	if err := k.Arm(t.Context(), time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if err := k.Disarm(t.Context()); err != nil {
		t.Error(err)
	}
	if err := k.Arm(t.Context(), time.Now()); err == nil || standing(t, pid) {
		t.Errorf("disarmed, and armed again: %v", err)
	}
}

// A holder that dies between its last word and the answer leaves a watchdog that acts on
// that word.
func TestDogOutlivesItsCaller(t *testing.T) {
	m := self("machine")
	hold, err := m.StdinPipe()
	if err == nil {
		err = m.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { hold.Close(); m.Process.Kill(); m.Wait() })
	dog := self("dog", strconv.Itoa(m.Process.Pid))
	in, err := dog.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := dog.StdoutPipe()
	if err == nil {
		err = dog.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dog.Process.Kill(); dog.Wait() })
	out.Close() // nobody reads its answers any more
	// One word is answered into nothing before the one that counts is read.
	if _, err := in.Write([]byte("arm 9000000000000000000\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write([]byte("arm 1\n")); err != nil {
		t.Fatal(err)
	}
	in.Close()
	late := time.After(time.Minute)
	for !standing(t, m.Process.Pid) {
		select {
		case <-late:
			t.Fatal("not paused within a minute")
		case <-time.After(10 * time.Millisecond):
		}
	}
}
