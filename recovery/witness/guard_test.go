package witness_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
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

// fading is a watchdog that dies after its first word.
type fading struct {
	said []time.Time
	err  error
}

func (d *fading) Arm(_ context.Context, until time.Time) error {
	d.said = append(d.said, until)
	if len(d.said) > 1 {
		return d.err
	}
	return nil
}

func (*fading) Disarm(context.Context) error { return nil }

// A watchdog that has paused ends the right at once, one that takes no more times at the
// one that it has; either way it is told to act.
func TestADeadWatchdogEndsTheRight(t *testing.T) {
	const ttl = 8 * time.Second
	for name, c := range map[string]struct {
		err  error
		most time.Duration
	}{"it has paused": {witness.ErrLost, ttl / 8}, "it hangs": {errors.New("hangs"), ttl}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dog, from := &fading{err: c.err}, time.Now()
				g, err := witness.Take(t.Context(), new(witnesstest.Memory), cbt.NewID(), "a", ttl, dog)
				if err != nil {
					t.Fatal(err)
				}
				if err := g.Keep(t.Context()); !errors.Is(err, witness.ErrLost) || !errors.Is(err, witness.ErrNoWatchdog) {
					t.Errorf("kept: %v", err)
				}
				<-g.Lost()
				if d := time.Since(from); d > c.most {
					t.Errorf("lost after %v", d)
				}
				if last := dog.said[len(dog.said)-1]; last.After(time.Now()) {
					t.Errorf("told last: in %v", time.Until(last))
				}
			})
		})
	}
}

// What was said to a watchdog before it looks at the time counts, though it was slow to
// read it.
func TestDogReadsBeforeItActs(t *testing.T) {
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
	const far = "9000000000000000000"
	if _, err := in.Write([]byte("arm 1\n" + strings.Repeat("x", 1000) + "\narm " + far + "\n")); err != nil { // more than one read
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
	for _, want := range []string{"armed 1", "armed " + far} {
		line := make([]byte, len(want)+1)
		if _, err := io.ReadFull(out, line); err != nil || string(line) != want+"\n" {
			t.Fatalf("it says %q, %v, want %q", line, err, want)
		}
	}
	if standing(t, m.Process.Pid) {
		t.Error("paused by a time that was not the last one")
	}
}
