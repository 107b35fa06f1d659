package qemu

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/cbttest"
	"github.com/novacron/afterimage/cbt/qmp"
)

// A disk with much to copy is read as it is; what that gives is of no instant of all
// machines, so they stand still for one although nothing is dirty any more.
func TestMachinesStandStillAfterALiveDiskWasRead(t *testing.T) {
	still := &stillness{}
	var mu sync.Mutex // guards held
	held := 0
	cut := &Cut{Machines: 2, Limit: patience}
	var ws []*world
	var trs []*Tracker
	for _, name := range []string{"a", "b"} {
		w := newWorld(t, cbttest.DiskSpec{Name: name, Bytes: shrinkAbove + 16<<20})
		w.options = func(o *Options) {
			o.Every, o.Cut = time.Hour, cut
			o.Still = func(ctx context.Context, m Monitor) (func(context.Context) error, error) {
				mu.Lock()
				held++
				mu.Unlock()
				return still.hold(ctx, m)
			}
		}
		tr := w.tracker()
		ws, trs = append(ws, w), append(trs, tr)
		w.run(tr)
	}
	cbttest.Eventually(t, patience, "a cycle is closed", func() bool { return cut.Stats().Points > 0 })
	mu.Lock()
	before := held
	mu.Unlock()
	const part = 8 << 20
	for off := int64(0); off < shrinkAbove+part; off += part {
		ws[1].write("b", bytes.Repeat([]byte{byte(1 + off/part)}, part), off)
	}
	if err := trs[0].AtPoint(cbttest.Context(t, patience), func(context.Context) error { return nil }); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	if held == before {
		t.Error("a point was made of a live disk while no machine stood still")
	}
	mu.Unlock()
	ws[1].checkImages()
}

// A machine whose disks all leave is in no point: the others go on, and what is asked for
// at it is done with them.
func TestMachineWithoutDisksIsNotWaitedFor(t *testing.T) {
	cut := &Cut{Machines: 2}
	w, away := newWorld(t, cbttest.DiskSpec{Name: "a", Bytes: 1 << 20}), newWorld(t, cbttest.DiskSpec{Name: "b", Bytes: 1 << 20})
	w.options = func(o *Options) { o.Every, o.Cut = time.Hour, cut }
	away.options = w.options
	tr, other := w.tracker(), away.tracker() // which does not run: it never comes
	w.run(tr)
	cbttest.Eventually(t, patience, "the machine waits", func() bool {
		cut.mu.Lock()
		defer cut.mu.Unlock()
		return len(cut.here) == 1
	})
	if n := cut.Stats().Points; n != 0 {
		t.Errorf("%d points without a machine that has a disk", n)
	}
	if err := other.Unplug(cbttest.Context(t, patience), away.volumes[0].ID, func(context.Context) error { return nil }); err != nil {
		t.Fatal(err)
	}
	cbttest.Eventually(t, patience, "a cycle is closed", func() bool { return cut.Stats().Points > 0 })
	done := false
	if err := other.AtPoint(cbttest.Context(t, patience), func(context.Context) error { done = true; return nil }); err != nil || !done {
		t.Errorf("%v, done %v", err, done)
	}
}

// guestMonitor is a monitor of a guest in a state, and notes what it was told.
type guestMonitor struct {
	fakeMonitor
	asked func() error                // what becomes of asking for the state; nil: it is told
	stop  func(context.Context) error // what becomes of a stop; nil: it is carried out

	mu    sync.Mutex // guards what follows
	state string
	told  []string
}

func (m *guestMonitor) Execute(ctx context.Context, command string, _, result any) error {
	switch {
	case command == "query-status" && m.asked != nil:
		if err := m.asked(); err != nil {
			return err
		}
	case command == "stop" && m.stop != nil:
		if err := m.stop(ctx); err != nil {
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch command {
	case "query-status":
		return json.Unmarshal([]byte(`{"status":"`+m.state+`"}`), result)
	case "stop":
		m.state = guestPaused
	case "cont":
		m.state = guestRuns
	}
	m.told = append(m.told, command)
	return nil
}

func (m *guestMonitor) was(want ...string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Equal(m.told, want)
}

// collectorOf has no disks.
func collectorOf(t *testing.T, m Monitor, memory cbt.Memory) *collector {
	t.Helper()
	tr, err := New(Options{Name: cbt.NewID(), QMP: "/nowhere", Dir: "/nowhere", Sink: cbttest.NewRecorder(), Memory: memory,
		Incarnation: cbt.Incarnation(cbt.NewID()), Every: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	return &collector{t: tr, m: newMachine(m, &tr.opts)}
}

func (c *collector) remembersStill(t *testing.T) bool {
	t.Helper()
	var still bool
	if _, err := c.t.opts.Memory.Recall(stillKey(c.t.opts.Name), &still); err != nil {
		t.Fatal(err)
	}
	if still != c.t.still.Load() {
		t.Errorf("remembered is %v, told to the watchdog %v", still, c.t.still.Load())
	}
	return still
}

// A round that ends before the pause leaves no guest that would be taken for stopped by us.
func TestRoundThatFailsBeforeThePauseForgetsIt(t *testing.T) {
	memory, gone := new(cbttest.Memory), &qmp.Error{Class: "GenericError"}
	foreseen := false
	first := collectorOf(t, &guestMonitor{state: guestRuns}, memory)
	second := collectorOf(t, &guestMonitor{state: guestRuns, asked: func() error {
		foreseen = first.remembersStill(t)
		return gone
	}}, memory)
	all, failed := []*arrival{{c: first}, {c: second}}, make([]error, 2)
	if _, err := new(Cut).drawAll(t.Context(), all, failed); !errors.Is(err, gone) || failed[0] != nil || failed[1] == nil {
		t.Errorf("%v, failed %v", err, failed)
	}
	if !foreseen || first.remembersStill(t) {
		t.Errorf("the pause was foreseen: %v, and is still: %v", foreseen, first.remembersStill(t))
	}
}

// A stop whose answer is late is waited for before the guest is resumed, and not by the
// others: what overtakes the cont would leave the guest stopped.
func TestGuestIsResumedBehindItsStop(t *testing.T) {
	short, cancel := context.WithCancel(t.Context())
	late := make(chan struct{})
	m := &guestMonitor{state: guestRuns, stop: func(ctx context.Context) error {
		cancel()
		select {
		case <-late:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}}
	c := collectorOf(t, m, new(cbttest.Memory))
	if err := c.foresee(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.hush(short); !errors.Is(err, context.Canceled) || c.resume == nil {
		t.Fatalf("%v, to be resumed: %v", err, c.resume != nil)
	}
	if err := c.resume(short); err == nil || !m.was() {
		t.Errorf("resumed before the stop was answered: %v, %v", err, m.told)
	}
	if err := c.forgetStill(); err != nil || !c.remembersStill(t) {
		t.Errorf("a stop that may come is forgotten: %v", err)
	}
	close(late)
	if err := c.wake(t.Context()); err != nil || !m.was("stop", "cont") {
		t.Errorf("%v, the guest was told %v", err, m.told)
	}
	if err := c.forgetStill(); err != nil || c.remembersStill(t) {
		t.Errorf("the pause is not forgotten: %v", err)
	}
}

// A guest that somebody stops between our question and our stop is left so.
func TestGuestStoppedOnPurposeIsLeftSo(t *testing.T) {
	m := &guestMonitor{state: guestRuns}
	c := collectorOf(t, m, new(cbttest.Memory))
	if err := c.foresee(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.state = guestPaused
	if err := errors.Join(c.hush(t.Context()), c.wake(t.Context())); err != nil || !m.was() {
		t.Errorf("%v, the guest was told %v", err, m.told)
	}
}

// eventless is a monitor at which nothing happens.
type eventless struct{ *guestMonitor }

func (eventless) Events(int) EventQueue { return noEvents{} }

type noEvents struct{}

func (noEvents) Close() {}
func (noEvents) Next(ctx context.Context) (e qmp.Event, err error) {
	<-ctx.Done()
	return e, ctx.Err()
}

// Who taps another way than the life that stopped the guest, or not at all for now, resumes
// it all the same.
func TestGuestLeftStoppedIsWokenHoweverItIsTapped(t *testing.T) {
	for name, wakes := range map[string]func(*Tracker, context.Context) error{
		"per write": func(tr *Tracker, ctx context.Context) error { return tr.Run(ctx) },
		"paused":    (*Tracker).WakeLeft,
	} {
		m, memory := &guestMonitor{state: guestPaused}, new(cbttest.Memory)
		c := collectorOf(t, m, memory)
		o := c.t.opts
		o.Every, o.Dir = 0, t.TempDir()
		o.Dial = func(context.Context) (Monitor, error) { return eventless{m}, nil }
		tr, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		key := stillKey(o.Name)
		if err := memory.Remember(key, true); err != nil {
			t.Fatal(err)
		}
		ctx, leave := context.WithCancel(cbttest.Context(t, patience))
		ended := make(chan error, 1)
		go func() { ended <- wakes(tr, ctx) }()
		for still := true; still && ctx.Err() == nil; {
			if _, err := memory.Recall(key, &still); err != nil {
				t.Fatal(err)
			}
			rest(ctx, nil, time.Millisecond)
		}
		leave()
		if err := <-ended; err != nil || !m.was("cont") {
			t.Errorf("%s: %v, the guest was told %v", name, err, m.told)
		}
		m.told = nil
		if err := tr.WakeLeft(t.Context()); err != nil || !m.was() {
			t.Errorf("%s: once more: %v, the guest was told %v", name, err, m.told)
		}
	}
}

// What an earlier life may have left stopped is resumed if it is in the state of that.
func TestOnlyAPausedGuestIsWokenLater(t *testing.T) {
	for _, state := range []string{guestRuns, guestPaused, "postmigrate", "inmigrate", "prelaunch", "io-error", "shutdown"} {
		m, memory := &guestMonitor{state: state}, new(cbttest.Memory)
		c := collectorOf(t, m, memory)
		if err := memory.Remember(stillKey(c.t.opts.Name), true); err != nil {
			t.Fatal(err)
		}
		if err := c.t.wakeLeft(t.Context(), c.m.commands); err != nil || c.remembersStill(t) {
			t.Errorf("%s: %v, still remembered: %v", state, err, c.remembersStill(t))
		}
		if want := state == guestPaused; m.was("cont") != want || !want && !m.was() {
			t.Errorf("%s: the guest was told %v", state, m.told)
		}
	}
}
