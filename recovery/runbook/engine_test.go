package runbook

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/novacron/afterimage/testbed/scale"
)

var errCrash = errors.New("the process died")

// crasher kills the process at one place; with none it only notes the places. A dead
// process does nothing more.
type crasher struct {
	mu     sync.Mutex
	at     string
	dead   bool
	died   context.CancelFunc
	passed []string
}

func (c *crasher) pass(id int, phase string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	place := fmt.Sprintf("%d %s", id+1, phase)
	if c.dead {
		return errCrash
	}
	c.passed = append(c.passed, place)
	if c.dead = place == c.at; c.dead {
		c.died()
		return errCrash
	}
	return nil
}

// fakeWorld is what steps change; it outlives the process.
type fakeWorld struct {
	mu    sync.Mutex
	done  map[string]bool // effects
	half  map[string]bool // that were begun
	times map[string]int  // how often a script's effect came about
}

func newFakeWorld() *fakeWorld {
	return &fakeWorld{done: map[string]bool{}, half: map[string]bool{}, times: map[string]int{}}
}

// shown is the world's end state. A notification may come twice, nothing else may.
func (w *fakeWorld) shown() string {
	var out []string
	for k := range w.done {
		out = append(out, k)
	}
	for k, n := range w.times {
		out = append(out, fmt.Sprintf("%s x%d", k, n))
	}
	for k := range w.half {
		out = append(out, k+" half")
	}
	slices.Sort(out)
	return strings.Join(out, "; ")
}

// fakeDriver is one life of the process.
type fakeDriver struct {
	*fakeWorld
	*crasher
	asked sync.Map // checks that said no once
}

func effect(a Action) string { return a.Name() }

func (d *fakeDriver) Look(_ context.Context, a Action) (Seen, error) {
	if err := d.pass(a.ID, "look"); err != nil {
		return CannotTell, err
	}
	d.fakeWorld.mu.Lock()
	defer d.fakeWorld.mu.Unlock()
	seen := NotHappened
	switch {
	case a.Step.Kind == Script && a.Step.Check == nil, a.Step.Kind == Notify:
		return CannotTell, nil
	case a.Step.Kind == Cleanup:
		if !slices.ContainsFunc(slices.Collect(maps.Keys(d.done)), func(k string) bool { return strings.HasPrefix(k, "start ") }) {
			seen = Happened
		}
	case a.Step.Kind == Stop:
		if !d.done["start "+a.Step.Machine] {
			seen = Happened
		}
	case d.done[effect(a)]:
		seen = Happened
	}
	return seen, nil
}

func (d *fakeDriver) Do(_ context.Context, a Action) (string, error) {
	if err := d.pass(a.ID, "do"); err != nil {
		return "", err
	}
	if a.Step.Kind.IsCheck() {
		if _, again := d.asked.LoadOrStore(a.ID, true); !again {
			return "", errors.New("no answer yet")
		}
		return "ok", nil
	}
	if len(a.Step.Argv) > 1 && a.Step.Argv[1] == "fails" {
		return "out of order", errors.New("exit status 1")
	}
	d.set(d.half, effect(a))
	if err := d.pass(a.ID, "half"); err != nil {
		return "", err
	}
	d.fakeWorld.mu.Lock()
	delete(d.half, effect(a))
	switch a.Step.Kind {
	case Script:
		d.times[effect(a)]++
		d.done[effect(a)] = true
	case Stop:
		delete(d.done, "start "+a.Step.Machine)
	case Cleanup:
		maps.DeleteFunc(d.done, func(k string, _ bool) bool {
			return strings.HasPrefix(k, "start ") || strings.HasPrefix(k, "network ") || strings.HasPrefix(k, "reip ")
		})
		clear(d.half)
	default:
		d.done[effect(a)] = true
	}
	d.fakeWorld.mu.Unlock()
	return "done", d.pass(a.ID, "did")
}

func (d *fakeDriver) set(m map[string]bool, k string) {
	d.fakeWorld.mu.Lock()
	defer d.fakeWorld.mu.Unlock()
	m[k] = true
}

// fakeLog outlives the process, but for what it was writing.
type fakeLog struct {
	*crasher
	entries *[]Entry
}

func (l fakeLog) Append(e Entry) error {
	if err := l.pass(e.Action, "before "+string(e.Event)); err != nil {
		return err
	}
	e.N = len(*l.entries)
	*l.entries = append(*l.entries, e)
	return l.pass(e.Action, "after "+string(e.Event))
}

// life runs an engine until the run is over or the process dies, and answers as a
// person would who looks at the world.
func life(t *testing.T, p Plan, w *fakeWorld, entries *[]Entry, c *crasher) (State, error) {
	t.Helper()
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	var clock sync.Mutex
	tick := func() time.Time {
		clock.Lock()
		defer clock.Unlock()
		now = now.Add(time.Second)
		return now
	}
	e, err := NewEngine(p, *entries, fakeLog{c, entries}, &fakeDriver{fakeWorld: w, crasher: c}, tick)
	if err != nil {
		t.Fatal(err)
	}
	e.After = func(time.Duration) <-chan time.Time { ch := make(chan time.Time); close(ch); return ch }
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	c.died = cancel
	for range 100 {
		err = e.Run(ctx)
		var asked *AskedError
		switch {
		case err == nil, errors.Is(err, ErrEnded):
			return e.State(), nil
		case ctx.Err() != nil:
			return e.State(), errCrash
		case errors.As(err, &asked):
			word := Yes
			if !slices.Contains(asked.Answers, Yes) {
				word = Again
				if w.done[effect(asked.Action)] {
					word = Done
				}
			}
			if err := e.Answer(asked.Action.ID, word); err != nil && !errors.Is(err, errCrash) {
				t.Fatal(err)
			}
		default:
			t.Fatalf("run: %v", err)
		}
	}
	t.Fatal("a hundred questions are enough")
	return State{}, nil
}

// phases is how the actions of a run ended.
func phases(s State) string {
	var out []string
	for i, p := range s.Actions {
		out = append(out, fmt.Sprintf("%d %s", i+1, p.Phase))
	}
	return fmt.Sprint(out, s.Aborted, s.Over)
}

// TestARunThatIsInterruptedAnywhereEndsAsIfItHadNotBeen kills the process at every
// place of every step of every mode, once and again at the same place (promise 13).
func TestARunThatIsInterruptedAnywhereEndsAsIfItHadNotBeen(t *testing.T) {
	n := 0
	for _, name := range []string{"shop", "tree", "abort"} {
		b := mustRead(t, name+".yml")
		for _, m := range Modes() {
			p := NewPlan(b, m, "latest", nil)
			world, entries, note := newFakeWorld(), []Entry{}, &crasher{}
			state, err := life(t, p, world, &entries, note)
			if err != nil {
				t.Fatal(err)
			}
			want, ended := world.shown(), phases(state)
			if strings.Contains(want, "half") || m == Test && strings.Contains(want, "start ") {
				t.Fatalf("%s %s ends with %s", name, m, want)
			}
			slices.Sort(note.passed)
			for _, place := range slices.Compact(note.passed) {
				world, entries := newFakeWorld(), []Entry{}
				for range 2 {
					if _, err := life(t, p, world, &entries, &crasher{at: place}); err == nil {
						break // the second time it does not come by there
					}
					n++
				}
				state, err := life(t, p, world, &entries, &crasher{})
				if err != nil || world.shown() != want || phases(state) != ended {
					t.Errorf("%s %s, killed at %s: %v\n got %s\n     %s\nwant %s\n     %s", name, m, place, err, world.shown(), phases(state), want, ended)
				}
			}
		}
	}
	scale.Counted(t, "runbook-crashes", n, 600)
}

func TestAStepThatFailsHaltsOrIsPassedBy(t *testing.T) {
	text := "runbook: x\nmachines: {a: a}\nboot:\n- name: one\n  steps:\n  - notify: [/usr/local/bin/page, fails]\n    on_failure: continue\n  - script: [/usr/local/bin/once, fails]\n    idempotent: true\n    retries: 2\n  - start: a\n"
	b, err := Parse("x.yml", []byte(text))
	if err == nil {
		err = b.Check(facts)
	}
	if err != nil {
		t.Fatal(err)
	}
	p, entries, w := NewPlan(b, Planned, "", nil), []Entry{}, newFakeWorld()
	d := &fakeDriver{fakeWorld: w, crasher: &crasher{}}
	e, err := NewEngine(p, nil, fakeLog{d.crasher, &entries}, d, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	e.After = func(time.Duration) <-chan time.Time { ch := make(chan time.Time); close(ch); return ch }
	var failed *StepError
	if err := e.Run(context.Background()); !errors.As(err, &failed) || failed.Action.ID != 1 {
		t.Fatalf("run: %v", err)
	}
	s := e.State()
	if s.Actions[0].Phase != GivenUp || s.Actions[1].Attempts != 3 || s.Actions[1].Output != "out of order" || s.Actions[2].Phase != Idle || s.Word() != "halted" {
		t.Errorf("state %s: %+v", s.Word(), s.Actions)
	}
	for id, w := range map[int]Answer{1: Yes, 0: Skip, 2: Skip, 9: Skip} {
		if err := e.Answer(id, w); !errors.Is(err, ErrAnswer) {
			t.Errorf("answer %s to step %d: %v", w, id+1, err)
		}
	}
	if err := e.Answer(1, Skip); err != nil {
		t.Fatal(err)
	}
	if err := e.Run(context.Background()); err != nil || e.State().Word() != "partly" || !w.done["start a"] {
		t.Errorf("after the skip: %v, %s, %s", err, e.State().Word(), w.shown())
	}
	if err := e.Run(context.Background()); !errors.Is(err, ErrEnded) {
		t.Errorf("once more: %v", err)
	}
}
