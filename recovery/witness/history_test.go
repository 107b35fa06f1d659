package witness_test

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// What a group's machine does at a site.
const (
	opRun  = "run"  // a site gets the right to run it, and starts it
	opTick = "tick" // the machine is seen to run
	opStop = "stop" // it stands still, or is given up
)

type op struct{ kind, site string }

// history is who ran a group, and when, by one clock for all sites.
type history struct {
	mu  sync.Mutex
	ops []porcupine.Operation
}

func (h *history) add(kind, site string, call, ret int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, porcupine.Operation{Input: op{kind, site}, Call: call, Return: ret})
}

// mayRun is the one who may run a group: nobody, or one site. Nobody takes it from a
// site that has it, and a machine that runs is that site's.
var mayRun = porcupine.Model{
	Init: func() any { return "" },
	Step: func(state, input, _ any) (bool, any) {
		o := input.(op)
		switch o.kind {
		case opRun:
			return state == "", o.site
		case opTick:
			return state == o.site, state
		}
		return state == o.site, ""
	},
	DescribeOperation: func(input, _ any) string { return fmt.Sprint(input) },
}

// verdict judges a history, and counts how often the right went to another site.
func (h *history) verdict(t *testing.T) (ok bool, runs, changes int) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range h.ops { // each site is one client: what it does is in order
		h.ops[i].ClientId = int(h.ops[i].Input.(op).site[0] - 'a')
	}
	var took []porcupine.Operation
	for _, o := range h.ops {
		if o.Input.(op).kind == opRun {
			took = append(took, o)
		}
	}
	slices.SortFunc(took, func(a, b porcupine.Operation) int { return cmp.Compare(a.Return, b.Return) })
	for i := 1; i < len(took); i++ {
		if took[i].Input != took[i-1].Input {
			changes++
		}
	}
	r := porcupine.CheckOperationsTimeout(mayRun, h.ops, time.Minute)
	if r == porcupine.Unknown {
		t.Error("the history was not judged within a minute")
	}
	return r == porcupine.Ok, len(took), changes
}

// never is the return of what is not known to have ended.
const never = math.MaxInt64

// The checker finds a second machine, and takes what is allowed for allowed.
func TestTheCheckerFindsTwo(t *testing.T) {
	one := &history{}
	one.add(opRun, "a", 0, 10)
	one.add(opTick, "a", 20, 20)
	one.add(opStop, "a", 21, never)
	one.add(opRun, "b", 15, 40)
	one.add(opTick, "b", 41, 41)
	if ok, runs, changes := one.verdict(t); !ok || runs != 2 || changes != 1 {
		t.Errorf("one after the other: %v, %d, %d", ok, runs, changes)
	}
	two := &history{ops: slices.Clone(one.ops)}
	two.ops = slices.DeleteFunc(two.ops, func(o porcupine.Operation) bool { return o.Input == op{opStop, "a"} })
	two.add(opTick, "a", 42, 42)
	two.add(opStop, "a", 43, never)
	if ok, _, _ := two.verdict(t); ok {
		t.Error("two machines at once are allowed")
	}
}
