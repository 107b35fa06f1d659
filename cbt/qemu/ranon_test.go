package qemu

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/cbttest"
	"github.com/novacron/afterimage/cbt/qmp"
)

// signs are what a tracker told of its machine's running on.
type signs struct {
	mu  sync.Mutex
	all []string
}

func (s *signs) told(_ cbt.VolumeID, why string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, why)
	return nil
}

func (s *signs) list() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.all)
}

// A machine that ends together with its tap has not run on; one whose job somebody ends,
// whose monitor alone goes away, or that comes again has, whatever the gap is called.
func TestAMachineThatRunsOnBeyondItsTapIsTold(t *testing.T) {
	w := newWorld(t, cbttest.DiskSpec{Name: "a", Bytes: 8 << 20})
	w.budget = patience / 2
	var told signs
	var mu sync.Mutex
	var monitor *qmp.Client // of the newest session
	w.options = func(o *Options) {
		o.Events.RanOn = told.told
		o.Dial = func(ctx context.Context) (Monitor, error) {
			c, err := qmp.Dial(ctx, w.machine.QMP, qmp.Options{})
			if err != nil {
				return nil, ErrMonitor
			}
			mu.Lock()
			defer mu.Unlock()
			monitor = c
			return qmpMonitor{c}, nil
		}
	}
	tr := w.tracker()
	w.run(tr)
	w.awaitSynced()
	want := []string{ranAnswering}
	is := func(when string) {
		t.Helper()
		if got := told.list(); !slices.Equal(got, want) {
			t.Errorf("%s: told %q, want %q", when, got, want)
		}
	}
	is("synced")

	taps, _ := tr.current()
	w.machine.Do(t, "block-job-cancel", args{"device": taps[0].node, "force": true})
	gaps := func(n int) {
		t.Helper()
		v := w.volumes[0].ID
		if err := w.recorder.Until(cbttest.Context(t, patience), func() bool { return len(w.recorder.Gaps(v)) >= n }); err != nil {
			t.Fatalf("gaps %v", w.recorder.Gaps(v))
		}
	}
	gaps(1)
	w.awaitSynced()
	want = append(want, ranAnswering)
	is("somebody ended its job")

	mu.Lock()
	m := monitor
	mu.Unlock()
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	gaps(2)
	w.awaitSynced()
	want = append(want, ranStayed)
	is("its monitor went away")

	w.machine.Kill()
	gaps(4) // tap-ended and machine-not-there
	is("it ended with its tap")
	w.machine.Boot(t)
	w.awaitSynced()
	want = append(want, ranAnswering)
	is("it came again")
}

// In cycles what runs is in none until one is closed, and each time that it comes again.
func TestAMachineInCyclesThatComesAgainIsTold(t *testing.T) {
	w := newWorld(t, cbttest.DiskSpec{Name: "a", Bytes: 8 << 20})
	var told signs
	w.options = func(o *Options) {
		o.Every = time.Hour // one cycle for each session
		o.Events.RanOn = told.told
	}
	w.run(w.tracker())
	v := w.volumes[0].ID
	closed := func(n int) {
		t.Helper()
		if err := w.recorder.Until(cbttest.Context(t, patience), func() bool {
			is := 0
			for _, g := range w.recorder.Gaps(v) {
				if g == cbt.CauseCycle {
					is++
				}
			}
			return is >= n
		}); err != nil {
			t.Fatalf("gaps %v", w.recorder.Gaps(v))
		}
	}
	for n := 1; n <= 3; n++ {
		closed(n)
		if got := told.list(); len(got) != n || slices.ContainsFunc(got, func(s string) bool { return s != ranAnswering }) {
			t.Fatalf("at cycle %d: told %q", n, got)
		}
		w.machine.Kill()
		w.machine.Boot(t)
	}
}
